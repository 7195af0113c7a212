"""The seam between the pipeline and where jobs run.

An *instance* runs jobs: a Flux instance, or this machine. The pipeline uses only the interface in this
module, and one contract suite (``tests/contract``) tests every implementation.

::

    Instance ── connect() ────> Connection    submit, cancel
             └─ completion() ─> Completion    ended jobs, and the channel to processes inside jobs

Connection and Completion are each opened in, and used by, one thread.

The channel carries bytes in both directions between the completion thread and any number of *peers*, which
are processes inside jobs. A peer exists from its first message to one :class:`PeerLost`, however the process
ends. :mod:`parsl_flux_bulk.worker.channel` is the peer's end of the channel.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

from parsl_flux_bulk.jobspec.jobspec import DEFAULT_URGENCY, Jobspec

JobId: TypeAlias = int
"""A number that the instance issued (RFC 19 in Flux); :meth:`Instance.job_name` formats it."""

PeerId: TypeAlias = Hashable
"""Identifies one process of a job while it is connected."""

FLUX_IN_FLIGHT = 8
"""See :attr:`Connection.in_flight`. Fewer would not keep a broker busy."""

EMBEDDED_IN_FLIGHT = 256
"""The embedded instance knows no wait for any job; see :attr:`Connection.in_flight`."""


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


Position: TypeAlias = tuple[int, int]
"""How much of a job's output has been read; the instance knows of what."""

START: Position = (0, 0)


@dataclass(frozen=True, slots=True)
class Output:
    """A part of a job's output; false if it is empty.

    Attributes
    ----------
    stdout, stderr : str
        Bytes that are not UTF-8 are surrogate escapes, since a part may end within a character.
    end : Position
        Where the next part starts.
    """

    stdout: str
    stderr: str
    end: Position

    def __bool__(self) -> bool:
        return bool(self.stdout or self.stderr)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the instance did not accept a job."""

    reason: str


class JobStatus(str, enum.Enum):
    """How a job ended, in the terms of Flux's ``result`` (flux-jobs(1))."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    TIMEOUT = "timeout"


class EndCause(str, enum.Enum):
    """What ended a job. The values are types of job exceptions (RFC 21), Flux's or this package's."""

    EXITED = ""
    """The job's processes ended by themselves, with any exit status or signal."""
    REFUSED = "submit"
    """The instance did not accept the job."""
    UNSATISFIABLE = "alloc"
    """The instance accepted the job, but can never give it the resources that it requests."""
    CANCELED = "cancel"
    TIMEOUT = "timeout"
    EXECUTION = "exec"
    """The job could not be started, or lost a node."""
    NO_BLOCK = "no-block"
    """Only a new block would have enough time left for the job; the job has not started."""
    BLOCK_LOST = "block-lost"
    """The job's block ended or was lost, or there was no block to place the job in."""
    INSTANCE_LOST = "instance-lost"
    OTHER = "other"
    """An exception of any other type, such as a plugin's."""


_CAUSES = {cause.value: cause for cause in EndCause}


@dataclass(frozen=True, slots=True)
class JobResult:
    """How one job ended.

    Attributes
    ----------
    status : JobStatus
    exit_code : int or None
        Largest exit status of the job's tasks; None if a signal ended the job, or it never started.
    signal : int or None
        Number of the signal that ended the job.
    exception : str
        Type of the fatal job exception (RFC 21), such as ``cancel``, ``alloc``, ``exec``; or "".
    note : str
        The exception's note, or another message of the instance about the end; or "".
    started : bool
        Whether the job got resources and its start began.
    stderr : str
        Last lines of a failed job's standard error, if the instance kept it; or "".
    t_start, t_end : float or None
        Seconds since the epoch, by the instance's clock: when the job's processes were started, and when the
        last of them had ended; None if that is not known, as in Flux without
        :attr:`RecordsTimes.record_times`.
    """

    status: JobStatus
    exit_code: int | None = None
    signal: int | None = None
    exception: str = ""
    note: str = ""
    started: bool = True
    stderr: str = ""
    t_start: float | None = field(default=None, compare=False)
    t_end: float | None = field(default=None, compare=False)

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
        """Whether the instance will never run the job: not accepted, or not satisfiable."""
        return not self.started and self.cause in (EndCause.REFUSED, EndCause.UNSATISFIABLE)


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A watched job ended; reported once for each :meth:`Completion.watch`."""

    job_id: JobId
    result: JobResult


@dataclass(frozen=True, slots=True)
class PeerMessage:
    """A message from a process inside a job."""

    peer: PeerId
    body: bytes


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A peer's connection closed: the process ended, was killed, or its node failed."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Capacity:
    """An instance's resources, free and busy.

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
    """The instance's resources have changed, because a block joined or ended."""

    capacity: Capacity


@dataclass(frozen=True, slots=True)
class WorkerCores:
    """Cores of one executor's worker jobs.

    Attributes
    ----------
    held : int
        Of those that have resources.
    wanted : dict of JobId to int
        Of each that waits for resources, and starts wherever so many cores are free.
    """

    held: int = 0
    wanted: dict[JobId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """What an instance had at one moment, and what of it was free: the answer to :meth:`Completion.survey`.

    Attributes
    ----------
    capacity : Capacity
    free : tuple of (int, int)
        Free cores and GPUs of each node that is up and has any.
    waiting : dict of JobId to str
        Jobs of this user, whichever program submitted them, that wait for resources; with the reason in the
        instance's words, if it gives one, or "".
    down : int
        Nodes that are down or drained.
    scope : int
        High bits of the ids of the instance's jobs; see :mod:`.instances.events`.
    executors : dict of str to WorkerCores
        What the worker jobs of this user's executors hold and wait for, by mark
        (:mod:`.worker_job_name`); those of the executor that asks included.
    """

    capacity: Capacity
    free: tuple[tuple[int, int], ...]
    waiting: dict[JobId, str]
    down: int = 0
    scope: int = 0
    executors: dict[str, WorkerCores] = field(default_factory=dict)


Event: TypeAlias = Usage | JobEnded | PeerMessage | PeerLost | CapacityChanged


@dataclass(frozen=True, slots=True)
class ChannelAddress:
    """How a process inside a job reaches the executor: environment variables for the jobspec."""

    environment: dict[str, str] = field(default_factory=dict)


class Connection(Protocol):
    """Submits and cancels jobs, for one thread. Every method raises InstanceLost if the instance is lost."""

    @property
    def in_flight(self) -> int:
        """Jobs to submit together, at most.

        In Flux, a job must be watched, by id, before it ends: until then, a process that waits for any job
        would receive its end.
        """

    def submit(self, requests: Sequence[JobRequest]) -> list[JobId | Refusal]:
        """Submit jobs, with all requests in flight at once.

        Returns
        -------
        list
            In the order of `requests`: the job's id, or why the instance refused the job. A bad
            request raises nothing.
        """

    def cancel(self, job_ids: Sequence[JobId], reason: str) -> None:
        """Cancel jobs; without effect for a job that has ended or is not known."""

    def output(self, job_id: JobId, start: Position) -> Output:
        """Return the next part of a job's output, as far as the instance kept it: some MB at most.

        The part is empty if the job has printed nothing more (yet), or the jobspec redirects the output to
        files.

        Raises
        ------
        OutputUnavailable
            The instance does not know the job (any more), or has dropped its output; says what to do.
        """

    def capacity(self) -> Capacity:
        """Return the instance's resources."""

    def close(self) -> None:
        """Close; may be called twice."""


class Completion(Protocol):
    """Reports ended jobs and messages of their processes, to the completion thread.

    Only `wake` and `send_from_any_thread` may be called by other threads. Every method raises InstanceLost if
    the instance is lost.
    """

    def watch(self, job_id: JobId) -> None:
        """Report the end of this job, also if the job has ended already."""

    def poll(self, timeout: float | None) -> list[Event]:
        """Wait for events and return them.

        Parameters
        ----------
        timeout : float or None
            Seconds; None waits without limit, 0 does not wait.

        Returns
        -------
        list of Event
            Empty after a wake-up or the timeout.
        """

    def send(self, peer: PeerId, body: bytes) -> None:
        """Send a message to a peer; without effect after `close`, and for a lost peer."""

    def send_from_any_thread(self, peer: PeerId, body: bytes, slot: int | None = None) -> bool:
        """Send a message to a peer, or with a slot a packet to its worker itself; return whether it was sent.

        False where only the completion thread can send, or the worker has no lane.
        """

    def channel(self) -> ChannelAddress:
        """Open the channel, if it is not open; return how processes inside jobs reach it."""

    def survey(self) -> None:
        """Report a `Usage` soon; do nothing where nobody else can use the instance."""

    def wake(self) -> None:
        """Make `poll` return, from any thread. Wake-ups coalesce."""

    def close(self) -> None:
        """Close; may be called twice."""


@runtime_checkable
class KnowsNodes(Protocol):
    """An instance that knows on which node its jobs are."""

    def job_node(self, job_id: JobId) -> str:
        """Return the host that a job is on; "" if that is not known."""


@runtime_checkable
class RecordsTimes(Protocol):
    """An instance that must be asked, before :meth:`Instance.completion`, to report the times of jobs."""

    record_times: bool


@runtime_checkable
class StartsInSteps(Protocol):
    """An instance that can begin to start, while the caller does something else before `start`."""

    def launch(self) -> None:
        """Begin to start; raises as :meth:`Instance.start`."""


class Instance(Protocol):
    """Runs jobs."""

    @property
    def description(self) -> str:
        """One line that says what the instance is, and where."""

    def start(self) -> None:
        """Attach to the instance, or start it.

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
        """Return the id in the form that the instance's commands use."""

    def close(self) -> None:
        """End what `start` started; bounded in time; may be called twice, or before `start`."""
