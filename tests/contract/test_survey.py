"""What an instance reports as free, and which jobs wait, when it is asked."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable

from seam import BOUND, Seam, jobspec

from parsl_flux_bulk.instances.base import JobRequest, Usage, WorkerCores
from parsl_flux_bulk.jobspec import Jobspec
from parsl_flux_bulk.protocol.worker_job_name import WorkerJobName, new_mark


def survey(seam: Seam, until: Callable[[Usage], bool]) -> Usage:
    """Ask again and again, until an answer is as it should be."""
    deadline = time.monotonic() + BOUND
    usage: Usage | None = None
    while time.monotonic() < deadline:
        seam.completion.survey()
        answered = False
        while not answered and time.monotonic() < deadline:
            for event in seam.completion.poll(1.0):
                if isinstance(event, Usage):
                    usage, answered = event, True
                else:
                    seam.take(event)
        if usage is not None and until(usage):
            return usage
    raise AssertionError(f"not within {BOUND} s; the last answer was {usage}")


def test_what_is_free_and_which_jobs_wait(seam: Seam) -> None:
    capacity = seam.connection.capacity()
    if "flux" not in seam.kind:
        # Nobody else can use the instance: there is nothing to report.
        seam.completion.survey()
        (job,) = seam.submit(jobspec(["sleep", "0.2"]))
        deadline = time.monotonic() + BOUND
        while job not in seam.results and time.monotonic() < deadline:
            for event in seam.completion.poll(1.0):
                assert not isinstance(event, Usage)
                seam.take(event)
        assert seam.results[job].ok
        return
    usage = survey(seam, lambda usage: sum(cores for cores, _ in usage.free) == capacity.cores)
    assert (usage.capacity, usage.down) == (capacity, 0)
    first, second = seam.submit(jobspec(["sleep", "600"], tasks=capacity.cores), jobspec(["sleep", "600"]))
    # Both wait for a moment, until the first has its cores; and resources are asked for before jobs.
    survey(
        seam,
        lambda usage: set(usage.waiting) == {second} and sum(cores for cores, _ in usage.free) == 0,
    )
    seam.connection.cancel([first], "the test is over")
    survey(seam, lambda usage: not usage.waiting)
    seam.connection.cancel([second], "the test is over")
    seam.wait([first, second])
    survey(seam, lambda usage: sum(cores for cores, _ in usage.free) == capacity.cores)


def test_what_executors_hold_and_wait_for(seam: Seam) -> None:
    if "flux" not in seam.kind:
        return
    cores = seam.connection.capacity().cores

    def worker_job(mark: str, tasks: int = 1, gpus: int = 0) -> Jobspec:
        """A job as the worker jobs of an executor, as far as others can see."""
        spec = jobspec(["sleep", "600"], tasks=tasks)
        spec.system["job"] = {"name": WorkerJobName(mark, 1, gpus).with_label("somebody's")}
        return spec

    one, two = new_mark(), new_mark()
    jobs = seam.submit(
        worker_job(one, cores), worker_job(one, cores), worker_job(two), worker_job(two, gpus=1)
    )
    jobs += seam.submit(jobspec(["sleep", "600"]))
    expected = {one: WorkerCores(cores, {jobs[1]: cores}), two: WorkerCores(0, {jobs[2]: 1})}
    survey(seam, lambda usage: usage.executors == expected and set(usage.waiting) == set(jobs[1:]))
    seam.connection.cancel(jobs, "the test is over")
    seam.wait(jobs)
    survey(seam, lambda usage: not usage.executors)


def test_a_question_that_is_not_answered_yet_leaves_nothing_open(seam: Seam) -> None:
    def open_and_ask() -> int:
        completion = seam.instance.completion()
        completion.survey()
        completion.close()
        del completion
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = open_and_ask()
    assert {open_and_ask() for _ in range(3)} == {before}


def test_a_job_whose_end_is_not_read_to_the_end_leaves_nothing_open(seam: Seam) -> None:
    def open_and_leave(polls: int) -> int:
        connection, completion = seam.instance.connect(), seam.instance.completion()
        (job,) = connection.submit([JobRequest(jobspec(["false"]))])
        assert isinstance(job, int)
        completion.watch(job)
        for _ in range(polls):
            completion.poll(0.05)
        completion.close()
        connection.close()
        seam.completion.watch(job)
        seam.wait([job])
        del connection, completion
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = open_and_leave(0)
    assert {open_and_leave(polls) for polls in range(12)} == {before}
