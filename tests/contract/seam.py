"""What the contract tests have in common: making jobspecs, and one instance with its two ends."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from parsl_flux_bulk.instances.base import (
    Completion,
    Connection,
    Event,
    Instance,
    JobEnded,
    JobId,
    JobRequest,
    JobResult,
    PeerId,
    PeerLost,
    PeerMessage,
    Refusal,
)
from parsl_flux_bulk.jobspec import Jobspec

BOUND = 60.0
"""Seconds after which a test has waited too long for any one thing."""


def jobspec(
    command: list[str],
    *,
    tasks: int = 1,
    cores: int = 1,
    gpus: int = 0,
    nodes: int | None = None,
    duration: float = 0,
    cwd: str | os.PathLike[str] = "/tmp",
    environment: Mapping[str, str] | None = None,
    **options: object,
) -> Jobspec:
    """Make a jobspec (RFC 25); `environment` comes on top of this process's, `options` are the shell's."""
    inside = [{"type": "core", "count": cores}] + ([{"type": "gpu", "count": gpus}] if gpus else [])
    resource: dict[str, object] = {"type": "slot", "count": tasks, "label": "task", "with": inside}
    if nodes is not None:
        resource = {"type": "node", "count": nodes, "with": [resource]}
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("FLUX_", "PYTEST_"))}
    system = {
        "duration": duration,
        "cwd": str(cwd),
        "environment": {**ours, **(environment or {})},
        "shell": {"options": {name.replace("_", "-"): value for name, value in options.items()}},
    }
    return Jobspec(
        {
            "version": 1,
            "resources": [resource],
            "tasks": [{"command": command, "slot": "task", "count": {"per_slot": 1}}],
            "attributes": {"system": system},
        }
    )


def shell(script: str, **keywords: object) -> Jobspec:
    """A jobspec whose command is a shell script."""
    return jobspec(["sh", "-c", script], **keywords)  # type: ignore[arg-type]


def files(
    stdout: str, stderr: str | None = None, mode: str = "truncate", **more: object
) -> dict[str, object]:
    """The shell option ``output``."""
    streams: dict[str, object] = {"mode": mode, "stdout": {"type": "file", "path": stdout, **more}}
    if stderr is not None:
        streams["stderr"] = {"type": "file", "path": stderr, **more}
    return {"output": streams}


@dataclass
class Seam:
    """An instance with a connection and a completion, all used by the test's own thread."""

    instance: Instance
    connection: Connection
    completion: Completion
    kind: str
    submitted: set[JobId] = field(default_factory=set)
    results: dict[JobId, JobResult] = field(default_factory=dict)
    messages: list[tuple[PeerId, bytes]] = field(default_factory=list)
    lost: list[PeerId] = field(default_factory=list)

    def submit(self, *jobspecs: Jobspec) -> list[JobId]:
        """Submit jobs that are not refused, and watch them."""
        answers = self.connection.submit([JobRequest(jobspec) for jobspec in jobspecs])
        ids = []
        for answer in answers:
            assert not isinstance(answer, Refusal), answer
            self.submitted.add(answer)
            self.completion.watch(answer)
            ids.append(answer)
        return ids

    def run(self, *jobspecs: Jobspec) -> list[JobResult]:
        """Submit jobs and wait for their ends."""
        return self.wait(self.submit(*jobspecs))

    def run_one(self, jobspec: Jobspec) -> tuple[JobId, JobResult]:
        """Submit one job and wait for its end."""
        (job_id,) = self.submit(jobspec)
        return job_id, self.wait([job_id])[0]

    def wait(self, job_ids: Collection[JobId], bound: float = BOUND) -> list[JobResult]:
        """Wait for the ends of jobs."""
        self.pump(lambda: all(job_id in self.results for job_id in job_ids), bound, "the ends of jobs")
        return [self.results[job_id] for job_id in job_ids]

    def pump(self, until: Callable[[], bool], bound: float = BOUND, what: str = "an event") -> None:
        """Take events until `until` holds."""
        deadline = time.monotonic() + bound
        while not until():
            left = deadline - time.monotonic()
            assert left > 0, f"not within {bound} s: {what}; seen {self.results} {self.lost}"
            for event in self.completion.poll(left):
                self.take(event)

    def take(self, event: Event) -> None:
        """Note an event; the same end may not come twice."""
        if isinstance(event, JobEnded):
            assert event.job_id not in self.results, f"job {event.job_id} ended twice"
            self.results[event.job_id] = event.result
        elif isinstance(event, PeerMessage):
            assert event.peer not in self.lost, "a message of a peer that was lost before"
            self.messages.append((event.peer, event.body))
        elif isinstance(event, PeerLost):
            assert event.peer not in self.lost, "a peer was lost twice"
            self.lost.append(event.peer)

    def cancel_outstanding(self, bound: float = 30.0) -> list[JobId]:
        """Wait for the jobs that a test did not wait for, cancel those that do not end; return their ids."""
        left = self.submitted - self.results.keys()
        if not left:
            return []
        # The test may have closed its completion.
        ends = Seam(self.instance, self.connection, self.instance.completion(), self.kind)
        for job_id in left:
            ends.completion.watch(job_id)
        deadline = time.monotonic() + bound
        while left - ends.results.keys() and (seconds := deadline - time.monotonic()) > 0:
            for event in ends.completion.poll(seconds):
                ends.take(event)
        canceled = sorted(left - ends.results.keys())
        if canceled:
            self.connection.cancel(canceled, "left behind by a test")
            ends.wait(canceled)
        ends.completion.close()
        return canceled

    def wait_file(self, path: Path, bound: float = BOUND) -> str:
        """Wait for a job to have written a file, and return what is in it."""
        # Polls, so that an end of the job in the meantime is taken as well.
        deadline = time.monotonic() + bound
        while not (path.exists() and (text := path.read_text())):
            assert time.monotonic() < deadline, f"not within {bound} s: {path}; seen {self.results}"
            for event in self.completion.poll(0.01):
                self.take(event)
        return text


def peer_job(source: str, directory: Path, completion: Completion, **keywords: object) -> Jobspec:
    """A jobspec of a Python process that has the channel open as ``channel``.

    `source` sees ``say(bytes)``, ``hear()`` (the next message, waiting) and ``os``.
    """
    path = directory / "peer.py"
    path.write_text(_PEER + source)
    return jobspec(
        [sys.executable, str(path)],
        environment={
            **completion.channel().environment,
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        },
        **keywords,  # type: ignore[arg-type]
    )


_PEER = """\
import os, signal, sys, time
from parsl_flux_bulk.worker import handshake
from parsl_flux_bulk.worker.channel import ChannelLost

channel = handshake.connect(os.environ)
received = []

def say(body):
    channel.send(body)

def hear():
    while not received:
        channel.wait(30)
        received.extend(channel.receive())
    return received.pop(0)

"""
