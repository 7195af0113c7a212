"""The manager of a node of a worker job: relays tasks and outcomes between the executor and worker processes.

::

    channel ── TASK ───> Slot ── packets ──> WorkerProcess (one task at a time)
            <─ OUTCOME ── Manager <── pipe ──┘

One process with one thread, which imports once what all workers need, and forks a worker when a slot gets its
first task. The manager runs no user code, so it can always fork another worker, and it decides nothing: the
executor assigns tasks to slots, and the manager reports exactly how each one ended. When a worker dies, its
outcomes are sent first, the task recorded as running is blamed, and all its other tasks are returned.

A manager is SERVING, then STOPPING once RETIRE or a signal arrives, then CLOSED, when no more messages are
sent; an error leads from SERVING to CLOSED. Any other
transition raises IllegalTransition. :mod:`.slot` has the
states of workers.
"""

from __future__ import annotations

import importlib
import math
import os
import signal
import sys
import time
from functools import partial

from parsl_flux_bulk.protocol import frames, instance_uri, serialize
from parsl_flux_bulk.protocol.app_failure import AppFailed
from parsl_flux_bulk.protocol.states import State, Stateful
from parsl_flux_bulk.worker import handshake, lifeline, pinning, walltime
from parsl_flux_bulk.worker.event_loop import EventLoop
from parsl_flux_bulk.worker.forkserver import Forkserver, raise_descriptor_limit
from parsl_flux_bulk.worker.packets import Packet, function_packet, task_packet
from parsl_flux_bulk.worker.slot import Slot, Worker, WorkerState
from parsl_flux_bulk.worker.stderr_relay import StderrRelay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from parsl_flux_bulk.worker.channel import Channel

BATCH_LIMIT = 1 << 25
"""Bytes of outcomes in one message at which it is sent before more is read."""

GATHER_TIME = 0.0001
"""Seconds for which outcomes gather while a worker holds many short tasks. Measured with no-ops: ten times
fewer messages, and a tenth less CPU time in all processes together."""

EXIT_TIMEOUT = 0.05
"""Seconds that idle workers have to exit when the manager does, before SIGKILL."""

KILL_TIMEOUT = 1.0
"""Seconds to wait for workers that were killed."""

LIMIT_TIMEOUT = 5.0
"""Seconds that a worker has to exit after its last task, before SIGKILL."""

DROP_WAITING_SIZE = 1 << 20
"""Bytes of waiting tasks above which a new worker frees its copy of them."""

WALLTIME = serialize.WALLTIME[0]

MAX_START_FAILURES = 3
"""Consecutive workers that may end before they have started."""


class ManagerError(Exception):
    """The manager cannot go on; the message is for people."""


class ManagerState(State):
    """State of a manager."""

    SERVING = "serving", "stopping", "closed"
    STOPPING = "stopping", "closed"
    CLOSED = ("closed",)


def main() -> int:
    """Serve the executor until RETIRE, a signal, or the end of the executor; return the exit status."""
    lifeline.die_with_parent(os.getppid())
    environ = dict(os.environ)
    handshake.open_output(environ)
    bindings = pinning.bindings(environ)
    channel = handshake.introduce(environ, len(bindings))
    handshake.prepare_for_user_code()
    handshake.hide_launcher()
    instance_uri.hide(os.environ)
    handshake.set_worker_variables(None, len(bindings))
    raise_descriptor_limit(len(bindings))
    manager = Manager(channel, bindings)
    try:
        return manager.run()
    except (ManagerError, frames.FrameError) as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    finally:
        manager.close()


class Manager(Stateful):
    """Handles messages of the executor, and outcomes and exits of workers.

    Parameters
    ----------
    channel
        On which HELLO was sent.
    bindings
        CPUs and environment of each slot.
    """

    def __init__(self, channel: Channel, bindings: list[pinning.Binding]) -> None:
        self._channel = channel
        self._functions: dict[bytes, Packet] = {}
        self._slots = [Slot(number) for number in range(len(bindings))]
        self._forkserver = Forkserver(bindings, channel.open_lane)
        self._limit = math.inf
        self._out: list[bytes] = []
        self._out_size = 0
        self._to_start: list[Slot] = []
        self._start_failures = 0
        self._deadlines: dict[Slot, float] = {}
        self._walltimes = walltime.Timers()
        self.state = ManagerState.SERVING
        self._signal = 0
        self._debug = False
        self._loop = EventLoop()
        self._stderr = StderrRelay(self._loop)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        self._loop.watch(self._forkserver.wakeup.fileno(), lambda: self._on_exits(self._forkserver.reap()))
        self._loop.watch(channel.fileno(), self._receive)

    # -- the loop -------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until the state is STOPPING; return the exit status."""
        while self.state is ManagerState.SERVING:
            self._loop.run_once(self._timeout())
            if self._out and any(slot.is_flooded for slot in self._slots):
                time.sleep(GATHER_TIME)
                self._loop.run_once(0)
            if self._channel.timeout() == 0:
                self._receive()  # the channel may need to ping the executor
            if self._to_start:
                slots, self._to_start = self._to_start, []
                self._start(slots)
            if self._deadlines:
                self._kill_overdue()
            if self._walltimes:
                self._end_calls()
            self._flush()
        return 0

    def close(self) -> None:
        """End all workers and what they have started, in little more than `EXIT_TIMEOUT`."""
        self.move_to(ManagerState.CLOSED)
        for slot in self._slots:
            if slot.worker is not None:
                slot.worker.hang_up()
        self._forkserver.wait(EXIT_TIMEOUT, self._on_exits)
        self._forkserver.kill_all()
        self._forkserver.wait(KILL_TIMEOUT, self._on_exits)
        self._forkserver.kill_orphans(KILL_TIMEOUT)
        self._channel.close()
        if self._signal:
            signal.signal(self._signal, signal.SIG_DFL)
            os.kill(os.getpid(), self._signal)

    def _timeout(self) -> float | None:
        timeout = self._channel.timeout()
        if self._deadlines or self._walltimes:
            times = list(self._deadlines.values())
            if self._walltimes:
                times.append(self._walltimes.earliest())
            left = min(max(0.0, min(times) - time.monotonic()), 86400.0)  # epoll takes an int of ms
            return left if timeout is None else min(left, timeout)
        return timeout

    def _on_signal(self, number: int, _: object) -> None:
        if self.state is not ManagerState.CLOSED:
            self._signal = number
            self._stop()

    def _stop(self) -> None:
        if self.state is ManagerState.SERVING:
            self.move_to(ManagerState.STOPPING)

    def _send(self, frame: bytes) -> None:
        if self.state is ManagerState.CLOSED:
            return
        self._out.append(frame)
        self._out_size += len(frame)
        if self._out_size > BATCH_LIMIT:
            self._flush()

    def _flush(self) -> None:
        out = self._out
        if out:
            body = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            self._out_size = 0
            self._channel.send(body)

    def _log(self, event: str) -> None:
        self._stderr.write(f"{time.time():.3f} manager {os.getpid()}: {event}")

    # -- messages of the executor -----------------------------------------------------------------

    def _receive(self) -> None:
        slots = self._slots
        for message in self._channel.receive():
            to_feed = set()
            for kind, number, id, frame in frames.split(message):
                if kind == frames.TASK:
                    slots[number].waiting.append(task_packet(id, frame))
                    to_feed.add(number)
                    if frame[frames.CALL_START] == WALLTIME:
                        seconds, _ = serialize.split_walltime(frame[frames.CALL_START :])
                        self._walltimes.add(slots[number], seconds or 0.0)
                elif kind == frames.FUNCTION:
                    self._add_function(frame)
                elif kind == frames.FORGET:
                    self._forget(frame)
                elif kind == frames.RECALL:
                    self._recall(slots[number], id)
                elif kind == frames.KILL:
                    self._kill(slots[number], id)
                elif kind == frames.RETIRE:
                    self._stop()
                elif kind == frames.SETUP:
                    self._set_up(frames.decode_json(frame[frames.HEADER_SIZE :]))
                else:
                    raise ManagerError(f"the executor sent a frame of unknown kind {kind}")
            for number in to_feed:
                self._feed(slots[number])

    def _set_up(self, setup: dict[str, Any]) -> None:
        handshake.extend_sys_path(setup)
        self._limit = setup.get("tasks_per_worker") or math.inf
        self._debug = bool(setup.get("debug"))

    def _add_function(self, frame: memoryview) -> None:
        # Workers import what their tasks need; what functions of scripts need is better imported once.
        if frame[frames.HEADER_SIZE : frames.HEADER_SIZE + 1] == serialize.CLOUDPICKLE:
            try:
                importlib.import_module("parsl_flux_bulk.protocol.script_globals")
            except ImportError:
                pass  # the task that needs it says so
        function = function_packet(frame)
        self._functions[function.function_id] = function

    def _forget(self, frame: memoryview) -> None:
        packet = function_packet(frame)
        self._functions.pop(packet.function_id, None)
        for slot in self._slots:
            if slot.worker is not None and slot.worker.forget(packet.function_id):
                slot.waiting.append(packet)
                self._feed(slot)

    def _recall(self, slot: Slot, task_id: int) -> None:
        removed = slot.remove(task_id)
        if not removed or not task_id:
            slot.take_back()
            removed += slot.remove(task_id)
        self._return(slot, removed)
        if self._debug:
            self._log(f"tasks recalled slot={slot.number} task={task_id or 'all'} returned={len(removed)}")
        self._feed(slot)

    def _kill(self, slot: Slot, task_id: int) -> None:
        # After this, the worker cannot start another task between the check and the kill.
        slot.take_back()
        removed = slot.remove(task_id) if task_id else []
        self._return(slot, removed)
        worker = slot.worker
        if worker is not None:
            self._read_outcomes(slot, worker)
            if not removed and (not task_id or worker.has(task_id)):
                self._kill_worker(slot, worker, f"KILL task={task_id or 'any'}")
                return
        self._feed(slot)

    def _return(self, slot: Slot, task_ids: list[int]) -> None:
        for task_id in task_ids:
            self._send(frames.encode(frames.RETURNED, slot.number, task_id))

    # -- workers ----------------------------------------------------------------------------------

    def _feed(self, slot: Slot) -> None:
        """Give the worker of a slot what it can take now; have one started if there is none."""
        worker = slot.worker
        if worker is None:
            if slot.waiting and slot not in self._to_start:
                # Not now: a fork would keep a copy of the message that is being handled.
                self._to_start.append(slot)
            return
        worker.give(slot.waiting, self._functions)
        if worker.state is WorkerState.BLOCKED and not self._loop.watches(worker.tasks.fileno()):
            self._loop.watch(worker.tasks.fileno(), partial(self._unblock, slot, worker), writable=True)

    def _unblock(self, slot: Slot, worker: Worker) -> None:
        self._loop.unwatch(worker.tasks.fileno())
        worker.unblock()
        self._feed(slot)

    def _start(self, slots: list[Slot]) -> None:
        waiting = sum(slot.waiting_size() for slot in self._slots)
        drop = self._drop_waiting if waiting > DROP_WAITING_SIZE else None
        numbers = [slot.number for slot in slots]
        try:
            workers = self._forkserver.fork_workers(numbers, self._limit, drop)
        except OSError as error:
            raise ManagerError(f"cannot fork a worker: {error}") from error
        for slot, worker in zip(slots, workers, strict=True):
            slot.worker = worker
            self._loop.watch(worker.outcomes, partial(self._on_outcomes, slot, worker))
            self._stderr.attach(slot.number, worker.stderr)
            if self._debug:
                self._log(f"worker forked slot={slot.number} pid={worker.pid} waiting={len(slot.waiting)}")
            self._feed(slot)

    def _drop_waiting(self) -> None:
        """Free the tasks of other workers; runs in a new worker."""
        for slot in self._slots:
            slot.waiting.clear()

    def _on_outcomes(self, slot: Slot, worker: Worker) -> None:
        if self._read_outcomes(slot, worker) and slot.waiting:
            self._feed(slot)

    def _read_outcomes(self, slot: Slot, worker: Worker) -> bool:
        """Send on the outcomes of a worker; return whether more may follow."""
        try:
            outcomes = worker.read()
        except EOFError:
            self._loop.unwatch(worker.outcomes)
            worker.retired = True
            self._deadlines.setdefault(slot, time.monotonic() + LIMIT_TIMEOUT)
            return False
        if outcomes is None:
            return False
        if outcomes:
            self._send(outcomes)
            if worker.reached_limit:
                self._deadlines[slot] = time.monotonic() + LIMIT_TIMEOUT
        return True

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for slot, deadline in list(self._deadlines.items()):
            if now >= deadline:
                del self._deadlines[slot]
                if slot.worker is not None:
                    slot.worker.overdue = True
                    self._kill_worker(slot, slot.worker, f"alive {LIMIT_TIMEOUT} s after its last task")

    def _end_calls(self) -> None:
        """Kill the workers whose call did not end with its walltime; the outcome follows their exit."""
        now = time.monotonic()
        for slot in self._walltimes.due(now):
            worker = slot.worker
            deadline, seconds = self._forkserver.running.deadline(slot.number)
            if worker is not None and deadline and now >= deadline + walltime.GRACE:
                if worker.state is not WorkerState.KILLED:
                    # After this, the worker cannot start another task between the check and the kill.
                    slot.take_back()
                    self._read_outcomes(slot, worker)
                    if self._forkserver.running.deadline(slot.number)[0] == deadline:
                        worker.exceeded = seconds
                        worker.retired = worker.overdue = True
                        self._kill_worker(slot, worker, f"walltime {seconds} s exceeded")
                    else:
                        self._feed(slot)
                deadline = 0.0
            self._walltimes.look_again(slot, now, deadline)

    def _kill_worker(self, slot: Slot, worker: Worker, cause: str) -> None:
        if worker.state is not WorkerState.KILLED:
            worker.move_to(WorkerState.KILLED)
        self._forkserver.kill(worker.pid)
        if self._debug:
            self._log(f"worker killed slot={slot.number} pid={worker.pid}: {cause}")

    def _on_exits(self, exits: list[tuple[int, int]]) -> None:
        by_pid = {slot.worker.pid: (slot, slot.worker) for slot in self._slots if slot.worker is not None}
        for pid, exit_code in exits:
            if pid in by_pid:
                self._on_exit(*by_pid[pid], exit_code)

    def _on_exit(self, slot: Slot, worker: Worker, exit_code: int) -> None:
        """Report how each task of a worker ended; a negative exit code is a signal."""
        while self._read_outcomes(slot, worker):
            pass
        slot.take_back(ended=True)
        running, started = self._forkserver.running.read(slot.number)
        if running not in worker.given:
            running = worker.lone_task
        if any(packet.task_id == running for packet in slot.waiting):
            running = 0  # not received
        if running and worker.exceeded is not None:
            outcome = serialize.app_failed(AppFailed(None, worker.exceeded))
            now = time.time()
            began = now - worker.exceeded - walltime.GRACE
            self._send(frames.encode_outcome(slot.number, running, began, now, outcome))
            del worker.given[running]
            running = 0
        retired = worker.retired and not running and (exit_code == 0 or worker.overdue)
        about = {
            "exit_code": exit_code if exit_code >= 0 else None,
            "signal": -exit_code if exit_code < 0 else None,
            "stderr": self._stderr.detach(slot.number),
        }
        self._deadlines.pop(slot, None)
        if self._debug:
            cause = (
                "task limit" if worker.reached_limit else "retired" if retired else f"was {worker.state.name}"
            )
            self._log(
                f"worker ended slot={slot.number} pid={worker.pid} exit_code={exit_code} running={running} "
                f"done={worker.done}: {cause}"
            )
        if not worker.reached_limit and not retired:
            self._flush()  # DIED begins a message: what went by the lane is read before it
            self._send(frames.encode_json(frames.DIED, slot.number, running, about))
            self._return(slot, [task_id for task_id in worker.given if task_id != running])
            self._return(slot, slot.remove(0))
            failed = not started and worker.state is not WorkerState.KILLED
            self._start_failures = self._start_failures + 1 if failed else 0
            if self._start_failures >= MAX_START_FAILURES and self.state is not ManagerState.CLOSED:
                raise ManagerError(
                    f"{MAX_START_FAILURES} consecutive workers ended before they had started: {about}"
                )
        for fd in (worker.outcomes, worker.tasks.fileno()):
            self._loop.unwatch(fd)
        worker.close()
        slot.worker_ended()
        self._feed(slot)
