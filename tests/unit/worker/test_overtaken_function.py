"""A worker that receives tasks before their function waits for the function, and runs them in order."""

from __future__ import annotations

import asyncio
import math
import os
import socket

import helpers

from parsl_flux_bulk.protocol import frames, serialize
from parsl_flux_bulk.worker.pinning import Binding
from parsl_flux_bulk.worker.task_loop import RunningTasks, WorkerProcess


def test_tasks_that_overtook_their_function_wait_for_it() -> None:
    tasks, executor = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, outcomes = os.pipe()
    worker = WorkerProcess(0, Binding((), {}), RunningTasks(1), tasks, (outcomes, 2), math.inf)
    for task_id in (1, 2):
        executor.send(frames.encode_task(0, task_id, 7, serialize.dumps(((-task_id,), {}))))
    executor.send(frames.encode(frames.FUNCTION, 0, 7, serialize.dumps(abs)))
    executor.send(frames.encode_task(0, 3, 7, serialize.dumps(((-3,), {}))))
    if (pid := os.fork()) == 0:
        executor.close()
        # The worker closes descriptors; an event loop of another test would close what gets their numbers.
        asyncio.set_event_loop(None)
        worker.main(256)
    for descriptor in (tasks.fileno(), outcomes):
        os.close(descriptor)
    tasks.detach()
    executor.shutdown(socket.SHUT_WR)
    with open(reading, "rb") as pipe:
        message = pipe.read()
    helpers.wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid)
    executor.close()
    found = [
        (task_id, serialize.read_outcome(bytes(payload[frames.TIMES_SIZE :])))
        for _, _, task_id, payload in frames.decode(message)
    ]
    assert found == [(1, (1, None)), (2, (2, None)), (3, (3, None))]
