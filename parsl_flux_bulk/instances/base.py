"""The seam between the pipeline and where jobs run.

An *instance* is a place that runs jobs: a Flux instance, or this machine. The pipeline knows
nothing else of it than what is here, and one contract suite (``tests/contract``) runs over every
implementation.

::

    Instance ── connect() ────> Connection    opened in, and used by, one thread: submit, cancel
             └─ completion() ─> Completion    opened in, and used by, one thread: how jobs ended,
                                              and the channel to the workers inside jobs

The channel carries raw bytes both ways between the completion thread and any number of *peers*,
which are processes inside jobs. A peer comes into being with its first message and ends with one
:class:`PeerLost`, however it died. See :mod:`parsl_flux_bulk.worker.channel` for a peer's own end of it.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from parsl_flux_bulk.jobspec.jobspec import DEFAULT_URGENCY, Jobspec
from parsl_flux_bulk.protocol import variables

JobId: TypeAlias = int
"""An instance's own number of a job (RFC 19 in Flux); :meth:`Instance.job_name` writes it as text."""

PeerId: TypeAlias = Hashable
"""Names one connected process of a job for as long as it is connected."""

CHANNEL_VARIABLE = variables.CHANNEL
"""In the environment of every job of an executor, and of no other: its address, unique to it."""


@dataclass(frozen=True, slots=True)
class JobRequest:
    """One job to submit.

    Attributes
    ----------
    jobspec : Jobspec
    urgency : int
        0 to 31 (RFC 30).
    """

    jobspec: Jobspec
    urgency: int = DEFAULT_URGENCY


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a job was not accepted, in the instance's own words."""

    reason: str


class JobStatus(str, enum.Enum):
    """How a job ended; the words are those of Flux's ``result`` (flux-jobs(1))."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    TIMEOUT = "timeout"


class EndCause(str, enum.Enum):
    """What ended a job. The values are types of job exceptions (RFC 21), Flux's or this package's."""

    EXITED = ""
    """Its processes ended by themselves, with any exit status or signal."""
    REFUSED = "submit"
    """The instance did not accept the job."""
    UNSATISFIABLE = "alloc"
    """The instance accepted the job, but can never give it the resources that it requests."""
    CANCELED = "cancel"
    TIMEOUT = "timeout"
    EXECUTION = "exec"
    """The job could not be started, or lost a node."""
    NO_BLOCK = "no-block"
    """No block has the time left that the job requests, as a fresh one would; the job has not started."""
    BLOCK_LOST = "block-lost"
    """The block that the job was in, or was to go to, ended or was lost."""
    INSTANCE_LOST = "instance-lost"
    OTHER = "other"
    """An exception of a type that is not in this list, such as a plugin's."""


_CAUSES = {cause.value: cause for cause in EndCause}


@dataclass(frozen=True, slots=True)
class JobResult:
    """How one job ended.

    Attributes
    ----------
    status : JobStatus
    exit_code : int or None
        Largest exit status of its tasks; None if a signal ended it, or it never ran.
    signal : int or None
        Number of the signal that ended it.
    exception : str
        Type of the fatal job exception (RFC 21), such as ``cancel``, ``alloc``, ``exec``; or "".
    note : str
        The exception's note, or another sentence of the instance about the end; or "".
    started : bool
        Whether it got resources and began to run.
    stderr : str
        For a failed job: the last lines of the standard error that the instance kept; or "".
    """

    status: JobStatus
    exit_code: int | None = None
    signal: int | None = None
    exception: str = ""
    note: str = ""
    started: bool = True
    stderr: str = ""

    @property
    def ok(self) -> bool:
        """Whether the job ended with exit status 0."""
        return self.status is JobStatus.COMPLETED

    @property
    def cause(self) -> EndCause:
        """What ended the job, by its exception."""
        return _CAUSES.get(self.exception, EndCause.OTHER)

    @property
    def refused(self) -> bool:
        """Whether the instance will never run the job: not accepted, or its request cannot be satisfied."""
        return not self.started and self.cause in (EndCause.REFUSED, EndCause.UNSATISFIABLE)


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A watched job ended. Comes once for each :meth:`Completion.watch`."""

    job_id: JobId
    result: JobResult


@dataclass(frozen=True, slots=True)
class PeerMessage:
    """A message from a process inside a job."""

    peer: PeerId
    body: bytes


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A peer's connection closed: it ended, was killed, or its node died."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an instance has, whether free or busy.

    Attributes
    ----------
    nodes, cores, gpus : int
        Totals over all nodes that are up.
    """

    nodes: int
    cores: int
    gpus: int


@dataclass(frozen=True, slots=True)
class CapacityChanged:
    """What the instance has is different from now on: blocks came or went."""

    capacity: Capacity


Event: TypeAlias = JobEnded | PeerMessage | PeerLost | CapacityChanged


@dataclass(frozen=True, slots=True)
class ChannelAddress:
    """How a process inside a job reaches the executor: environment variables for its jobspec."""

    environment: dict[str, str] = field(default_factory=dict)


class Connection(Protocol):
    """One thread's way to submit and cancel. Every method raises InstanceLost if it is gone."""

    def submit(self, requests: Sequence[JobRequest]) -> list[JobId | Refusal]:
        """Submit all, every request in flight at once.

        Returns
        -------
        list
            In the order of `requests`: the job's id, or why it was refused. Never raises for
            one bad request.
        """

    def cancel(self, job_ids: Sequence[JobId], reason: str) -> None:
        """Cancel jobs. One that has ended already, or was never known, is passed over."""

    def output(self, job_id: JobId) -> tuple[str, str]:
        """Return the standard output and error that the instance kept of a job.

        Both are empty if the jobspec sends them to files, or the instance no longer has them.
        """

    def capacity(self) -> Capacity:
        """Say what resources there are."""

    def close(self) -> None:
        """Close; may be called twice."""


class Completion(Protocol):
    """The completion thread's end: which of our jobs ended, and messages from their processes.

    All but `wake` belong to one thread. Every method raises InstanceLost if the instance is gone.
    """

    def watch(self, job_id: JobId) -> None:
        """Report the end of this job, also if it has ended already."""

    def poll(self, timeout: float | None) -> list[Event]:
        """Wait for events and return those that are there.

        Parameters
        ----------
        timeout : float or None
            Seconds; None waits until an event or a wake-up, 0 does not wait.

        Returns
        -------
        list of Event
            Empty after a wake-up or a time-out.
        """

    def send(self, peer: PeerId, body: bytes) -> None:
        """Send a message to a peer; without effect after `close`.

        A peer that is gone is passed over, with its instance or alone: `poll` tells of both.
        """

    def channel(self) -> ChannelAddress:
        """How processes inside jobs reach this channel; it is open from now on."""

    def wake(self) -> None:
        """Make `poll` return, from any thread. Wake-ups coalesce."""

    def close(self) -> None:
        """Close; may be called twice."""


class Instance(Protocol):
    """A place where jobs run."""

    @property
    def description(self) -> str:
        """One line for people: what it is and where."""

    def start(self) -> None:
        """Attach or start.

        Raises
        ------
        InstanceUnavailable
            Says what is missing and what to do.
        """

    def connect(self) -> Connection:
        """Open a connection, in the thread that will use it."""

    def completion(self) -> Completion:
        """Open a completion, in the thread that will use it."""

    def job_name(self, job_id: JobId) -> str:
        """The id as people write it."""

    def close(self) -> None:
        """End what `start` began; bounded in time; may be called twice, or before `start`."""
