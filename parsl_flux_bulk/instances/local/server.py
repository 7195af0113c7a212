"""The process that owns the embedded instance's queue and all processes of its jobs.

::

    user's process                          server (this module)
      LocalInstance ── control, SEQPACKET ──> configuration; one descriptor for each client; "close"
      LocalConnection ── framed JSON ───────> submit (answered with ids), cancel, output
      LocalCompletion ── framed JSON ───────> watch (answered with "ended")

A process of its own, so that nothing forks inside the user's threaded process, and so that all jobs
end when that process does, however it died: the end of the control socket and a pidfd both tell.
Standard library only. Starts as ``python -I -S -c …`` (:mod:`.server_process`), with the control socket as
stdin.

The main thread serves sockets, signals and timers. Each running job has a thread (:meth:`Server._run_jobs`)
that starts its tasks, waits for them, and goes on with the next job. Such a thread has the CPUs of its job:
when the job ends, it runs there at once. One thread for all jobs would run where the scheduler left it, and
with short jobs on every core, these would be idle for a tenth of the time. The thread that holds the lock
may use all state, start processes, and change the working directory.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import select
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from parsl_flux_bulk.instances.framed_socket import LONGEST_WAIT, FramedSocket
from parsl_flux_bulk.instances.local import processes
from parsl_flux_bulk.instances.local.allocator import Allocator, JobQueue
from parsl_flux_bulk.instances.local.core_claims import CoreClaims
from parsl_flux_bulk.instances.local.job import JobState, LocalJob, StartFailed, Supplies
from parsl_flux_bulk.instances.local.job_plan import Environment, JobPlan, PlanReader
from parsl_flux_bulk.instances.local.kept_output import KeptResults, Result
from parsl_flux_bulk.protocol.wakeup import Wakeup
from parsl_flux_bulk.worker import lifeline

KILL_GRACE = 5.0
"""Seconds between the first signal to a job that must end and SIGKILL."""

REPORT_DELAY = 0.01
"""Seconds for which ends of jobs are gathered into one message, while other jobs wait for a core anyway."""

WNOTHREAD = 0x20000000
"""Wait for children of this thread only; waitpid(2). Python's `os` lacks it."""

STACK_SIZE = 1 << 19
"""Bytes of a thread's stack; there may be a thread a core."""

CONTROL_SIZE = 1 << 16
"""Bytes of a control message at most; the first one, the configuration, is the largest."""


class Server:
    """All state, and the loop."""

    def __init__(self, control: socket.socket, configuration: dict[str, Any]) -> None:
        self._control = control
        self._directory: str = configuration["directory"]
        claims = CoreClaims(configuration["claims"])
        self._cpus = claims.choose(configuration["usable"], configuration["cores"])
        self._gpus: list[str] | None = configuration["gpus"]
        self._allocator = Allocator(len(self._cpus), len(self._gpus or ()))
        self._queue = JobQueue()
        self._running: dict[int, LocalJob] = {}
        self._tasks: set[int] = set()  # the pids of all jobs' tasks
        self._allotted: deque[LocalJob] = deque()  # these have cores, and are about to start
        self._first_id: int = configuration["first_id"]
        self._last_id = self._first_id - 1
        self._timers: list[tuple[float, int, int, Callable[[], None]]] = []  # when, serial, job, what
        self._serial = 0
        self._watchers: dict[int, list[Client]] = {}
        self._results = KeptResults()
        self._supplies = Supplies(self._directory)
        self._strays = processes.Strays(self._directory)
        self._closing = False
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._startable = threading.Condition(self._lock)
        self._threads = 0
        self._sleeps_until = 0.0
        self.selector = selectors.DefaultSelector()
        self.reporting: set[Client] = set()
        self._report_at: float | None = None
        self._listen(configuration["owner"])

    @property
    def pinned_cores(self) -> int:
        """Number of cores that jobs are pinned to."""
        return sum(map(bool, self._cpus))

    def _listen(self, owner: int) -> None:
        self._wakeup = Wakeup()
        self._wakeup.wake_on_signals()
        for number in (signal.SIGINT, signal.SIGHUP):
            # Handlers, and not SIG_IGN, which the jobs would inherit. The user's process decides on Ctrl-C.
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._close())
        # Inherited as ignored, it would leave no ended process to wait for.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        register = self.selector.register
        register(self._wakeup, selectors.EVENT_READ, self._wakeup.clear)
        register(self._control, selectors.EVENT_READ, self._on_control)
        # A child that the user's process forked keeps the control socket open; the pidfd tells.
        try:
            register(processes.process_handle(owner), selectors.EVENT_READ, self._close)
        except OSError:  # an old kernel: then the end of the control socket alone tells
            pass
        if os.getppid() != owner:
            self._close()

    def run(self) -> None:
        """Serve until the owner closes or ends."""
        registered = self.selector.get_map()
        while not self._closing:
            with self._lock:
                due = self._sleeps_until = self._next_due()
            ready = self.selector.select(min(max(0.0, due - time.monotonic()), LONGEST_WAIT))
            with self._lock:
                for key, _ in ready:
                    if registered.get(key.fd) is key:  # not closed by another thread, nor by an action before
                        key.data()
                self._run_timers()
                if time.monotonic() >= self._strays.next_look:
                    self._strays.look(self._tasks, self._running)
                self._startable.notify(self._allot())
                self._send_reports()
        if self._failure is not None:
            raise self._failure

    def _send_reports(self) -> None:
        """Send the ends of jobs: at once if the queue is empty, since somebody may wait for them to go on."""
        if not self.reporting:
            return
        now = time.monotonic()
        if self._report_at is None:
            self._report_at = now + REPORT_DELAY
        if self._queue and now < self._report_at:
            return
        self._report_at = None
        for client in self.reporting:
            client.report()
        self.reporting.clear()

    def _close(self) -> None:
        self._closing = True

    # -- clients -------------------------------------------------------------------------------------

    def _on_control(self) -> None:
        data, descriptors, _, _ = socket.recv_fds(self._control, CONTROL_SIZE, 1)
        if not data or data == b"close":
            self._close()
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # received ones are inherited, by the jobs
            Client(self, socket.socket(fileno=descriptor))

    def submit(self, jobs: Iterable[tuple[JobPlan, Environment]]) -> list[int]:
        """Queue jobs and return their ids."""
        first = self._last_id + 1
        for plan, environment in jobs:
            self._last_id += 1
            self._queue.add(LocalJob(self._last_id, plan, environment, self._supplies))
        return list(range(first, self._last_id + 1))

    def cancel(self, job_ids: list[int], reason: str) -> None:
        """Cancel jobs that wait or run."""
        for job_id in job_ids:
            waiting = self._queue.remove(job_id)
            if waiting is not None:
                waiting.fail("cancel", reason)
                self._finish(waiting, clean=True)
            elif job_id in self._running:
                self._end_early(self._running[job_id], "cancel", reason, signal.SIGTERM)

    def watch(self, client: Client, job_ids: list[int]) -> None:
        """Report the end of jobs to `client`, now or later."""
        for job_id in job_ids:
            if job_id in self._results:
                self._report(client, job_id, self._results.take(job_id))
            elif job_id in self._running or job_id in self._queue:
                self._watchers.setdefault(job_id, []).append(client)
            else:
                note = f"no job {job_id} here, or it ended so long ago that its result is no longer kept"
                unknown = {"status": "failed", "started": False, "exception": "unknown-job", "note": note}
                self._report(client, job_id, (unknown, None, None))

    @property
    def jobs_with_output(self) -> int:
        """Number of jobs whose output is kept."""
        return self._supplies.spool.jobs

    def missing_output(self, job_id: int) -> str:
        """Return why the output of a job is not there; "" for a job that printed nothing."""
        if not self._first_id <= job_id <= self._last_id:
            return f"the embedded instance has no job {job_id}, and no output of it"
        return self._supplies.spool.missing(job_id)

    def _report(self, client: Client, job_id: int, result: Result) -> None:
        client.ended.append((job_id, *result))
        self.reporting.add(client)

    def forget(self, client: Client) -> None:
        """Report nothing more to a client, which has closed its connection."""
        for job_id in [job_id for job_id, watchers in self._watchers.items() if client in watchers]:
            self._watchers[job_id].remove(client)

    # -- jobs ----------------------------------------------------------------------------------------

    def _allot(self) -> int:
        """Give free cores to the next jobs, and make threads for them; return the number of these jobs."""
        before = len(self._allotted)
        while not self._closing and (job := self._queue.next(self._allocator)) is not None:
            self._running[job.id] = job
            self._allotted.append(job)
        while self._threads < len(self._running):
            threading.Thread(target=self._run_jobs, daemon=True).start()
            self._threads += 1
        return len(self._allotted) - before

    def _run_jobs(self) -> None:
        """Run jobs one after the other, in a thread."""
        try:
            with self._lock:
                ended: LocalJob | None = None
                while not self._closing:
                    job = self._allotted.popleft() if self._allotted else None
                    if job is not None:
                        self._start(job)
                    # Not before: until then a core is idle.
                    if ended is not None:
                        self._strays.look(self._tasks, self._running)
                        self._finish(ended, clean=not self._strays.found)
                    self._send_reports()
                    if self._next_due() < self._sleeps_until:
                        self._wakeup.wake()
                    if job is None:
                        self._startable.wait()
                    else:
                        self._wait_for(job)
                        self._startable.notify(max(0, self._allot() - 1))  # one is for this thread
                    ended = job
        except BaseException as error:
            self._failure = error
            self._close()
            self._wakeup.wake()

    def _wait_for(self, job: LocalJob) -> None:
        """Wait for all tasks of a job that this thread started; then free its cores."""
        while job.tasks:
            self._lock.release()
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | WNOTHREAD)
            finally:
                self._lock.acquire()
            while job.tasks and (pid := _ended_child()) is not None:
                self._tasks.remove(pid)
                # Before the task is reaped: until then no other process group can have this pid.
                processes.kill_group(pid, signal.SIGKILL)
                self._task_ended(job, pid, os.waitpid(pid, 0)[1])
        del self._running[job.id]
        self._allocator.free(job)

    def _start(self, job: LocalJob) -> None:
        if job.state is JobState.STOPPING:  # canceled since it got its cores
            return
        self._strays.expect()
        gpus = None if self._gpus is None else [self._gpus[gpu] for gpu in job.gpus]
        try:
            cpus = [self._cpus[core] for core in job.cores]
            job.start(cpus, gpus, self.selector, partial(self._abort, job))
        except StartFailed as failure:
            job.fail("exec", str(failure), failure.exit_code)
        except Exception as error:  # one strange job must not end all the others
            job.fail("exec", f"cannot start: {type(error).__name__}: {error}", 1)
        self._tasks.update(job.tasks)
        if job.state is JobState.STOPPING:
            job.kill(signal.SIGKILL)
        elif job.plan.duration:
            self._limit(job)

    def _limit(self, job: LocalJob) -> None:
        duration = job.plan.duration
        note = "resource allocation expired"
        self._after(duration, job, lambda: self._end_early(job, "timeout", note, signal.SIGALRM))
        if job.plan.signal:
            number, left = job.plan.signal
            self._after(max(0.0, duration - left), job, lambda: job.kill(int(number)))

    def _abort(self, job: LocalJob, rank: int, code: int) -> None:
        self._end_early(job, "exec", f"task {rank} called MPI_Abort({code})", signal.SIGTERM, code)

    def _end_early(self, job: LocalJob, exception: str, note: str, signum: int, exit_code: int = 0) -> None:
        if job.fail(exception, note, exit_code):
            job.kill(signum)
            job.kill(signal.SIGCONT)  # a stopped process takes no other signal
            self._after(KILL_GRACE, job, lambda: job.kill(signal.SIGKILL))

    def _task_ended(self, job: LocalJob, pid: int, status: int) -> None:
        rank, first = job.tasks[pid], len(job.tasks) == job.size
        code = job.task_ended(pid, status)
        if not job.tasks:
            return
        if first and code and job.plan.exit_on_error:
            note = f"task {rank} ended with {code}, and exit-on-error is set"
            self._end_early(job, "exec", note, signal.SIGTERM, code)
        elif first and job.plan.exit_timeout is not None:
            left = job.plan.exit_timeout
            note = f"task {rank} ended first, and others still ran {left:g} s later (exit-timeout)"
            self._after(left, job, lambda: self._end_early(job, "exec", note, signal.SIGTERM))

    def _finish(self, job: LocalJob, *, clean: bool) -> None:
        """Clean up after a job without tasks, and report its end; see :meth:`.LocalJob.finish`."""
        self._results.add(job.id, job.finish(clean=clean))
        for client in self._watchers.pop(job.id, []):
            self._report(client, job.id, self._results.take(job.id))

    # -- time ----------------------------------------------------------------------------------------

    def _after(self, seconds: float, job: LocalJob, action: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._serial, job.id, action))

    def _next_due(self) -> float:
        """Return when there is something to do, even if nothing happens; infinite if there is nothing."""
        while self._timers and self._timers[0][2] not in self._running:
            heapq.heappop(self._timers)
        due = min(self._strays.next_look, math.inf if self._report_at is None else self._report_at)
        return min(due, self._timers[0][0]) if self._timers else due

    def _run_timers(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            _, _, job_id, action = heapq.heappop(self._timers)
            if job_id in self._running:
                action()

    # -- processes -----------------------------------------------------------------------------------

    def end(self) -> None:
        """Kill all processes of all jobs and remove the private directory; bounded in time."""
        self._closing = True
        deadline = time.monotonic() + processes.END_BOUND
        signal.signal(signal.SIGCHLD, lambda *_: None)  # the wait below ends when a process ends
        while time.monotonic() < deadline:
            with self._lock:
                for job in self._running.values():
                    job.kill(signal.SIGKILL)
                self._startable.notify_all()
                self._strays.look(self._tasks, ())
                if not self._tasks and not self._strays.found:
                    break
            select.select([self._wakeup], [], [], 0.2)
            self._wakeup.clear()
        import shutil

        shutil.rmtree(self._directory, ignore_errors=True)


class Client:
    """One connection or completion of the user's process.

    Attributes
    ----------
    ended : list
        Job ids and `Result` that go out with the next `report`.
    """

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.ended: list[tuple[int, dict[str, Any] | None, float | None, float | None]] = []
        self._server = server
        self._plans = PlanReader()
        self._link = FramedSocket(sock, server.selector, self._ready)

    def _ready(self) -> None:
        for message in self._link.receive():
            self._handle(json.loads(message))
        if self._link.closed:
            self._server.forget(self)
            self._link.close()

    def _handle(self, message: dict[str, Any]) -> None:
        if message["op"] == "submit":
            self._send({"ids": self._server.submit(map(self._plans.read, message["jobs"]))})
        elif message["op"] == "cancel":
            self._server.cancel(message["ids"], message["reason"])
        elif message["op"] == "output":
            self._send({"missing": self._server.missing_output(message["id"])})
        elif message["op"] == "kept":
            self._send({"jobs": self._server.jobs_with_output})
        elif message["op"] == "watch":
            self._server.watch(self, message["ids"])

    def report(self) -> None:
        """Send the results that have gathered."""
        self._send({"ended": self.ended})
        self.ended = []

    def _send(self, message: dict[str, Any]) -> None:
        self._link.send(json.dumps(message).encode())


def _ended_child() -> int | None:
    """Return the pid of a child of this thread that has ended; does not reap it."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | WNOTHREAD)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid


def main() -> None:
    """Run as the server; the control socket is standard input."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the thread that started this process may block some
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.chdir("/")
    lifeline.adopt_orphans()
    threading.stack_size(STACK_SIZE)
    configuration = json.loads(control.recv(CONTROL_SIZE))
    server = Server(control, configuration)
    control.send(f"ready {server.pinned_cores}".encode())
    import shutil  # noqa: F401  (slow, so not before; and now, because a later import could fail)

    try:
        server.run()
    finally:
        server.end()
