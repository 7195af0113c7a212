"""A manager in a process of its own, for tests: tasks go in by number, frames come out."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import helpers
from executor_end import ExecutorEnd, Frame

from parsl_flux_bulk.protocol import frames, serialize
from parsl_flux_bulk.worker.task_loop import LONE_AFTER

FUNCTION, SECOND_FUNCTION = 1, 2


class ManagerProcess:
    """A started manager, which has received SETUP."""

    def __init__(
        self,
        end: ExecutorEnd,
        slots: int = 1,
        environment: dict[str, str] | None = None,
        process: subprocess.Popen[bytes] | None = None,
        **setup: Any,
    ) -> None:
        environment = {"PARSL_FLUX_BULK_SLOTS": str(slots), **(environment or {})}
        self.process = process or end.start("manager", **environment)
        self.peer = end.accept()
        self.peer.send(frames.encode_json(frames.SETUP, 0, 0, {"sys_path": sys.path, **setup}))

    @classmethod
    def from_command(cls, end: ExecutorEnd, *command: object, slots: int = 1, **setup: Any) -> ManagerProcess:
        """Start a manager through a command instead of ``worker/main.py``."""
        process = subprocess.Popen(
            [str(part) for part in command],
            env={
                **end.environment,
                "PYTHONPATH": str(helpers.PROJECT),
                "PARSL_FLUX_BULK_MODE": "manager",
                "PARSL_FLUX_BULK_SLOTS": str(slots),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        end.processes.append(process)
        return cls(end, process=process, **setup)

    def add_function(self, function: Callable[..., Any], function_id: int = FUNCTION) -> None:
        self.peer.send(frames.encode(frames.FUNCTION, 0, function_id, serialize.dumps(function)))

    def give(
        self, *tasks: tuple[Any, ...], slot: int = 0, function_id: int = FUNCTION, then: bytes = b""
    ) -> None:
        """Send one message of tasks, each (id, *arguments), and of one more frame."""
        self.peer.send(
            *(frames.encode_task(slot, id, function_id, serialize.dumps((args, {}))) for id, *args in tasks),
            then,
        )

    def give_alone(self, task_id: int, *args: Any, slot: int = 0, function_id: int = FUNCTION) -> None:
        """Send a task to a worker that has been idle for long enough to send the outcome by its lane."""
        time.sleep(10 * LONE_AFTER)
        self.give((task_id, *args), slot=slot, function_id=function_id)

    def open_lane(self, first: int, *args: Any, slot: int = 0) -> None:
        """Run two tasks, from the id `first` on, by the second of which the worker's lane is in use.

        The lane is open when the executor has received it, at the latest with the first outcome.
        """
        for task_id in (first, first + 1):
            self.give_alone(task_id, *args, slot=slot)
            self.peer.until(lambda task_id=task_id: task_id in self.outcome_ids(), what=f"task {task_id}")
        assert self.peer.lane_of(slot) is not None, "no outcome came by the lane"

    def give_by_lane(self, task_id: int, *args: Any, slot: int = 0, function_id: int = FUNCTION) -> bool:
        """Send a task to a worker itself, as the executor sends lone ones; return whether it was sent."""
        lane = self.peer.lane_of(slot)
        call = serialize.dumps((args, {}))
        packet = frames.encode_task(slot, task_id, function_id, call, frames.LONE)
        return lane is not None and lane.send_packet(packet) and lane.slot is not None

    def give_limited(self, task_id: int, walltime: float, *args: Any, function_id: int = FUNCTION) -> None:
        """Send a task that has a walltime."""
        call = serialize.with_walltime(walltime, serialize.dumps((args, {})))
        self.peer.send(frames.encode_task(0, task_id, function_id, call))

    def send(self, kind: int, slot: int = 0, id: int = 0) -> None:
        """Send a frame without a payload."""
        self.peer.send(frames.encode(kind, slot, id))

    def run(self, function: Callable[..., Any], *arguments: Any, task_id: int = 1) -> Any:
        """Run one task and return its value, or raise what it raised."""
        self.add_function(function)
        self.give((task_id, *arguments))
        return self.wait_for(task_id)

    def wait_for(self, task_id: int) -> Any:
        """Wait for the outcome of a task and return its value, or raise what it raised."""
        self.peer.until(lambda: task_id in self.outcome_ids(), what=f"the outcome of {task_id}")
        return self.value(task_id)

    def outcome_ids(self) -> list[int]:
        return [frame.id for frame in self.peer.of(frames.OUTCOME)]

    def value(self, task_id: int) -> Any:
        (outcome,) = [frame for frame in self.peer.of(frames.OUTCOME) if frame.id == task_id]
        value, error = serialize.read_outcome(outcome.payload[frames.TIMES_SIZE :])
        if error is not None:
            raise error
        return value

    def died(self, count: int = 1) -> Frame:
        """Wait for DIED frames; return the last."""
        return self.peer.get(frames.DIED, count)[-1]

    def retire(self) -> tuple[bytes, bytes]:
        """Send RETIRE; return stdout and stderr."""
        self.send(frames.RETIRE)
        return self.process.communicate(timeout=60)
