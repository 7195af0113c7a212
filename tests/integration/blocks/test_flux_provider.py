"""FluxProvider on a real Flux of four brokers: each block a nested instance of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import apps
import helpers
import parsl
import pytest
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.states import TERMINAL_STATES, JobState
from parsl.launchers import WrappedLauncher
from parsl.providers.errors import SubmitException

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.providers import FluxProvider, OncePerBlock

pytestmark = pytest.mark.flux

BLOCK_BOUND = 60.0
"""Seconds that a block, a nested instance, may take to start or end on a busy machine."""


@pytest.fixture(scope="module")
def system_uri() -> Iterator[str]:
    """A Flux instance of four brokers, in the part of the system's."""
    with helpers.flux_instance("-s4") as uri:
        yield uri


@pytest.fixture
def new_provider(system_uri: str, tmp_path: Path) -> Iterator[Callable[..., FluxProvider]]:
    """Return a function that makes providers; their jobs are canceled at the end of the test."""
    made: list[FluxProvider] = []

    def new(**options: object) -> FluxProvider:
        provider = FluxProvider(uri=system_uri, **options)  # type: ignore[arg-type]
        provider.script_dir = str(tmp_path)
        made.append(provider)
        return provider

    yield new
    for provider in made:
        jobs = [job for job, entry in provider.resources.items() if not entry["status"].terminal]
        provider.cancel(jobs)
        for job in jobs:
            wait_state(provider, job, *TERMINAL_STATES)


def wait_state(provider: FluxProvider, job_id: object, *states: JobState) -> None:
    def reached() -> bool:
        return provider.status([job_id])[0].state in states

    helpers.wait_until(reached, BLOCK_BOUND, f"block {job_id} is {states}")


def test_a_block_is_one_flux_instance_over_all_its_nodes_and_a_once_per_block_command_runs_once(
    new_provider: Callable[..., FluxProvider], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    provider = new_provider(nodes_per_block=2, worker_init="export FROM_INIT='a b'")
    command = f'flux getattr size; echo "$FROM_INIT"; until test -e {gate}; do sleep 0.1; done'
    job = provider.submit(OncePerBlock(command), 1, "once")
    assert provider.resources[job]["status"].state is JobState.PENDING
    wait_state(provider, job, JobState.RUNNING)
    gate.touch()
    wait_state(provider, job, JobState.COMPLETED)
    (status,) = provider.status([job])
    assert (status.stdout or "").split("\n") == ["2", "a b", ""], status.stderr
    assert (status.exit_code, status.message) == (0, None)


def test_any_other_command_runs_on_each_node_as_often_as_asked(
    new_provider: Callable[..., FluxProvider],
) -> None:
    provider = new_provider(nodes_per_block=2)
    cores = "$(python3 -c 'import os; print(len(os.sched_getaffinity(0)))')"
    job = provider.submit(f"""echo "rank $FLUX_TASK_RANK of $(flux getattr size)" cores {cores}""", 2)
    wait_state(provider, job, JobState.COMPLETED)
    (status,) = provider.status([job])
    here = len(os.sched_getaffinity(0))
    expected = [f"rank {rank} of 2 cores {here}" for rank in range(4)]
    assert sorted((status.stdout or "").splitlines()) == expected
    assert "flux run --nodes=2 --ntasks=4" in (status.stderr or "")


def test_a_launcher_that_was_given_wraps_every_command(new_provider: Callable[..., FluxProvider]) -> None:
    provider = new_provider(launcher=WrappedLauncher(prepend="echo wrapped"))
    job = provider.submit(OncePerBlock("true"), 1)
    wait_state(provider, job, JobState.COMPLETED)
    assert provider.status([job])[0].stdout == "wrapped true\n"


def test_a_block_that_fails_says_how(new_provider: Callable[..., FluxProvider]) -> None:
    provider = new_provider()
    job = provider.submit(OncePerBlock("echo broken >&2; exit 3"), 1)
    wait_state(provider, job, JobState.FAILED)
    (status,) = provider.status([job])
    assert (status.exit_code, status.message) == (3, "exit status 3")
    assert "broken" in (status.stderr or "")


def test_cancel_ends_what_runs_and_what_waits_and_tells_what_it_could_not(
    new_provider: Callable[..., FluxProvider],
) -> None:
    provider = new_provider(nodes_per_block=3)
    runs = provider.submit(OncePerBlock("sleep 600"), 1)
    wait_state(provider, runs, JobState.RUNNING)
    waits = provider.submit(OncePerBlock("sleep 600"), 1)
    assert [s.state for s in provider.status([runs, waits])] == [JobState.RUNNING, JobState.PENDING]
    assert provider.cancel([waits, runs]) == [True, True]
    wait_state(provider, waits, JobState.CANCELLED)
    wait_state(provider, runs, JobState.CANCELLED)
    assert provider.cancel([runs, waits]) == [True, True], "blocks that have ended need no canceling"
    provider.uri = "local:///nowhere"
    provider.resources[runs]["status"].state = JobState.RUNNING
    assert provider.cancel([runs]) == [False]
    provider.resources[runs]["status"].state = JobState.CANCELLED


def test_a_block_whose_walltime_ends_is_a_timeout(new_provider: Callable[..., FluxProvider]) -> None:
    provider = new_provider(walltime="00:00:02")
    job = provider.submit(OncePerBlock("sleep 600"), 1)
    wait_state(provider, job, JobState.TIMEOUT)
    assert "expired" in (provider.status([job])[0].message or "")


def test_a_held_block_is_held(new_provider: Callable[..., FluxProvider]) -> None:
    provider = new_provider(scheduler_options="#flux: --urgency=0")
    job = provider.submit(OncePerBlock("true"), 1)
    wait_state(provider, job, JobState.HELD)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"queue": "nosuch"}, "'nosuch' is not a valid queue"),
        ({"scheduler_options": "#flux: --nosuch"}, "nosuch"),
    ],
)
def test_a_refused_submission_raises_with_flux_own_words(
    new_provider: Callable[..., FluxProvider], options: dict[str, str], says: str
) -> None:
    provider = new_provider(**options)
    with pytest.raises(SubmitException, match=says):
        provider.submit(OncePerBlock("true"), 1)
    assert provider.resources == {}


def test_an_unsatisfiable_block_fails_with_flux_own_words(new_provider: Callable[..., FluxProvider]) -> None:
    provider = new_provider(nodes_per_block=5)
    job = provider.submit(OncePerBlock("true"), 1)
    wait_state(provider, job, JobState.FAILED)
    assert "unsatisfiable" in (provider.status([job])[0].message or "")


def test_all_states_come_from_one_command_and_stay_when_flux_does_not_answer(
    new_provider: Callable[..., FluxProvider],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider = new_provider()
    jobs = [provider.submit(OncePerBlock("sleep 600"), 1) for _ in range(2)]
    for job in jobs:
        wait_state(provider, job, JobState.RUNNING)
    calls: list[list[str]] = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda args, **kw: calls.append(args) or run(args, **kw))
    assert [s.state for s in provider.status(jobs)] == [JobState.RUNNING] * 2
    assert calls == [["flux", "jobs", "--json", *jobs]]
    uri, provider.uri = provider.uri, "local:///nowhere"
    assert [s.state for s in provider.status(jobs)] == [JobState.RUNNING] * 2
    assert "status unknown blocks=" in caplog.text
    provider.uri = uri


def test_a_job_that_flux_has_forgotten_has_ended(
    new_provider: Callable[..., FluxProvider], system_uri: str
) -> None:
    provider = new_provider()
    job = provider.submit(OncePerBlock("true"), 1)
    subprocess.run(
        ["flux", "job", "wait-event", "-t", str(BLOCK_BOUND), str(job), "clean"],
        env={**os.environ, "FLUX_URI": system_uri}, check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(
        ["flux", "job", "purge", "--force", "--num-limit=0"],
        env={**os.environ, "FLUX_URI": system_uri}, check=True, capture_output=True,
    )  # fmt: skip
    (status,) = provider.status([job])
    assert status.state is JobState.COMPLETED
    assert status.message == "ended; Flux has purged the job"


@pytest.mark.timeout(240)
def test_high_throughput_executor_runs_on_it(
    new_provider: Callable[..., FluxProvider], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    provider = new_provider(
        nodes_per_block=2,
        worker_init=f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n"
        f"export PYTHONPATH={shlex.quote(str(Path(apps.__file__).parent))}:$PYTHONPATH",
    )
    executor = HighThroughputExecutor(
        label="htex", address="127.0.0.1", provider=provider, max_workers_per_node=1, encrypted=False
    )
    config = Config(executors=[executor], run_dir=str(tmp_path / "runinfo"), strategy="none")
    with parsl.load(config) as kernel:
        double = parsl.python_app(apps.double, data_flow_kernel=kernel)
        futures = [double(number) for number in range(20)]
        assert [future.result(timeout=90) for future in futures] == [2 * number for number in range(20)]
        helpers.wait_until(lambda: len(executor.connected_managers()) == 2, 60, "a pool on each node")
    (job,) = provider.resources
    wait_state(provider, job, JobState.CANCELLED, JobState.COMPLETED)


@pytest.mark.timeout(240)
def test_blocks_of_our_executor_come_with_the_work_and_go_without(
    new_provider: Callable[..., FluxProvider], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    provider = new_provider(nodes_per_block=2, init_blocks=0, max_blocks=2)
    executor = FluxBulkExecutor(label="blocks", provider=provider)
    config = Config(
        executors=[executor], run_dir=str(tmp_path / "runinfo"),
        strategy="htex_auto_scale", strategy_period=0.5, max_idletime=2,
    )  # fmt: skip

    def all_blocks_have_gone() -> bool:
        return all(status.terminal for status in executor.status().values())

    with parsl.load(config) as kernel:
        app = parsl.python_app(apps.meet, data_flow_kernel=kernel)
        for wave in (1, 2):
            place = tmp_path / f"wave-{wave}"
            place.mkdir()
            brokers = {future.result(timeout=90) for future in [app(str(place), 4) for _ in range(60)]}
            assert len(brokers) == 4, "each of the two nodes of both blocks had tasks"
            assert len(provider.resources) >= 2 * wave
            helpers.wait_until(all_blocks_have_gone, 60, "idle blocks are given back")
