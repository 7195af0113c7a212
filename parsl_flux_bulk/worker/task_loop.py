"""A worker process: forked by a manager, runs one task after the other.

Tasks arrive as packets (:mod:`.packets`), of which the process receives one at a time: the manager can take
back the rest. Outcomes go back through a pipe. Memory shared with the manager says which task is running, so
that the manager knows it even if the process is killed.

On the executor's node, the executor has the manager's end of the worker's socket, too, and the socket is the
worker's *lane*. The outcome of a small task goes by it to the executor if no other task waits; and a task
that is the only one comes by it. The manager sleeps meanwhile, and reads from the shared memory which outcome
went by the lane, and which task came by it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import atexit
import ctypes
import fcntl
import mmap
import os
import select
import socket
import struct
import time
from contextvars import copy_context

from parsl_flux_bulk.protocol import frames, framing, serialize
from parsl_flux_bulk.worker import handshake, lifeline, packets, walltime
from parsl_flux_bulk.worker.process_state import ProcessState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from parsl_flux_bulk.worker.pinning import Binding

DEFAULTED_SIGNALS = (_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGHUP)
"""Signals that the manager handles; workers restore their default action."""

_OPEN = bytes((frames.OPEN,))

LONE_AFTER = 1e-4
"""Seconds for which a worker was idle before a task that may be the only one. In a flood, the manager sends
many outcomes at once, which costs the executor less."""

FIRST_DESCRIPTOR = 1000
"""The lowest number of a worker's own descriptors, where a process may have so many."""

_fflush = ctypes.CDLL(None).fflush


class RunningTasks:
    """The task that each worker runs, in memory that a manager shares with its workers and its guard."""

    _CELL = struct.Struct("<QB3xIddQQ16x")  # a cache line each

    def __init__(self, slots: int) -> None:
        self.memory = mmap.mmap(-1, slots * self._CELL.size)

    def offset(self, slot: int) -> int:
        """Return where a slot's entry begins: task id (8 bytes), started (1), padding (3), pid (4),
        and, while a call with a walltime runs, its deadline (8) and the walltime (8); the id of the latest
        task from the manager whose outcome went by the lane (8), and the id of the task that came by the
        lane and has no outcome yet (8)."""
        return slot * self._CELL.size

    def clear(self, slot: int) -> None:
        """Reset an entry for the next worker."""
        self._CELL.pack_into(self.memory, self.offset(slot), 0, 0, 0, 0.0, 0.0, 0, 0)

    def read(self, slot: int) -> tuple[int, bool]:
        """Return the id of the running task, or 0, and whether the worker has started."""
        running, started, *_ = self._CELL.unpack_from(self.memory, self.offset(slot))
        return running, bool(started)

    def set_deadline(self, slot: int, deadline: float, seconds: float) -> None:
        """Note until when the running call may run, and its walltime; 0 for no limit."""
        struct.pack_into("<dd", self.memory, self.offset(slot) + 16, deadline, seconds)

    def deadline(self, slot: int) -> tuple[float, float]:
        """Return until when the running call may run, 0 for no limit, and its walltime."""
        deadline, seconds = struct.unpack_from("<dd", self.memory, self.offset(slot) + 16)
        return deadline, seconds

    def set_pid(self, slot: int, pid: int) -> None:
        """Note the process of a slot's worker; 0 for none."""
        struct.pack_into("<I", self.memory, self.offset(slot) + 12, pid)

    def lone(self, slot: int) -> tuple[int, int]:
        """Return the last two ids of an entry; 0 for none."""
        direct, lone = struct.unpack_from("<QQ", self.memory, self.offset(slot) + 32)
        return direct, lone

    def forget_pid(self, pid: int) -> None:
        """Forget a process that is about to be reaped, after which another may get its pid."""
        for slot, known in enumerate(self._pids()):
            if known == pid:
                self.set_pid(slot, 0)

    def pids(self) -> list[int]:
        """Return the workers' processes."""
        return [pid for pid in self._pids() if pid]

    def _pids(self) -> list[int]:
        return [pid for _, _, pid, *_ in self._CELL.iter_unpack(self.memory)]


class WorkerProcess:
    """The life of a worker process. Created in the manager, run after the fork.

    Parameters
    ----------
    tasks
        The worker's end of its socket.
    descriptors
        For outcomes, and for standard error.
    limit
        Number of tasks after which to exit; may be infinite.
    has_lane
        Whether the executor has the other end of the socket, too.
    """

    def __init__(
        self,
        slot: int,
        binding: Binding,
        running: RunningTasks,
        tasks: socket.socket,
        descriptors: tuple[int, int],
        limit: float,
        has_lane: bool = False,
    ) -> None:
        self.tasks = tasks
        self._has_lane = has_lane
        self._lane_is_open = False
        self._is_direct = False
        self.descriptors = descriptors
        self.slot = slot
        self._binding = binding
        self._running = running
        self._outcomes = descriptors[0]
        self._limit = limit
        self._manager = os.getpid()
        self._functions: dict[bytes, Callable[..., Any]] = {}
        self._payloads: dict[bytes, memoryview] = {}
        self._overtook: list[bytes] = []

    def main(self, last_descriptor: int) -> NoReturn:
        """Run until the manager closes the socket or the limit is reached, then exit.

        Parameters
        ----------
        last_descriptor
            The highest open file descriptor; all but the needed ones are closed.
        """
        status = 1
        try:
            self._start(last_descriptor)
            self._serve()
            os.close(self._outcomes)  # tells the manager that no more tasks will be run
            status = 0
            atexit._run_exitfuncs()
            handshake.flush_stdio()
            _fflush(None)
        except BaseException:
            import traceback

            traceback.print_exc()
            handshake.flush_stdio()
        finally:
            os._exit(status)

    def _start(self, last_descriptor: int) -> None:
        # Each memory page written here is copied for each worker of a node, so most preparations are done
        # before the fork. The enums of the signal module alone would cost a hundred pages.
        _signal.set_wakeup_fd(-1)
        for number in DEFAULTED_SIGNALS:
            _signal.signal(number, _signal.SIG_DFL)
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        os.setpgid(0, 0)  # so that the manager can kill what user code starts
        self._running.set_pid(self.slot, os.getpid())
        lifeline.die_with_parent(self._manager)
        os.dup2(self.descriptors[1], 2)
        own = self._move_descriptors()
        start = 3
        for kept in (*sorted(own), last_descriptor + 1):
            os.closerange(start, kept)
            start = max(start, kept + 1)
        if self._binding.cpus:
            os.sched_setaffinity(0, self._binding.cpus)
        for name, value in self._binding.environment.items():
            os.environ[name] = value
        self._running.memory[self._running.offset(self.slot) + 8] = 1

    def _move_descriptors(self) -> list[int]:
        """Move the descriptors to high numbers, and return these.

        A task that closes what it finds open, as daemons do, and then opens its own files must not find its
        outcome in one of them.
        """
        first = min(FIRST_DESCRIPTOR, os.sysconf("SC_OPEN_MAX") - 8)
        own = [self._outcomes, self.tasks.fileno()]
        try:
            own = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, first) for number in own]
        except OSError:  # none is left
            return own
        self._outcomes = own[0]
        self.tasks.detach()
        self.tasks = socket.socket(fileno=own[1])
        return own

    def _serve(self) -> None:
        entry, lone = self._cell(0), self._cell(40)
        memory, none = self._running.memory, bytes(8)
        self._state = ProcessState()
        self._waiting = select.poll()
        self._waiting.register(self.tasks, select.POLLIN)
        done, ended = 0, 0.0
        leaving = False
        while done < self._limit and (frame := self._next()):
            kind = frame[0]
            if kind == frames.LONE and not self._has_function(frame):
                self._return(frame)
                memory[lone] = none
            elif kind in (frames.TASK, frames.LONE):
                if kind == frames.TASK:
                    memory[entry] = frame[frames.ID]  # the task has started
                started = time.time()
                if kind == frames.TASK and started - ended <= LONE_AFTER:
                    self._is_direct = False
                try:
                    outcome = copy_context().run(self._run, frame)
                    ended = time.time()
                    left = self._state.restore()
                except BaseException as error:  # of the task's signal handler, after the call
                    outcome = serialize.raised(error)
                    ended = time.time()
                    left = self._state.restore()
                self._send(frame, outcome, started, ended)
                memory[entry if kind == frames.TASK else lone] = none
                done += 1
                leaving = leaving or bool(left)
                if leaving and not self._overtook:
                    break  # the manager forks another worker
            else:
                function_id = frame[frames.ID]
                self._functions.pop(function_id, None)
                self._payloads.pop(function_id, None)
                if kind == frames.FUNCTION:
                    self._payloads[function_id] = memoryview(frame)[frames.HEADER_SIZE :]

    def _has_function(self, task: bytes) -> bool:
        function_id = task[frames.HEADER_SIZE : frames.CALL_START]
        return function_id in self._functions or function_id in self._payloads

    def _return(self, task: bytes) -> None:
        task_id = int.from_bytes(task[frames.ID], "little")
        self.tasks.sendall(framing.frame(frames.encode(frames.RETURNED, self.slot, task_id)))

    def _cell(self, offset: int) -> slice:
        start = self._running.offset(self.slot) + offset
        return slice(start, start + 8)

    def _next(self) -> bytes:
        if not self._overtook:
            return self._receive()
        self._is_direct = False  # others may wait
        return self._overtook.pop(0)

    def _wait_for_function(self, function_id: bytes) -> None:
        """Receive until a function is there.

        While the manager takes packets back, this process may receive a task after the manager has taken the
        function that was before it. The manager then sends the function again.
        """
        while frame := self._receive():
            if frame[0] == frames.FUNCTION and frame[frames.ID] == function_id:
                self._payloads[function_id] = memoryview(frame)[frames.HEADER_SIZE :]
                break
            self._overtook.append(frame)
        self._is_direct = False  # others may wait

    def _receive(self) -> bytes:
        """Return the next frame, or b"" after the last."""
        while True:
            content, descriptor = self._receive_noted() if self._has_lane else packets.receive(self.tasks)
            if content[:1] != _OPEN:
                break
            self._lane_is_open = True
        self._is_direct = descriptor < 0 and self._lane_is_open
        if descriptor < 0:
            return content
        try:
            return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        finally:
            os.close(descriptor)

    def _receive_noted(self) -> tuple[bytes, int]:
        """Receive a packet, after noting that it is a LONE task: the manager was not told of that."""
        memory, lone, none = self._running.memory, self._cell(40), bytes(8)
        try:
            while head := self.tasks.recv(frames.HEADER_SIZE, socket.MSG_PEEK):
                memory[lone] = head[frames.ID] if head[0] == frames.LONE else none
                try:
                    content, descriptor = packets.receive(self.tasks, socket.MSG_DONTWAIT)
                except BlockingIOError:  # the manager has taken it back
                    memory[lone] = none
                    continue
                if content[: frames.HEADER_SIZE] != head:
                    memory[lone] = content[frames.ID] if content[0] == frames.LONE else none
                return content, descriptor
        except ConnectionResetError:
            pass  # both other ends are gone
        return b"", -1

    def _run(self, frame: bytes) -> bytes:
        function_id = frame[frames.HEADER_SIZE : frames.CALL_START]
        function = self._functions.get(function_id)
        if function is None:
            # Not before: imports, and a crash in one of them, belong to the task that needs them.
            initialized = serialize.initialized
            if function_id not in self._payloads:
                self._wait_for_function(function_id)
            try:
                function = serialize.loads(self._payloads[function_id])
            except BaseException as error:
                return serialize.not_deserializable("function", error)
            self._functions[function_id] = function
            if serialize.initialized != initialized:
                self._state = ProcessState()  # what the initializer changed is for all tasks
            self._state.note_imports()
            del self._payloads[function_id]
        seconds, call = serialize.split_walltime(memoryview(frame)[frames.CALL_START :])
        if seconds is None:
            return serialize.run(function, call)
        self._is_direct = False  # the manager watches its end
        self._running.set_deadline(self.slot, time.monotonic() + seconds, seconds)
        try:
            return walltime.run(seconds, function, call)
        finally:
            self._running.set_deadline(self.slot, 0.0, 0.0)

    def _send(self, task: bytes, outcome: bytes, started: float, ended: float) -> None:
        task_id = int.from_bytes(task[frames.ID], "little")
        length = frames.TIMES_SIZE + len(outcome)
        header = frames.HEADER.pack(frames.OUTCOME, self.slot, task_id, length)
        header += frames.TIMES.pack(started, ended)
        if len(outcome) < packets.PACKET_LIMIT:
            header += outcome
            outcome = b""
        if self._is_direct and not outcome and self._send_by_lane(task, header):
            return
        for part in (header, outcome):
            written = os.write(self._outcomes, part) if part else 0
            if written < len(part):
                left = memoryview(part)[written:]
                while left:
                    left = left[os.write(self._outcomes, left) :]

    def _send_by_lane(self, task: bytes, frame: bytes) -> bool:
        """Send an outcome to the executor if no task waits; the manager reads from memory that it was sent.

        The manager need not wake up for it: no task waits for room in the queue.
        """
        if len(frame) > frames.LANE_LIMIT or self._waiting.poll(0):
            return False
        try:
            self.tasks.send(framing.frame(frame), socket.MSG_DONTWAIT)
        except OSError:
            return False
        if task[0] == frames.TASK:
            self._running.memory[self._cell(32)] = task[frames.ID]
        return True
