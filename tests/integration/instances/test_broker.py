"""An owned instance whose broker hangs: everything is bounded, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import helpers
import pytest

from parsl_flux_bulk.errors import InstanceUnavailable
from parsl_flux_bulk.instances.flux import instance as flux_instance
from parsl_flux_bulk.instances.flux import own_broker
from parsl_flux_bulk.instances.flux.instance import FluxInstance

HANGING = """#!/bin/sh
sleep 600 &
echo $! > {pids}
echo $$ >> {pids}
wait
"""


@pytest.fixture
def hanging_flux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `flux` command that never gets ready; returns the file with its processes."""
    pids = tmp_path / "pids"
    program = tmp_path / "flux"
    program.write_text(HANGING.format(pids=pids))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return pids


def wait_pids(file: Path, bound: float = 60.0) -> list[int]:
    deadline = time.monotonic() + bound
    while not (file.exists() and len(file.read_text().split()) == 2):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [int(pid) for pid in file.read_text().split()]


def test_a_broker_that_hangs_at_its_start(hanging_flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Time enough for its processes to write their ids.
    monkeypatch.setattr(own_broker, "START_TIMEOUT", 3.0)
    with pytest.raises(InstanceUnavailable, match="was not ready within 3 s"):
        own_broker.Broker()
    helpers.wait_gone(wait_pids(hanging_flux))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_script_that_is_killed_while_its_broker_starts(hanging_flux: Path, number: signal.Signals) -> None:
    script = "from parsl_flux_bulk.instances.flux import own_broker as b; b.STOP_TIMEOUT = 1; b.Broker()"
    with subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": _ROOT}) as user:
        pids = wait_pids(hanging_flux)
        user.send_signal(number)
        assert user.wait(60) == -number
    helpers.wait_gone(pids)


def test_the_guard_of_a_session_whose_leader_nobody_reaps_ends(tmp_path: Path) -> None:
    source = """
    import subprocess, time
    from parsl_flux_bulk.instances.flux.session import SessionGuard
    leader = subprocess.Popen(["sleep", "600"], start_new_session=True)
    guard = SessionGuard(leader.pid, 1000)
    print(leader.pid, flush=True)
    time.sleep(600)
    """
    before = set(helpers.own_processes())
    with helpers.script(source, tmp_path) as user:
        assert user.stdout is not None
        leader = int(user.stdout.readline())
        user.kill()
        os.kill(leader, signal.SIGKILL)
        helpers.wait_gone(set(helpers.own_processes()) - before)


_ROOT = str(Path(own_broker.__file__).parents[3])


@pytest.mark.flux
def test_a_frozen_broker_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_broker, "STOP_TIMEOUT", 1.0)
    before = _brokers()
    instance = FluxInstance.own()
    instance.start()
    assert instance.uri is not None
    directory = Path(instance.uri.removeprefix("local://")).parent
    (pid,) = _brokers() - before
    os.kill(pid, signal.SIGSTOP)
    instance.close()
    helpers.wait_gone([pid])
    assert not directory.exists()


@pytest.mark.flux
def test_attaching_to_a_frozen_broker_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flux_instance, "ANSWER_TIMEOUT", 1.0)
    with helpers.flux_instance() as uri:
        pid = int(helpers.flux(uri, "getattr", "broker.pid"))
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(InstanceUnavailable, match=f"at {uri} did not answer within 1 s"):
                FluxInstance.attach(uri).start()
        finally:
            os.kill(pid, signal.SIGCONT)


def _brokers() -> set[int]:
    """The brokers that this process has started; other tests share an instance."""
    return {
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _is_broker(entry, str(os.getpid()))
    }


def _is_broker(entry: Path, parent: str) -> bool:
    try:
        name, _, rest = (entry / "stat").read_text().rpartition(")")
    except OSError:
        return False
    return "flux-broker" in name and rest.split()[1] == parent
