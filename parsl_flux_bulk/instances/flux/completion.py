"""Wait for the ends of jobs in a Flux instance, over a handle that belongs to one thread.

::

    watch ──> wait_async ── success ───────────────────────────────────────────────────> JobEnded
                  └─ failure ──> eventlog ── killed by a signal ──> guest.exec.eventlog ─┐
                                    └─ other ──────────> end of guest.output <───────────┘ ──> JobEnded

A job that ended well, but whose output went to a full disk, fails.

The same handle carries the workers' channel.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from parsl_flux_bulk.errors import InstanceLost
from parsl_flux_bulk.instances.base import (
    ChannelAddress,
    Event,
    JobEnded,
    JobId,
    JobResult,
    JobStatus,
    PeerId,
)
from parsl_flux_bulk.instances.flux.channel_service import ChannelService
from parsl_flux_bulk.instances.flux.handle import LOST_HINT, drop_future
from parsl_flux_bulk.instances.flux.job_directories import JobDirectories
from parsl_flux_bulk.instances.flux.job_times import JobTimes
from parsl_flux_bulk.instances.flux.output_log import EndOfOutput
from parsl_flux_bulk.instances.flux.results import first_exit, read_end, read_result, with_log
from parsl_flux_bulk.instances.flux.shell_options import OutputFiles, explain
from parsl_flux_bulk.instances.flux.survey import Survey
from parsl_flux_bulk.instances.full_disk import OUTPUT_CUT, cut_off
from parsl_flux_bulk.protocol.stderr_tail import read_tail
from parsl_flux_bulk.protocol.wakeup import Wakeup

EVENT_LIMIT = 512
"""Events after which one `poll` returns, although more may have arrived."""


class FluxCompletion:
    """Reports ended jobs and serves the channel; see :class:`~parsl_flux_bulk.instances.base.Completion`.

    Parameters
    ----------
    handle : flux.Flux
    files : dict
        The output files of submitted jobs; those of a job are removed when it ends.
    private : bool
        Whether the instance ends with this process, which may then tidy its KVS.
    record_times : bool
        Whether results have the times of jobs.
    """

    def __init__(
        self, handle: Any, files: dict[JobId, OutputFiles], private: bool = False, record_times: bool = False
    ) -> None:
        from flux.constants import FLUX_POLLIN
        from flux.core.inner import ffi, lib

        self._ffi, self._lib = ffi, lib
        self._handle = handle
        self._files = files
        self._reactor = handle.get_reactor()
        self._events: list[Event] = []
        self._channel: ChannelService | None = None
        self._waits: dict[JobId, Any] = {}
        self._survey = Survey(handle, self._events.append)
        self._directories = JobDirectories(handle) if private else None
        self._times = JobTimes(handle) if record_times else None
        self._woken = False
        self._expired = False
        # A reactor timer runs only during a poll with a timeout.
        self._timer = handle.timer_watcher_create(0.0, self._on_timer)
        self._wakeup = Wakeup()
        self._wake_watcher = handle.fd_watcher_create(self._wakeup.fileno(), self._on_wake, FLUX_POLLIN)
        self._wake_watcher.start()

    # -- jobs ---------------------------------------------------------------------------------

    def watch(self, job_id: JobId) -> None:
        from flux.job import wait_async

        if self._times is not None:
            self._times.add(job_id)
        self._waits[job_id] = wait_async(self._handle, job_id).then(self._on_wait, job_id)

    def _on_wait(self, future: Any, job_id: JobId) -> None:
        try:
            _, success, message = future.get_status()
        except OSError as error:
            # A waiter for FLUX_JOBID_ANY consumed the status; the job's result is still recorded.
            success, message = False, error.strerror or str(error)
        if success:
            self._end(job_id, JobResult(JobStatus.COMPLETED, exit_code=0))
            return
        from flux.job import event_watch_async

        note = message.decode(errors="replace") if isinstance(message, bytes) else str(message)
        # Not `result_async`: dropped before it is fulfilled, it leaks the handle (flux-core 0.88).
        watch = event_watch_async(self._handle, job_id)
        self._waits[job_id] = watch.then(self._on_event, job_id, note, [])

    def _on_event(self, future: Any, job_id: JobId, note: str, events: list[Any]) -> None:
        try:
            event = future.get_event()
        except OSError:
            # An owned instance purges inactive jobs; the wait's message is all that is left.
            event = None
            events.clear()
        if event is not None:
            events.append(event)
            return
        result = read_result(events, note)
        if result.ok or not result.started:
            self._end(job_id, result)
        elif result.signal is not None:
            self._look_up(job_id, "guest.exec.eventlog", self._on_exec, result)
        else:
            self._read_end(job_id, result)

    def _look_up(self, job_id: JobId, key: str, callback: Any, result: JobResult) -> None:
        from flux.job import job_info_lookup

        lookup = job_info_lookup(self._handle, job_id, keys=[key])
        self._waits[job_id] = lookup.then(callback, job_id, result)

    def _on_exec(self, future: Any, job_id: JobId, result: JobResult) -> None:
        try:
            exited = first_exit(future.get()["guest.exec.eventlog"])
        except OSError:
            exited = None
        if exited is not None and result.signal is not None and exited == 128 + result.signal:
            result = replace(result, exit_code=exited, signal=None)
        self._read_end(job_id, result)

    def _read_end(self, job_id: JobId, result: JobResult) -> None:
        def done(end: bytes) -> None:
            stderr, log, fatal = read_end(end)
            self._end(job_id, replace(with_log(result, log, fatal), stderr=stderr))

        EndOfOutput(self._handle, job_id, self._waits, done)

    def _end(self, job_id: JobId, result: JobResult) -> None:
        del self._waits[job_id]
        files = self._files.pop(job_id, None)
        if files is not None:
            result = self._with_files(job_id, files, result)
        if self._times is not None:
            t_start, t_end = self._times.take(job_id)
            result = replace(result, t_start=t_start, t_end=t_end)
        self._events.append(JobEnded(job_id, result))

    def _with_files(self, job_id: JobId, files: OutputFiles, result: JobResult) -> JobResult:
        from flux.job import JobID

        if "{{" in files.stdout + files.stderr:
            files = files.rendered(job_id, str(JobID(job_id).f58))
        if not result.ok:
            stderr = result.stderr or (read_tail(files.stderr) if files.stderr else "")
            return replace(result, stderr=explain(stderr))
        if full := cut_off(files.paths()):
            return JobResult(JobStatus.FAILED, exception=OUTPUT_CUT, note=full)
        return result

    # -- the loop -----------------------------------------------------------------------------

    def poll(self, timeout: float | None) -> list[Event]:
        if self._handle is None:
            raise InstanceLost("the connection to Flux is closed")
        run, reactor, lib = self._lib.flux_reactor_run, self._reactor, self._lib
        self._expired = False
        if timeout is not None and timeout > 0 and not self._events:
            self._timer.reset(after=timeout)
        flags = lib.FLUX_REACTOR_NOWAIT if timeout == 0 else lib.FLUX_REACTOR_ONCE
        while True:
            before = len(self._events)
            if run(reactor, flags) < 0:
                self._raise_lost()
            if timeout == 0 and len(self._events) == before:
                break
            # The reactor delivers one message an iteration: collect what else has arrived.
            if len(self._events) > before:
                flags = lib.FLUX_REACTOR_NOWAIT
                if len(self._events) < EVENT_LIMIT:
                    continue
                break
            if self._events or self._woken or self._expired:
                break
        self._woken = False
        if timeout:
            self._timer.stop()
        events = self._events.copy()
        self._events.clear()
        return events

    def _raise_lost(self) -> None:
        number = self._ffi.errno
        type(self._handle).raise_if_exception()
        why = f" ({os.strerror(number)})" if number else ""
        raise InstanceLost(f"lost the connection to Flux{why}: {LOST_HINT}")

    def _on_timer(self, *_: Any) -> None:
        self._expired = True

    def _on_wake(self, *_: Any) -> None:
        self._wakeup.clear()
        self._woken = True

    def survey(self) -> None:
        self._survey.ask()

    def wake(self) -> None:
        self._wakeup.wake()

    # -- the channel --------------------------------------------------------------------------

    def channel(self) -> ChannelAddress:
        channel = self._channel
        if channel is None:
            channel = self._channel = ChannelService(self._handle, self._events.append)
        return channel.address()

    def send(self, peer: PeerId, body: bytes) -> None:
        if self._channel is not None:
            self._channel.send(peer, body)

    def send_from_any_thread(self, peer: PeerId, body: bytes, slot: int | None = None) -> bool:
        return self._channel is not None and self._channel.send_from_any_thread(peer, body, slot)

    def close(self) -> None:
        if self._handle is None:
            return
        if self._channel is not None:
            self._channel.close()
        for watcher in (self._wake_watcher, self._timer):
            watcher.stop()
            watcher.destroy()
        for future in self._waits.values():
            drop_future(future)
        self._survey.close()
        if self._directories is not None:
            self._directories.close()
        if self._times is not None:
            self._times.close()
        self._waits.clear()
        self._handle = None
        self._wakeup.close()
