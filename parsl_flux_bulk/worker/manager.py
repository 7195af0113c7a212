"""A node of a worker job: relays between the executor's channel and forked, pinned workers.

::

    channel ─ TASK ──> Slot ─ packets ──> Child (one call at a time)
            <─ OUTCOME ── gathered <── pipe ──┘

One process with one thread, which imports once what its children need, and forks a child when a slot gets
its first task. It runs none of the user's code, so that it is always fit to fork a successor. It decides
nothing: the executor says which slot runs what, and the pool says exactly what became of it. Of a child that
died, what it had brought back is passed on; the task in its cell was running, and is blamed; everything
else that it was given has not started, and goes back.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import resource
import signal
import sys
import time
from functools import partial

from parsl_flux_bulk.protocol import frames, serialize
from parsl_flux_bulk.worker import affinity, channel, handshake
from parsl_flux_bulk.worker.event_loop import EventLoop
from parsl_flux_bulk.worker.forkserver import Ended, Forkserver
from parsl_flux_bulk.worker.slot import Frame, Slot, function_frame, task_frame
from parsl_flux_bulk.worker.stderr_relay import StderrRelay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

GATHER_LIMIT = 1 << 25
"""Bytes of outcomes that one message may gather before more is read."""

END_GRACE = 0.05
"""Seconds that idle children have to end by themselves when the pool does."""

KILL_BOUND = 1.0
"""Seconds to wait for children that were killed."""

LIMIT_GRACE = 5.0
"""Seconds that a child has to end by itself after its last task."""

HEAVY = 1 << 20
"""Bytes of waiting tasks from which on it is worth a child's time to drop its copy of them."""

FALSE_STARTS = 3
"""Children that may end, one after the other, before they have even begun."""


class ManagerError(Exception):
    """The pool cannot go on; the text is for people."""


def main() -> int:
    """Serve the executor until it retires us or is gone; return the exit status."""
    environ = dict(os.environ)
    shares = affinity.bindings(environ)
    link = channel.connect(environ)
    link.send(handshake.hello(environ, len(shares)))
    handshake.forget_environment()
    handshake.close_stdin()
    os.environ["PARSL_WORKER_COUNT"] = str(len(shares))
    faulthandler.enable()  # for the children, who inherit it
    allow_descriptors(len(shares))
    manager = Manager(link, shares)
    try:
        return manager.run()
    except (ManagerError, frames.FrameError) as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    finally:
        manager.close()


class Manager:
    """The event loop, and what each kind of message means.

    Parameters
    ----------
    link
        The channel, on which HELLO was sent.
    shares
        One a slot.
    """

    def __init__(self, link: channel.Channel, shares: list[affinity.Binding]) -> None:
        self._link = link
        self._functions: dict[bytes, Frame] = {}
        self._slots = [Slot(number, self._functions) for number in range(len(shares))]
        self._forkserver = Forkserver(shares)
        self._limit: int | None = None
        self._out: list[bytes] = []
        self._out_size = 0
        self._to_start: list[Slot] = []
        self._false_starts = 0
        self._last_words: dict[Slot, float] = {}
        self._retired = self._closing = False
        self._signal = 0
        self._loop = EventLoop()
        self._stderr = StderrRelay(self._loop)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        self._loop.watch(self._forkserver.wake, self._on_ends)
        self._loop.watch(link.fileno(), self._receive)

    # -- the loop -------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until RETIRE; return the exit status."""
        while not self._retired and not self._signal:
            self._loop.turn(self._timeout())
            if self._link.timeout() == 0:
                self._receive()  # nothing came for so long that the channel wants to know why
            if self._to_start:
                slots, self._to_start = self._to_start, []
                self._start(slots)
            if self._last_words:
                self._end_overdue()
            self._send()
        return 0

    def close(self) -> None:
        """End all children, and what they have started, within `END_GRACE` and a little."""
        self._closing = True
        for slot in self._slots:
            slot.hang_up()
        self._forkserver.wait(END_GRACE, self._bury_all)
        self._forkserver.kill_all()
        self._forkserver.wait(KILL_BOUND, self._bury_all)
        self._link.close()
        if self._signal:
            signal.signal(self._signal, signal.SIG_DFL)
            os.kill(os.getpid(), self._signal)

    def _timeout(self) -> float | None:
        own = self._link.timeout()
        if self._last_words:
            left = max(0.0, min(self._last_words.values()) - time.monotonic())
            return left if own is None else min(left, own)
        return own

    def _on_signal(self, number: int, _: object) -> None:
        self._signal = number

    def _tell(self, frames: bytes) -> None:
        if self._closing:
            return
        self._out.append(frames)
        self._out_size += len(frames)
        if self._out_size > GATHER_LIMIT:
            self._send()

    def _send(self) -> None:
        out = self._out
        if out:
            body = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            self._out_size = 0
            self._link.send(body)

    # -- what the executor says -----------------------------------------------------------------

    def _receive(self) -> None:
        slots = self._slots
        for message in self._link.receive():
            fed = set()
            for kind, number, id, frame in frames.split(message):
                if kind == frames.TASK:
                    slots[number].waiting.append(task_frame(id, frame))
                    fed.add(number)
                elif kind == frames.FUNCTION:
                    self._learn(frame)
                elif kind == frames.FORGET:
                    self._forget(frame)
                elif kind == frames.RECALL:
                    self._recall(slots[number], id)
                elif kind == frames.KILL:
                    self._kill(slots[number], id)
                elif kind == frames.RETIRE:
                    self._retired = True
                elif kind == frames.SETUP:
                    self._set_up(frames.decode_json(frame[frames.HEADER_SIZE :]))
                else:
                    raise ManagerError(f"the executor sent a frame of unknown kind {kind}")
            for number in fed:
                self._give(slots[number])

    def _set_up(self, setup: dict[str, Any]) -> None:
        handshake.set_up(setup)
        self._limit = setup.get("tasks_per_worker")

    def _learn(self, frame: memoryview) -> None:
        # Children import what their tasks need; this one that most functions need is better imported once.
        if frame[frames.HEADER_SIZE : frames.HEADER_SIZE + 1] == serialize.DILL:
            preload("dill")
        function = function_frame(frames.FUNCTION, frame)
        self._functions[function.function_id] = function

    def _forget(self, frame: memoryview) -> None:
        forget = function_frame(frames.FORGET, frame)
        self._functions.pop(forget.function_id, None)
        for slot in self._slots:
            slot.forget(forget.function_id, forget)

    def _recall(self, slot: Slot, task_id: int) -> None:
        removed = slot.remove(task_id)
        if not task_id or (not removed and task_id in slot.given):
            slot.take_back()
            removed += slot.remove(task_id)
        self._return(slot, removed)
        self._give(slot)

    def _kill(self, slot: Slot, task_id: int) -> None:
        # What it has not taken goes back first: then nothing can start between our look and its end.
        slot.take_back()
        removed = slot.remove(task_id) if task_id else []
        self._return(slot, removed)
        slot.ending = True  # so that reading what it brought back gives it nothing
        self._read_outcomes(slot)
        if slot.pid and not removed and (not task_id or task_id in slot.given):
            self._forkserver.kill(slot.pid)
        else:
            slot.ending = False
            self._give(slot)

    def _return(self, slot: Slot, task_ids: list[int]) -> None:
        for task_id in task_ids:
            self._tell(frames.encode(frames.RETURNED, slot.number, task_id))

    # -- children -------------------------------------------------------------------------------

    def _give(self, slot: Slot) -> None:
        if not slot.pid:
            if slot.waiting and slot not in self._to_start:
                # Not now: a child must not keep the message alive that we are in the middle of.
                self._to_start.append(slot)
            return
        slot.give()
        fd = slot.socket_fileno()
        if slot.full and not self._loop.watches(fd):
            self._loop.watch(fd, lambda: self._has_room(slot, fd), writable=True)

    def _has_room(self, slot: Slot, fd: int) -> None:
        self._loop.unwatch(fd)
        slot.full = False
        self._give(slot)

    def _start(self, slots: list[Slot]) -> None:
        heavy = sum(slot.waiting_size() for slot in self._slots) > HEAVY
        numbers = [slot.number for slot in slots]
        try:
            born = self._forkserver.bear(numbers, self._limit, self._drop_waiting if heavy else None)
        except OSError as error:
            raise ManagerError(f"cannot fork a worker: {error}") from error
        for slot, newborn in zip(slots, born, strict=True):
            slot.attach(newborn.pid, newborn.pair, newborn.outcomes, self._limit)
            self._loop.watch(newborn.outcomes, partial(self._on_outcomes, slot))
            self._stderr.attach(slot.number, newborn.stderr)
            self._give(slot)

    def _drop_waiting(self) -> None:
        """In a child: what waits for others is not to be held twice."""
        for slot in self._slots:
            slot.waiting.clear()

    def _on_outcomes(self, slot: Slot) -> None:
        self._read_outcomes(slot)

    def _read_outcomes(self, slot: Slot) -> bool:
        """Pass on what a child has brought back; return whether there may be more."""
        whole = slot.read() if slot.pid else None
        if whole is None:
            if slot.closed:
                self._loop.unwatch(slot.outcomes)
            return False
        if whole:
            self._tell(whole)
            if slot.waiting:
                self._give(slot)
            if self._limit is not None and slot.done >= self._limit:
                self._last_words[slot] = time.monotonic() + LIMIT_GRACE
        return True

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for slot, deadline in list(self._last_words.items()):
            if now >= deadline:
                del self._last_words[slot]
                self._forkserver.kill(slot.pid)

    def _on_ends(self) -> None:
        self._bury_all(self._forkserver.ended())

    def _bury_all(self, ended: list[Ended]) -> None:
        by_pid = {slot.pid: slot for slot in self._slots if slot.pid}
        for end in ended:
            if end.pid in by_pid:
                self._bury(by_pid[end.pid], end)

    def _bury(self, slot: Slot, end: Ended) -> None:
        """Say what became of a child's tasks, all of them."""
        on_purpose, slot.ending = slot.ending, True
        while self._read_outcomes(slot):
            pass
        running, started = self._forkserver.cells.read(slot.number)
        if running not in slot.given:
            running = 0
        stderr = self._stderr.detach(slot.number)
        self._last_words.pop(slot, None)
        if self._limit is None or slot.done < self._limit:
            about = {"exit_code": end.exit_code, "signal": end.signal, "stderr": stderr}
            self._tell(frames.encode_json(frames.DIED, slot.number, running, about))
            self._return(slot, [task_id for task_id in slot.given if task_id != running])
            self._return(slot, slot.remove(0))
            self._false_starts = 0 if started or on_purpose else self._false_starts + 1
            if self._false_starts >= FALSE_STARTS and not self._closing:
                raise ManagerError(f"{FALSE_STARTS} workers in a row ended before they had begun: {about}")
        for fd in (slot.outcomes, slot.socket_fileno()):
            self._loop.unwatch(fd)
        slot.detach()
        self._give(slot)


def allow_descriptors(slots: int) -> None:
    """Raise the soft limit of open files to what this many children take, if the hard limit lets us."""
    needed = 128 + 8 * slots
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def preload(name: str) -> None:
    """Import a module that children would import one by one; one that is not there is passed over."""
    try:
        importlib.import_module(name)
    except ImportError:
        pass  # whoever needs it says so
