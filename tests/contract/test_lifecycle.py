"""Starting and ending instances, in and out of order, and how nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import helpers
import pytest
from seam import Seam, jobspec, shell

from parsl_flux_bulk.errors import InstanceError
from parsl_flux_bulk.instances.base import Instance

NewInstance = Callable[[], Instance]


def test_close_before_start(new_instance: NewInstance) -> None:
    instance = new_instance()
    instance.close()
    instance.close()
    assert instance.description


def test_close_twice_after_which_everything_raises(new_instance: NewInstance) -> None:
    instance = new_instance()
    instance.start()
    connection, completion = instance.connect(), instance.completion()
    for _ in range(2):
        connection.close()
        completion.close()
        instance.close()
    with pytest.raises(InstanceError):
        completion.poll(0)


def test_a_second_life(new_instance: NewInstance, kind: str) -> None:
    """The leak check sees what the first one leaves."""
    for _ in range(2):
        instance = new_instance()
        instance.start()
        seam = Seam(instance, instance.connect(), instance.completion(), kind)
        assert seam.run_one(jobspec(["true"]))[1].ok
        seam.completion.close()
        seam.connection.close()
        instance.close()


def test_closing_an_instance_of_our_own_ends_its_jobs(
    new_instance: NewInstance, kind: str, tmp_path: Path
) -> None:
    if kind == "flux-attached":
        pytest.skip("not ours to end")
    instance = new_instance()
    instance.start()
    seam = Seam(instance, instance.connect(), instance.completion(), kind)
    seam.submit(shell("echo $$ > pid; exec sleep 600", cwd=tmp_path))
    pid = int(seam.wait_file(tmp_path / "pid"))
    seam.completion.close()
    seam.connection.close()
    instance.close()
    helpers.wait_gone([pid])


def test_a_killed_user_leaves_nothing_behind(
    kind: str, new_instance: NewInstance, seam: Seam, tmp_path: Path
) -> None:
    if kind == "federation":
        pytest.skip("that is for its members to see to")
    made = {
        "local": "from parsl_flux_bulk.instances.local import LocalInstance; instance = LocalInstance()",
        "flux-attached": "from parsl_flux_bulk.instances.flux import FluxInstance; "
        f"instance = FluxInstance.attach({getattr(new_instance(), 'uri', None)!r})",
        "flux-own": "from parsl_flux_bulk.instances.flux import FluxInstance; instance = FluxInstance.own()",
        "relay-local": "from relay_service import BlockInstance; instance = BlockInstance()",
        "relay-flux": "from relay_service import BlockInstance; instance = BlockInstance(flux=True)",
        "packed": "from relay_service import NodeJobInstance; instance = NodeJobInstance()",
    }[kind]
    spec = shell("echo $$ > pid; sleep 600 & exec sleep 600", cwd=tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    others = seam.submit(shell(f"cat {fifo}"))
    source = f"""
{made}
from parsl_flux_bulk.instances.base import JobRequest
from parsl_flux_bulk.jobspec import Jobspec
instance.start()
connection = instance.connect()
completion = instance.completion()
completion.channel()
connection.submit([JobRequest(Jobspec({spec.data!r}))])
print("submitted", flush=True)
completion.poll(None)
"""
    with helpers.script(source, tmp_path) as user:
        assert user.stdout is not None
        said = user.stdout.readline()
        assert said == "submitted\n", user.communicate()
        helpers.wait_lines(tmp_path / "pid", 1)
        started = helpers.descendants(user.pid) | {int((tmp_path / "pid").read_text())}
        user.kill()
        helpers.wait_gone(started, 60)
    fifo.write_text("")  # returns if the job of the other user still reads
    assert seam.wait(others)[0].ok
