"""Packed jobs: inside one Flux job on each node, real ones: what runs where, and what becomes of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import helpers
import pytest

import parsl_flux_bulk
from parsl_flux_bulk import BulkSubmitter, JobFuture
from parsl_flux_bulk.blocks.packed import node_job_launcher
from parsl_flux_bulk.blocks.relay.instance import RelayedInstance
from parsl_flux_bulk.cli.bulksubmit import packing
from parsl_flux_bulk.errors import BlockLost, JobCanceled, JobFailed, JobTimeout
from parsl_flux_bulk.protocol.instance_uri import NO_INSTANCE_PACKED

pytestmark = pytest.mark.flux

BOUND = 60.0
CORES = len(os.sched_getaffinity(0))
IN_FLUX = "ƒ"
"""How the name of a Flux job begins; those of packed jobs are decimal."""


@pytest.fixture(autouse=True)
def package_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(parsl_flux_bulk.__file__).parent.parent))
    monkeypatch.chdir(tmp_path)


def bulksubmit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "parsl_flux_bulk", *arguments],
        capture_output=True,
        text=True,
        timeout=BOUND,
        env={**os.environ, **environment},
    )


def jobs_of(uri: str) -> list[str]:
    """Names of the active jobs of an instance."""
    return helpers.flux(uri, "jobs", "-no", "{name}").split()


def node_jobs(uri: str) -> list[int]:
    """Process ids of the programs of node jobs."""
    outer = int(helpers.flux(uri, "getattr", "broker.pid"))
    return [pid for pid in helpers.descendants(outer) if "node_job.py" in helpers.command_of(pid)]


def held_job(bulk: BulkSubmitter, directory: Path) -> JobFuture:
    """Submit a job that runs until `release`, and wait until it runs."""
    wait = f"echo > {directory}/held; until [ -e {directory}/released ]; do sleep 0.1; done"
    future = bulk.submit_command(["sh", "-c", wait])
    helpers.wait_until((directory / "held").exists, BOUND, "the job runs")
    return future


def release(directory: Path) -> None:
    (directory / "released").touch()


def test_every_job_runs_once_and_inside(flux_uri: str, tmp_path: Path) -> None:
    with BulkSubmitter(flux_uri, packed=True) as bulk:
        futures = [bulk.submit_command(["sh", "-c", f"echo {n} >> {tmp_path}/ran"]) for n in range(40)]
        for future in futures:
            assert future.result(BOUND).ok
        last = held_job(bulk, tmp_path)  # or the node job could end, idle
        inside = jobs_of(flux_uri)
        release(tmp_path)
        assert last.result(BOUND).ok
    assert sorted(map(int, (tmp_path / "ran").read_text().split())) == list(range(40))
    assert not any(future.job_name.startswith(IN_FLUX) for future in futures)
    assert {future.node for future in futures} == {socket.gethostname()}
    assert inside == ["bulksubmit"]
    helpers.wait_until(lambda: jobs_of(flux_uri) == [], 30.0, "the node job ends")


def test_each_has_its_own_core_and_what_its_jobspec_says(flux_uri: str, tmp_path: Path) -> None:
    with BulkSubmitter(flux_uri, packed=True) as bulk:
        narrow = [bulk.submit_command(["sh", "-c", "nproc; sleep 0.1"]) for _ in range(2 * CORES)]
        wide = bulk.submit_command(["nproc"], cores_per_task=CORES)
        there = bulk.submit_command(
            ["sh", "-c", "pwd; echo $COLOR; echo no >&2"],
            stdout="out-{{id}}",
            stderr="err",
            cwd=str(tmp_path),
            environment={"COLOR": "blue"},
        )
        assert all(future.result(BOUND).ok for future in [*narrow, wide, there])
        assert {future.stdout() for future in narrow} == {"1\n"}
        assert wide.stdout() == f"{CORES}\n"
        assert (tmp_path / f"out-{there.job_id}").read_text() == f"{tmp_path}\nblue\n"
        assert (tmp_path / "err").read_text() == "no\n"


def test_every_kind_of_end(flux_uri: str) -> None:
    with BulkSubmitter(flux_uri, packed=True) as bulk:
        badly = bulk.submit_command(["sh", "-c", "echo no >&2; exit 3"])
        killed = bulk.submit_command(["sh", "-c", "kill -KILL $$"])
        late = bulk.submit_command(["sleep", "600"], duration=0.2)
        canceled = bulk.submit_command(["sleep", "600"])
        with pytest.raises(JobFailed, match=r"exit status 3\n.*\n *no"):
            badly.result(BOUND)
        with pytest.raises(JobFailed, match="SIGKILL"):
            killed.result(BOUND)
        with pytest.raises(JobTimeout):
            late.result(BOUND)
        canceled.cancel()
        with pytest.raises(JobCanceled):
            canceled.result(BOUND)


@pytest.mark.parametrize(
    "resources",
    [{"exclusive": True, "num_nodes": 1}, {"shell_options": {"pty": True}}],
    ids=str,
)
def test_a_job_that_only_flux_can_run_runs_there_with_all_later_ones(
    flux_uri: str, resources: dict[str, object]
) -> None:
    with BulkSubmitter(flux_uri, packed=True) as bulk:
        small = [bulk.submit_command(["sleep", "0.1"]) for _ in range(4)]
        special = bulk.submit_command(["true"], **resources)
        later = bulk.submit_command(["true"])
        assert all(future.result(BOUND).ok for future in [*small, special, later])
        assert not any(future.job_name.startswith(IN_FLUX) for future in small)
        assert special.job_name.startswith(IN_FLUX) and later.job_name.startswith(IN_FLUX)


def test_flux_in_a_packed_job_says_what_to_do(flux_uri: str) -> None:
    with BulkSubmitter(flux_uri, packed=True) as bulk:
        run = bulk.submit_command(["flux", "run", "true"])
        start = bulk.submit_command(["flux", "start", "flux", "run", "echo", "inside"])
        assert NO_INSTANCE_PACKED in str(run.exception(BOUND))
        assert start.result(BOUND).ok
        assert start.stdout() == "inside\n"


def test_beside_a_job_of_others(tmp_path: Path) -> None:
    with helpers.flux_instance("-s2") as uri:
        helpers.flux(uri, "submit", "--wait-event=start", f"-c{CORES}", "-N1", "-n1", "sleep", "600")
        with BulkSubmitter(uri, packed=True) as bulk:
            futures = [bulk.submit_command(["true"]) for _ in range(20)]
            assert all(future.result(BOUND).ok for future in futures)
            assert not any(future.job_name.startswith(IN_FLUX) for future in futures)
        helpers.wait_until(lambda: jobs_of(uri) == ["sleep"], BOUND, "the node job ends")


def test_no_job_waits_for_node_jobs_that_wait_behind_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_job_launcher, "START_TIMEOUT", 10 * BOUND)
    with helpers.flux_instance("-s2") as uri:
        helpers.flux(uri, "submit", "--wait-event=start", f"-c{CORES}", "sleep", "600")
        # This one needs both nodes, so that Flux starts nothing on the free one.
        first = helpers.flux(uri, "submit", "-N2", f"-c{CORES}", "-n2", "sleep", "600").strip()
        with BulkSubmitter(uri, packed=True) as bulk:
            early = [bulk.submit_command(["true"]) for _ in range(3)]
            helpers.wait_until(lambda: all(future.job_id for future in early), BOUND)
            helpers.flux(uri, "cancel", first)
            assert all(future.result(BOUND).ok for future in early)
            assert all(future.job_name.startswith(IN_FLUX) for future in early)

            def one_is_packed() -> bool:
                later = bulk.submit_command(["true"])
                return later.result(BOUND).ok and not later.job_name.startswith(IN_FLUX)

            helpers.wait_until(one_is_packed, BOUND, "the node job gets jobs when it is ready")


def test_when_nothing_is_free_jobs_wait_in_the_instance(flux_uri: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with BulkSubmitter(flux_uri) as others:
        busy = others.submit_command(
            ["sh", "-c", f"echo > {tmp_path}/started; cat {tmp_path}/fifo"], cores_per_task=CORES
        )
        helpers.wait_until((tmp_path / "started").exists, BOUND)
        with BulkSubmitter(flux_uri, packed=True) as bulk:
            futures = [bulk.submit_command(["true"]) for _ in range(3)]
            (tmp_path / "fifo").write_text("")
            assert all(future.result(BOUND).ok for future in [busy, *futures])
            assert all(future.job_name.startswith(IN_FLUX) for future in futures)


def test_all_nodes_share_and_no_two_jobs_have_the_same_id(tmp_path: Path) -> None:
    count = 4 * CORES
    for name in ("output", "meeting"):
        (tmp_path / name).mkdir()
    with helpers.flux_instance("-s4") as uri, BulkSubmitter(uri, packed=True) as bulk:
        # So many at once need all cores of all nodes; how many the nodes run afterwards is left to chance.
        met = f"[ $(ls {tmp_path}/meeting | wc -l) -ge {count} ]"
        meet = ["sh", "-c", f": > {tmp_path}/meeting/$FLUX_JOB_ID; until {met}; do sleep 0.1; done"]
        commands = [meet] * count + [["true"]] * 10 * count
        futures = [bulk.submit_command(each, stdout=f"{tmp_path}/output/{{{{id}}}}") for each in commands]
        assert all(future.result(BOUND).ok for future in futures)
    assert len(list((tmp_path / "output").iterdir())) == 11 * count
    nodes = Counter((future.job_id or 0) // 10**8 for future in futures[:count])
    assert sorted(nodes.values()) == [CORES] * 4, nodes


def test_a_node_job_that_dies_fails_its_jobs_only(tmp_path: Path) -> None:
    with helpers.flux_instance("-s2") as uri, BulkSubmitter(uri, packed=True) as bulk:
        os.mkfifo(tmp_path / "fifo")
        held = [
            bulk.submit_command(
                ["sh", "-c", f"echo > {tmp_path}/started{n}; cat {tmp_path}/fifo"], cores_per_task=CORES
            )
            for n in range(2)
        ]
        helpers.wait_until(lambda: len(list(tmp_path.glob("started*"))) == 2, BOUND)
        os.kill(node_jobs(uri)[0], signal.SIGKILL)
        with pytest.raises(BlockLost, match="node job ƒ"):
            next(bulk.as_completed(BOUND)).result()
        later = [bulk.submit_command(["true"]) for _ in range(4)]
        (tmp_path / "fifo").write_text("")
        assert sum(future.exception(BOUND) is None for future in held) == 1
        assert all(future.result(BOUND).ok for future in later)


def test_an_idle_node_job_gives_its_cores_back(flux_uri: str, tmp_path: Path) -> None:
    with BulkSubmitter(flux_uri, packed=True) as bulk:
        assert bulk.submit_command(["true"]).result(BOUND).ok
        helpers.wait_until(lambda: jobs_of(flux_uri) == [], BOUND, "the node job ends")
        again = held_job(bulk, tmp_path)
        assert not again.job_name.startswith(IN_FLUX)
        assert jobs_of(flux_uri) == ["bulksubmit"]
        release(tmp_path)
        assert again.result(BOUND).ok


def test_a_node_job_with_output_stays(flux_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_job_launcher, "IDLE_TIMEOUT", 0.1)
    request = RelayedInstance.request
    looks: list[int] = []

    def observed(self: RelayedInstance, verb: str, argument: object = None) -> object:
        answer = request(self, verb, argument)
        if verb == "kept":
            looks.append(answer)
        return answer

    monkeypatch.setattr(RelayedInstance, "request", observed)
    with BulkSubmitter(flux_uri, packed=True) as bulk:
        printed = bulk.submit_command(["echo", "hello"])
        assert printed.result(BOUND).ok
        for _ in range(3):
            before = len(looks)
            helpers.wait_until(lambda before=before: len(looks) > before, BOUND, "a look at the idle one")
            again = bulk.submit_command(["true"])
            assert again.result(BOUND).ok
            assert (again.job_id or 0) // 10**8 == (printed.job_id or 0) // 10**8
        assert looks[-1] == 1
        assert printed.stdout() == "hello\n"


def test_a_lost_node_job_is_replaced_and_its_jobs_are_retried(flux_uri: str, tmp_path: Path) -> None:
    # Each job sleeps in its first try only.
    (tmp_path / "tries").mkdir()
    script = f"mkdir {tmp_path}/tries/$FLUX_JOB_CC 2> /dev/null && exec sleep 600; exit 0"
    command = [sys.executable, "-m", "parsl_flux_bulk", "--packed", "--retries", "1", "--copies", str(CORES)]
    with subprocess.Popen(
        [*command, "--json", str(tmp_path / "records"), "--", "sh", "-c", script],
        env={**os.environ, "FLUX_URI": flux_uri}, stdout=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        tries = tmp_path / "tries"
        helpers.wait_until(lambda: len(list(tries.iterdir())) == CORES, BOUND, "all jobs run")
        os.kill(node_jobs(flux_uri)[0], signal.SIGKILL)
        printed = run.communicate(timeout=BOUND)[0]
    assert run.returncode == 0, printed
    assert f"Ran {CORES} jobs" in printed
    records = [json.loads(line) for line in (tmp_path / "records").read_text().splitlines()]
    assert [record["retries"] for record in records] == [1] * CORES
    assert not any(record["id"].startswith(IN_FLUX) for record in records)


@pytest.mark.parametrize("own", [False, True], ids=["attached", "owned"])
def test_nothing_is_left_when_the_script_is_killed(own: bool, flux_uri: str, tmp_path: Path) -> None:
    where = "flux" if own else flux_uri
    source = f"""
    import os, time
    from parsl_flux_bulk import BulkSubmitter
    bulk = BulkSubmitter({where!r}, packed=True)
    bulk.start()
    bulk.submit_command(["sh", "-c", "echo > started; sleep 600"])
    while not os.path.exists("started"):
        time.sleep(0.05)
    print("running", flush=True)
    time.sleep(600)
    """
    with helpers.script(source, tmp_path) as user:
        assert user.stdout is not None and user.stdout.readline() == "running\n"

        def all_of_it() -> set[int]:
            if own:
                return helpers.descendants(user.pid)
            return {p for pid in node_jobs(flux_uri) for p in (pid, *helpers.descendants(pid))}

        helpers.wait_until(
            lambda: "sleep 600" in map(helpers.command_of, all_of_it()), BOUND, "the job's shell sleeps"
        )
        processes = all_of_it()
        user.send_signal(signal.SIGKILL)
        helpers.wait_gone(processes, BOUND)
        helpers.wait_until(lambda: jobs_of(flux_uri) == [], 30.0, "no job is left")


@pytest.mark.parametrize(
    ("options", "packed"),
    [
        (["--copies", "100"], True),
        (["--copies", "20"], False),
        (["--copies", "100", "--no-packed"], False),
        (["--copies", "20", "--packed"], True),
        (["--copies", "100", "-c2"], False),
    ],
    ids=str,
)
def test_the_command_packs_many_small_jobs(options: list[str], packed: bool) -> None:
    run = bulksubmit("--verbose", *options, "--", "true", FLUX_URI="")
    assert run.returncode == 0, run.stderr
    assert ("packed into 1 node job" in run.stderr) == packed
    assert f"Ran {options[1]} jobs" in run.stdout


def test_the_command_packs_in_an_attached_instance_only_if_told(flux_uri: str) -> None:
    run = bulksubmit("--verbose", "--copies", str(packing.PACKED_FROM), "--", "true", FLUX_URI=flux_uri)
    assert run.returncode == 0, run.stderr
    assert "packed into" not in run.stderr
    assert "--packed" in run.stderr.splitlines()[-1]
    run = bulksubmit("--verbose", "--packed", "--copies", "20", "--", "true", FLUX_URI=flux_uri)
    assert run.returncode == 0, run.stderr
    assert "packed into 1 node job" in run.stderr
