"""States of tasks, jobs, peers and workers, and the transitions between them.

:meth:`.Stateful.move_to` raises :class:`.IllegalTransition` for a transition that is not drawn here.

Task::

    PENDING <────> ASSIGNED ──> DONE        ASSIGNED -> PENDING: a worker returned it
       └─────────────────────────^          PENDING -> DONE: canceled, refused, or its job ran it unseen

Task job::

    HELD ──> SUBMITTED ──> CANCELING ──> ENDED ──> PARKED
                 └─────────────────────────^

Worker job (every state but ENDED also leads to ENDED, every state but CANCELING to CANCELING)::

                first peer          cores needed elsewhere        last task ended
    STARTING ──────────────> SERVING <──────────────> DRAINING ──────────────────> STOPPING
                                │     not needed any more │                          ^  ^
                                │                         v                          │  │
                                ├──────────────────> RETIRING ───────────────────────┘  │
                                └─────────────────── idle, or all peers lost ───────────┘

Peer::

    CONNECTED ──> JOB_ENDED ──> LOST
        │             └───────> FINISHED    a rank sent its outcome
        └──> LOST, FINISHED

Worker::

            serve           assign tasks
    OFFLINE ─────> IDLE <─────────────────> BUSY ──withdraw──> DRAINING ──> OFFLINE
       ^────────────┘      last task ended    ^──────serve────────┘
          withdraw
"""

from __future__ import annotations

from parsl_flux_bulk.protocol.states import State


class TaskState(State):
    """Where a task is."""

    PENDING = "pending", "assigned", "done"
    """Waits in the scheduler or in its own job; certainly not started, as far as peers reported."""
    ASSIGNED = "assigned", "pending", "done"
    """Sent to a worker, or to a rank of its job: it runs, or may start at any moment."""
    DONE = ("done",)
    """Ended, with an outcome."""


class TaskJobState(State):
    """Where a task job is."""

    HELD = "held", "submitted"
    """Not submitted: there is no room for it yet."""
    SUBMITTED = "submitted", "canceling", "ended"
    CANCELING = "canceling", "ended"
    ENDED = "ended", "parked"
    PARKED = ("parked",)
    """Ended without a start: no block has time for it. Its task waits for other blocks."""


class WorkerJobState(State):
    """Where a worker job is."""

    STARTING = "starting", "serving", "canceling", "ended"
    """Submitted; no manager has connected."""
    SERVING = "serving", "draining", "retiring", "stopping", "canceling", "ended"
    DRAINING = "draining", "serving", "retiring", "stopping", "canceling", "ended"
    """Its workers get no more tasks, because others need its cores; it can return to SERVING."""
    RETIRING = "retiring", "stopping", "canceling", "ended"
    """As DRAINING, for good: its block ends, or its workers cannot start."""
    STOPPING = "stopping", "canceling", "ended"
    """Its managers were told to exit, or all are lost; canceled if it does not end soon."""
    CANCELING = "canceling", "ended"
    ENDED = ("ended",)


class PeerState(State):
    """Where a manager, or a rank of a task job, is."""

    CONNECTED = "connected", "job-ended", "lost", "finished"
    JOB_ENDED = "job-ended", "lost", "finished"
    """Its job ended; outcomes that it sent before may still arrive."""
    LOST = ("lost",)
    """Its connection closed."""
    FINISHED = ("finished",)
    """A rank that sent its outcome; whether it is connected does not matter any more."""


class WorkerState(State):
    """Where a worker is."""

    OFFLINE = "offline", "idle"
    """Gets no tasks. Its queue may hold tasks of a lost peer, until those are ended."""
    IDLE = "idle", "busy", "offline"
    BUSY = "busy", "idle", "draining"
    DRAINING = "draining", "busy", "offline"
    """Has tasks, and gets no more."""
