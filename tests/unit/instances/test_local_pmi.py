"""PMI-1 of the embedded instance, line by line."""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Iterator

import pytest

from parsl_flux_bulk.instances.local.pmi import PmiServer

BOUND = 60.0


class Job:
    """Two tasks of a job, here in one thread with their server."""

    def __init__(self) -> None:
        self.aborted: list[tuple[int, int]] = []
        self.server = PmiServer("space", 2, lambda rank, code: self.aborted.append((rank, code)))
        self.selector = selectors.DefaultSelector()
        self.tasks: list[socket.socket] = []
        for rank in range(2):
            descriptor, variables = self.server.open(rank)
            variables.pop(b"FLUX_PMI_LIBRARY_PATH", None)  # where Flux is installed
            assert variables == {b"PMI_FD": b"3", b"PMI_RANK": b"%d" % rank, b"PMI_SIZE": b"2"}
            self.tasks.append(socket.socket(fileno=os.dup(descriptor)))
            self.tasks[-1].settimeout(BOUND)
        self.server.watch(self.selector)

    def send(self, rank: int, text: str) -> None:
        self.tasks[rank].sendall(text.encode())
        for key, _ in self.selector.select(BOUND):
            key.data()

    def receive(self, rank: int) -> str:
        return self.tasks[rank].recv(4096).decode()

    def ask(self, rank: int, line: str) -> str:
        self.send(rank, line + "\n")
        return self.receive(rank)


@pytest.fixture
def job() -> Iterator[Job]:
    job = Job()
    yield job
    job.server.close()
    job.selector.close()
    for task in job.tasks:
        task.close()


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        (
            "cmd=init pmi_version=1 pmi_subversion=1",
            "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0",
        ),
        (
            "cmd=init pmi_version=2 pmi_subversion=0",
            "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=-1",
        ),
        ("cmd=get_maxes", "cmd=maxes kvsname_max=64 keylen_max=64 vallen_max=1024 rc=0"),
        ("cmd=get_appnum", "cmd=appnum appnum=0 rc=0"),
        ("cmd=get_universe_size", "cmd=universe_size size=2 rc=0"),
        ("cmd=get_my_kvsname", "cmd=my_kvsname kvsname=space rc=0"),
        ("cmd=get kvsname=space key=no", "cmd=get_result rc=-1 msg=key_not_found"),
        ("cmd=get kvsname=other key=PMI_process_mapping", "cmd=get_result rc=-1 msg=key_not_found"),
        ("cmd=put kvsname=other key=a value=b", "cmd=put_result rc=-1 msg=invalid"),
        (f"cmd=put kvsname=space key=a value={'x' * 1025}", "cmd=put_result rc=-1 msg=invalid"),
        ("cmd=finalize", "cmd=finalize_ack rc=0"),
        ("mcmd=spawn\nnprocs=2\nexecname=x\nendcmd", "cmd=spawn_result rc=-1 errmsg=not_supported"),
        ("cmd=new_idea", "cmd=new_idea_result rc=-1 msg=unknown_command"),
    ],
)
def test_one_command(job: Job, line: str, reply: str) -> None:
    assert job.ask(0, line) == reply + "\n"


def test_what_one_task_puts_the_other_gets_after_the_barrier(job: Job) -> None:
    assert job.ask(0, "cmd=put kvsname=space key=card value=port#1 host$two words") == (
        "cmd=put_result rc=0 msg=success\n"
    )
    job.send(0, "cmd=barrier_in\n")
    job.send(1, "cmd=barrier_in\n")
    assert [job.receive(rank) for rank in range(2)] == ["cmd=barrier_out rc=0\n"] * 2
    assert job.ask(1, "cmd=get kvsname=space key=card") == (
        "cmd=get_result rc=0 msg=success value=port#1 host$two words\n"
    )


def test_a_barrier_waits_for_all(job: Job) -> None:
    job.send(0, "cmd=barrier_in\n")
    job.send(0, "cmd=barrier_in\n")  # again: still one task
    job.tasks[0].setblocking(False)
    with pytest.raises(BlockingIOError):
        job.receive(0)


def test_lines_that_come_in_pieces(job: Job) -> None:
    job.send(0, "cmd=get_app")
    assert job.ask(0, "num") == "cmd=appnum appnum=0 rc=0\n"


@pytest.mark.parametrize(
    ("line", "code"), [("cmd=abort exitcode=9", 9), ("cmd=abort", 1), ("cmd=abort exitcode=x", 1)]
)
def test_abort(job: Job, line: str, code: int) -> None:
    job.send(1, line + "\n")
    assert job.aborted == [(1, code)]


def test_a_line_without_end_is_cut_off(job: Job) -> None:
    for _ in range(2):
        job.send(0, "x" * 40_000)
    assert job.receive(0) == ""  # closed
