"""A model of everything around the scheduler: an instance, managers, workers; and two ways to run it.

:class:`World` holds the model and checks, at every step, what must always be true: no task starts
twice, none is resolved twice, instructions make sense. Who calls its methods decides what happens
when: :class:`Simulation` by a simulated clock, the stateful test by whatever hypothesis thinks of.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from dataclasses import replace

from parsl_flux_bulk.instances.base import Capacity, JobResult, JobStatus, WorkerCores
from parsl_flux_bulk.jobspec.resources import Resources, Shape
from parsl_flux_bulk.scheduler.messages import (
    AssignTasks,
    CancelJob,
    CapacityChanged,
    JobEnded,
    KillWorker,
    PeerConnected,
    PeerLost,
    RecallTasks,
    ResolveTask,
    SubmitJob,
    Survey,
    TaskOutcome,
    TaskReturned,
    UsageReported,
    WorkerDied,
)
from parsl_flux_bulk.scheduler.model import TaskJob, WorkerJob
from parsl_flux_bulk.scheduler.state_machine import Scheduler
from parsl_flux_bulk.scheduler.states import PeerState, TaskState, WorkerState
from parsl_flux_bulk.scheduler.task import CANCELED, CallTask, CommandTask, Failed, Loss, LossReason


def make_task(task_id, resources, function, call=b"", *, bare=False):
    """Make a task without a future; `function` also stands for the command of a bare one."""
    if bare:
        return CommandTask(task_id, resources, lambda task: None, function)
    return CallTask(task_id, resources, lambda task: None, function, call)


SMALL = Resources(shape=Shape())
EXCLUSIVE = Resources(num_nodes=2, num_tasks=2, exclusive=True)
ALONE = Resources(num_tasks=1, duration=60.0)
TWO_RANKS = Resources(num_tasks=2)
COMPLETED = JobResult(JobStatus.COMPLETED, exit_code=0)
JOB_CANCELED = JobResult(JobStatus.CANCELED, exception="cancel")
NODE_LOST = JobResult(JobStatus.FAILED, exception="exec", note="node failure")
REFUSED = JobResult(JobStatus.FAILED, exception="submit", note="unsatisfiable", started=False)
FAILED = JobResult(JobStatus.FAILED, exit_code=127, stderr="no such file")


def shaped(cores=1, gpus=0):
    return Resources(cores_per_task=cores, gpus_per_task=gpus, shape=Shape(cores, gpus))


def new_scheduler(capacity, **options):
    """A scheduler that knows the capacity; outcomes that begin with ! are exceptions."""
    scheduler = Scheduler(is_failure=lambda body: body.startswith(b"!"), **options)
    scheduler.handle(CapacityChanged(capacity))
    return scheduler


class Function:
    """What a task calls; it takes so many seconds."""

    ids = itertools.count(1)

    def __init__(self, seconds=0.0001):
        self.function_id = next(self.ids)
        self.seconds = seconds
        self.name = f"function {self.function_id}"

    def __repr__(self):
        return f"<Function {self.function_id}: {self.seconds} s>"


class Slot:
    """A worker: what the manager keeps for it, and what its process runs."""

    def __init__(self, manager, number):
        self.manager = manager
        self.number = number
        self.queue = deque()
        self.running = None
        self.life = 0


class Manager:
    """A connected process of a job, be it of many slots or the rank of a task job."""

    def __init__(self, world, model_job, slots, rank, size):
        self.world = world
        self.job = model_job
        self.rank = rank
        self.size = size
        self.peer_id = next(world.peer_ids)
        self.slots = [Slot(self, number) for number in range(max(1, slots))]
        self.announced_slots = slots
        self.functions = set()
        self.up = deque()
        self.down = deque()
        self.ended = False
        self.say(
            lambda d: d.handle(
                PeerConnected(
                    self.peer_id,
                    model_job.job.token,
                    slots,
                    world.host_of(model_job.nodes[rank]),
                    1,
                    rank,
                    size,
                )
            )
        )

    def say(self, event):
        """Put something on its way to the scheduler."""
        self.up.append(event)
        self.world.sent_up(self)

    # -- what it is told ---------------------------------------------------------------------------

    def receive(self):
        """Act on the next message."""
        instruction = self.down.popleft()
        if self.ended:
            return
        if isinstance(instruction, AssignTasks):
            self._take(instruction)
        elif isinstance(instruction, RecallTasks):
            slot = self.slots[instruction.slot]
            for task in list(slot.queue):
                if instruction.task_id in (0, task.task_id):
                    self.return_task(slot, task)
        elif isinstance(instruction, KillWorker):
            self._kill(self.slots[instruction.slot], instruction.task_id)
        else:
            assert not any(slot.queue or slot.running for slot in self.slots), "retired with tasks"
            self.end(0)

    def _take(self, give):
        self.functions -= set(give.forget)
        self.functions |= {function.function_id for function in give.functions}
        slot = self.slots[give.slot]
        for task in give.tasks:
            assert task.function.function_id in self.functions, f"{task}: its function was never sent"
            slot.queue.append(task)
        for other in self.slots:
            assert all(t.function.function_id in self.functions for t in other.queue), "forgotten too early"
        self.world.got_work(slot)

    def return_task(self, slot, task):
        slot.queue.remove(task)

        def give_back(scheduler):
            if task not in self.world.outcomes:
                self.world.with_peer.discard(task)
            scheduler.handle(TaskReturned(self.peer_id, slot.number, task.task_id))

        self.say(give_back)

    def _kill(self, slot, task_id):
        if slot.running is not None and slot.running.task_id == task_id:
            self.die(slot, signal=9)
            return
        for task in list(slot.queue):
            if task.task_id == task_id:
                self.return_task(slot, task)

    # -- what its workers do -----------------------------------------------------------------------

    def begin(self, slot):
        """A worker starts its next task."""
        task = slot.running = slot.queue.popleft()
        self.world.starts[task] += 1
        if task.resources.shape is not None:
            assert self.world.starts[task] == 1, f"{task} runs twice"

    def finish(self, slot, body=None):
        """A worker ends its task."""
        task, slot.running = slot.running, None
        body = b"value of %d" % task.task_id if body is None else body
        rank = 0 if self.announced_slots else self.rank
        self.world.finished.setdefault(task, {})[rank] = body
        self.say(lambda d: d.handle(TaskOutcome(self.peer_id, slot.number, task.task_id, body)))
        if not self.announced_slots:
            self.end(0)

    def die(self, slot, exit_code=None, signal=None):
        """A worker's process dies; a task job's rank is all there is of it."""
        slot.life += 1
        task, slot.running = slot.running, None
        if task is not None:
            self.world.died_with[task] = (exit_code, signal)
        if not self.announced_slots:
            self.end(exit_code or 128)
            return
        task_id = task.task_id if task else 0
        self.say(
            lambda d: d.handle(WorkerDied(self.peer_id, slot.number, task_id, exit_code, signal, "trace"))
        )
        for task in list(slot.queue):
            self.return_task(slot, task)

    def end(self, exit_code=0, lose=0, silent=False):
        """It ends, or its node does: then the last messages may be lost, even that it is gone."""
        if self.ended:
            return
        self.ended = True
        for _ in range(min(lose, len(self.up))):
            self.up.pop()
        for slot in self.slots:
            slot.life += 1
        self.down.clear()
        if not silent:
            self.say(lambda d: d.handle(PeerLost(self.peer_id)))
        self.job.exit_code = max(self.job.exit_code, exit_code)
        self.world.manager_ended(self)


class ModelJob:
    """A job inside the instance."""

    numbers = itertools.count(1)

    def __init__(self, job, world):
        self.number = next(self.numbers)
        self.world = world
        self.job = job
        self.managers = []
        self.nodes = []
        self.state = "pending"
        self.cancel = False
        self.exit_code = 0

    @property
    def chunks(self):
        """Cores and GPUs of each piece that must be on one node."""
        if isinstance(self.job, WorkerJob):
            unit = self.job.unit
            return [(unit.cores, unit.gpus)] * unit.units(self.job.slots)
        resources = self.job.task.resources
        return [(resources.cores_per_task, resources.gpus_per_task)] * resources.num_tasks


class World:
    """The model, and the scheduler in it."""

    def __init__(self, nodes=1, cores=2, gpus=0, **options):
        self.now = 0.0
        self.peer_ids = itertools.count(1)
        self.task_ids = itertools.count(1)
        self.scheduler = new_scheduler(Capacity(nodes, nodes * cores, nodes * gpus), **options)
        self.node_cores = cores
        self.node_gpus = gpus
        self.free = [[cores, gpus] for _ in range(nodes)]
        self.drained = []
        self.waiting_others = []
        self.jobs = {}
        self.managers = {}
        self.tasks = []
        self.starts = Counter()
        self.finished = {}
        self.died_with = {}
        self.given_to = {}
        self.with_peer = set()
        self.outcomes = {}
        self.counts = Counter()
        self.answers = False

    def host_of(self, node):
        """The host name that processes of a node report."""
        return f"node{node}"

    # -- hooks for subclasses -----------------------------------------------------------------

    def sent_up(self, manager):
        """A manager has said something."""

    def sent_down(self, manager):
        """A manager has been told something."""

    def got_work(self, slot):
        """A slot may have something to begin."""

    def manager_ended(self, manager):
        """A manager has ended."""

    def submitted(self, model):
        """A job was submitted, or canceled."""

    def resolved(self, task, outcome):
        """A task has ended."""

    def asked(self):
        """The scheduler asks what is free."""
        if self.answers:
            self.scheduler.handle(self.usage())

    # -- the scheduler's two sides ----------------------------------------------------------------

    def submit(self, count=1, resources=SMALL, function=None, size=10, bare=False):
        function = function or Function()
        call = b"x" * size
        tasks = [make_task(next(self.task_ids), resources, function, call, bare=bare) for _ in range(count)]
        self.tasks += tasks
        self.scheduler.submit(tasks)
        return tasks

    def take(self):
        for instruction in self.scheduler.take(self.now):
            self.counts[type(instruction)] += 1
            if isinstance(instruction, ResolveTask):
                task = instruction.task
                assert task not in self.outcomes, f"{task} is resolved twice"
                self.outcomes[task] = instruction.outcome
                self.resolved(task, instruction.outcome)
            elif isinstance(instruction, SubmitJob):
                assert instruction.job not in self.jobs, "submitted twice"
                self.jobs[instruction.job] = model = ModelJob(instruction.job, self)
                self.submitted(model)
            elif isinstance(instruction, CancelJob):
                model = self.jobs[instruction.job]
                model.cancel = True
                self.submitted(model)
            elif isinstance(instruction, Survey):
                self.asked()
            else:
                manager = self.managers.get(instruction.peer)
                assert manager is not None, f"{instruction} for a peer that never was"
                if isinstance(instruction, AssignTasks):
                    assert 0 < len(instruction.tasks) <= 128
                    for task in instruction.tasks:
                        assert task not in self.outcomes, f"{task} is given, and has ended"
                        if task.resources.shape is not None:
                            assert task not in self.with_peer, f"{task} is given, and never came back"
                        self.with_peer.add(task)
                        self.given_to[task] = manager
                if not manager.ended:
                    manager.down.append(instruction)
                    self.sent_down(manager)

    # -- the instance ------------------------------------------------------------------------------

    def pending(self):
        return [model for model in self.jobs.values() if model.state == "pending"]

    def usage(self):
        """What the instance answers when it is asked what is free."""
        nodes = len(self.free)
        jobs = [model for model in self.jobs.values() if model.state != "ended"]
        waiting = [model.job for model in jobs if model.state == "pending"]
        return UsageReported(
            Capacity(nodes, nodes * self.node_cores, nodes * self.node_gpus),
            tuple((cores, gpus) for cores, gpus in self.free if cores),
            [model.job for model in jobs if model.state != "pending"],
            dict.fromkeys(waiting, "insufficient resources"),
            len(self.drained),
            others=frozenset(self.waiting_others),
            executors=self.other_executors(),
        )

    def other_executors(self):
        """What the worker jobs of other executors hold and wait for."""
        return []

    def occupy(self, node, cores):
        """Somebody else's job takes cores."""
        self.free[node][0] -= cores

    def release(self, node, cores):
        self.free[node][0] += cores

    def drain_node(self):
        """The last node gets no further jobs; those on it must have ended."""
        self.drained.append(self.free.pop())

    def undrain_node(self):
        self.free.append(self.drained.pop())

    def active(self):
        return [model for model in self.jobs.values() if model.state == "running"]

    def possible(self, model):
        """Whether a job would fit the empty nodes, those that are drained included, as Flux decides."""
        nodes = self.free + self.drained
        return len(model.chunks) <= sum(
            min(self.node_cores // cores, self.node_gpus // gpus if gpus else 1 << 30)
            for cores, gpus in (model.chunks[0],)
            for _ in nodes
        ) and (not self._whole(model) or model.job.task.resources.num_nodes <= len(nodes))

    def _whole(self, model):
        return isinstance(model.job, TaskJob) and model.job.task.resources.exclusive

    def place(self, model):
        """Find nodes for a job; None if there is no room now."""
        if self._whole(model):
            whole = [i for i, (cores, _) in enumerate(self.free) if cores == self.node_cores]
            wanted = model.job.task.resources.num_nodes
            return None if len(whole) < wanted else whole[:wanted]
        free = [list(node) for node in self.free]
        nodes = []
        for cores, gpus in model.chunks:
            # As Flux does: the node with the most room first.
            fitting = [i for i, node in enumerate(free) if node[0] >= cores and node[1] >= gpus]
            if not fitting:
                return None
            best = max(fitting, key=lambda i: free[i][0])
            free[best][0] -= cores
            free[best][1] -= gpus
            nodes.append(best)
        return nodes

    def start(self, model, nodes):
        """Give a job its resources, and start what is in it."""
        model.state = "running"
        model.placed = []
        if self._whole(model):
            model.placed = [(node, *self.free[node]) for node in nodes]
            resources = model.job.task.resources
            nodes = sorted(nodes[i % len(nodes)] for i in range(resources.num_tasks))
        else:
            model.placed = [(node, *chunk) for node, chunk in zip(nodes, model.chunks, strict=False)]
        for node, cores, gpus in model.placed:
            self.free[node][0] -= cores
            self.free[node][1] -= gpus
        if isinstance(model.job, WorkerJob):
            by_node = Counter(nodes)
            model.nodes = list(by_node)
            sharing = model.job.unit.workers
            counts = [min(units * sharing, model.job.slots) for units in by_node.values()]
        else:
            model.nodes = nodes
            counts = [0] * len(nodes)
            if isinstance(model.job.task, CommandTask):
                return
        for rank, slots in enumerate(counts):
            manager = Manager(self, model, slots, rank, len(counts))
            model.managers.append(manager)
            self.managers[manager.peer_id] = manager

    def end(self, model, result):
        """A job has ended."""
        if model.state == "running":
            for node, cores, gpus in model.placed:
                self.free[node][0] += cores
                self.free[node][1] += gpus
        model.state = "ended"
        for manager in model.managers:
            manager.end()
        self.scheduler.handle(JobEnded(model.job, result))

    # -- what must be true in the end ----------------------------------------------------------------

    def check_all_ended(self, canceled=(), shut_down=False):
        """Every task has ended, as what happened to it in this model warrants."""
        for task in self.tasks:
            assert task in self.outcomes, f"{task} never ended"
            outcome = self.outcomes[task]
            if isinstance(outcome, Failed):
                # Any rank that raised may be the first that is heard of.
                assert outcome.body.startswith(b"!")
                assert outcome.body in self.finished[task].values()
            elif isinstance(outcome, bytes):
                assert outcome == self.finished[task][0]
            elif outcome is CANCELED:
                assert task in canceled
            elif isinstance(outcome, Loss):
                reason = outcome.reason
                if reason is LossReason.SHUT_DOWN:
                    assert shut_down
                elif reason is LossReason.CRASHED:
                    assert (outcome.exit_code, outcome.signal) == self.died_with[task]
                elif reason in (LossReason.WORKER_LOST, LossReason.MAYBE_STARTED):
                    assert task in self.with_peer, f"{task} is blamed, and had come back"
                    assert self.given_to[task].ended, f"{task} is blamed for nothing"
                elif reason in (LossReason.REFUSED, LossReason.NO_WORKER):
                    assert not self.starts[task]


class Simulation(World):
    """The world by a simulated clock.

    Parameters
    ----------
    latency : float
        Seconds that a message takes, either way.
    start_time, end_time : float
        Seconds from a job's resources to its first message, and from its last process to its end.
    beside : Simulation or None
        Another executor, of the same user: this one is in the same instance, and by the same clock.
    """

    def __init__(self, *args, latency=0.0003, start_time=0.06, end_time=0.01, beside=None, **options):
        super().__init__(*args, **options)
        self.latency = latency
        self.start_time = start_time
        self.end_time = end_time
        self.ran = []
        self.resolved_at = {}
        self.idle_since = {}
        self.wakeups = 0
        self.agenda = []
        self._order = itertools.count()
        self.in_turn = deque()
        self.dirty = True
        self.neighbors = [self]
        if beside is not None:
            self.now = beside.now
            self.free = beside.free
            self.in_turn = beside.in_turn
            self.neighbors = beside.neighbors
            self.neighbors.append(self)

    def at(self, when, act):
        heapq.heappush(self.agenda, (when, next(self._order), act))

    def after(self, delay, act):
        self.at(self.now + delay, act)

    def event(self, act):
        """Something that the scheduler hears of."""
        act(self.scheduler)
        self.dirty = True

    def submit(self, *args, **arguments):
        self.dirty = True
        return super().submit(*args, **arguments)

    # -- time --------------------------------------------------------------------------------------

    def run(self, until=None, for_=None, limit=3_000_000):
        """Let time pass until a condition holds, for so many seconds, or until nothing is left to happen."""
        self._run(until, for_, limit)
        for world in self.neighbors:
            check_books(world)

    def _run(self, until, for_, limit):
        end = None if for_ is None else self.now + for_
        for _ in range(limit):
            if dirty := [world for world in self.neighbors if world.dirty]:
                for world in dirty:
                    world.dirty = False
                    world.wakeups += 1
                    world.take()
                self._schedule()
                continue
            if until is not None and until():
                return
            times = [time for world in self.neighbors if (time := world.next_time()) is not None]
            if not times or (end is not None and min(times) > end):
                if end is not None:
                    self._advance(end)
                assert until is None, "nothing is left to happen, and yet it has not"
                return
            self._advance(min(times))
            for world in self.neighbors:
                deadline = world.scheduler.deadline()
                if deadline is not None and deadline <= world.now:
                    world.dirty = True
                while world.agenda and world.agenda[0][0] <= world.now:
                    heapq.heappop(world.agenda)[2]()
        raise AssertionError(f"no end after {limit} steps: it loops")

    def next_time(self):
        times = [self.agenda[0][0]] if self.agenda else []
        deadline = self.scheduler.deadline()
        if deadline is not None:
            times.append(max(self.now, deadline))
        return min(times, default=None)

    def _advance(self, now):
        for world in self.neighbors:
            world.now = now

    def run_all(self, **arguments):
        self.run(until=lambda: len(self.outcomes) == len(self.tasks), **arguments)

    # -- hooks -------------------------------------------------------------------------------------

    def sent_up(self, manager):
        def deliver():
            self.event(manager.up.popleft())

        self.after(self.latency, deliver)

    def sent_down(self, manager):
        self.after(self.latency, lambda: manager.down and manager.receive())

    def got_work(self, slot):
        if slot.running is None and slot.queue and not slot.manager.ended:
            slot.manager.begin(slot)
            life = slot.life
            seconds = slot.running.function.seconds
            began = self.now

            def done():
                if slot.life == life:
                    self.ran.append((slot.running, began, self.now))
                    slot.manager.finish(slot)
                    self.got_work(slot)

            self.after(seconds, done)

    def manager_ended(self, manager):
        model = manager.job
        if model.state == "running" and all(other.ended for other in model.managers):
            result = JOB_CANCELED if model.cancel else COMPLETED
            if model.exit_code:
                result = JobResult(JobStatus.FAILED, exit_code=model.exit_code)
            self.after(self.end_time, lambda: self.finish_job(model, result))

    def finish_job(self, model, result):
        if model.state != "ended":
            self.end(model, result)
            self.dirty = True

    def submitted(self, model):
        if model.cancel:
            self.after(self.latency, lambda: self.finish_job(model, JOB_CANCELED))
        else:
            self.in_turn.append(model)
            self.dirty = True

    def resolved(self, task, outcome):
        self.resolved_at[task] = self.now

    def release(self, node, cores):
        super().release(node, cores)
        self.dirty = True

    def other_executors(self):
        executors = []
        for world in self.neighbors:
            jobs = [model for model in world.jobs.values() if isinstance(model.job, WorkerJob)]
            held = sum(m.job.allocation.cores for m in jobs if m.state in ("starting", "running"))
            wanted = {
                m.number: m.job.allocation.cores
                for m in jobs
                if m.state == "pending"
                and not m.job.unit.gpus
                and (m.job.unit.cores == 1 or len(self.free) == 1)
            }
            if world is not self and (held or wanted):
                executors.append(WorkerCores(held, wanted))
        return executors

    def usage(self):
        pending = [m.number for w in self.neighbors if w is not self for m in w.pending()]
        return replace(super().usage(), others=frozenset([*self.waiting_others, *pending]))

    def asked(self):
        self.after(self.latency, lambda: self.event(lambda scheduler: scheduler.handle(self.usage())))

    # -- the scheduler: first come, first served ------------------------------------------------------

    def _schedule(self):
        while self.in_turn:
            model = self.in_turn[0]
            if model.state == "ended":
                self.in_turn.popleft()
                continue
            if not self.possible(model):
                self.in_turn.popleft()
                model.world.finish_job(model, REFUSED)
                continue
            nodes = self.place(model)
            if nodes is None:
                return
            self.in_turn.popleft()
            model.state = "starting"
            model.placed = []
            # The resources are taken at once, the processes need a moment.
            model.world.start_later(model, nodes)

    def start_later(self, model, nodes):
        held = (
            [(node, *self.free[node]) for node in nodes]
            if self._whole(model)
            else [(node, *chunk) for node, chunk in zip(nodes, model.chunks, strict=False)]
        )
        for node, cores, gpus in held:
            self.free[node][0] -= cores
            self.free[node][1] -= gpus

        def go():
            for node, cores, gpus in held:
                self.free[node][0] += cores
                self.free[node][1] += gpus
            if model.state == "ended":
                self.dirty = True
                return
            self.start(model, nodes)
            if isinstance(model.job, TaskJob) and isinstance(model.job.task, CommandTask):
                task = model.job.task
                self.starts[task] += 1
                self.after(task.command.seconds, lambda: self.finish_job(model, COMPLETED))

        self.after(self.start_time, go)

    # -- what happened -----------------------------------------------------------------------------

    def worker_jobs(self):
        return [model.job for model in self.jobs.values() if isinstance(model.job, WorkerJob)]

    def cores_in_use(self):
        total = sum(cores for cores, _ in self.free)
        return len(self.free) * self.node_cores - total


def check_books(world):
    """Count everything again that the scheduler keeps count of."""
    scheduler = world.scheduler
    lifecycle, allocations = scheduler.lifecycle, scheduler.lifecycle.allocations
    jobs = list(lifecycle.jobs.values())
    worker_jobs = [job for job in jobs if isinstance(job, WorkerJob)]
    task_jobs = [job for job in jobs if isinstance(job, TaskJob)]
    leaving = [job for job in worker_jobs if not job.available]
    assert allocations.cores == sum(job.allocation.cores for job in jobs)
    assert allocations.gpus == sum(job.allocation.gpus for job in jobs)
    assert allocations.leaving_cores == sum(job.allocation.cores for job in leaving)
    assert allocations.leaving_gpus == sum(job.allocation.gpus for job in leaving)
    assert allocations.task_cores == sum(job.allocation.cores for job in task_jobs)
    assert allocations.task_jobs == len(task_jobs) == len(lifecycle.task_jobs)
    waiting = Counter(
        task.resources.shape for task in world.tasks if task.state is TaskState.PENDING and task.place is None
    )
    workers = [w for job in world.jobs if isinstance(job, WorkerJob) for w in job.workers]
    for group in lifecycle.groups.values():
        own = [job for job in worker_jobs if job.group is group]
        assert set(group.jobs) == set(own)
        assert group.slots == sum(job.live for job in own if job.available)
        assert group.waiting == waiting[group.shape]
        mine = [worker for worker in workers if worker.group is group]
        assert group.assigned == sum(len(worker.queue) + worker.ended for worker in mine)
        assert set(group.idle) == {worker for worker in mine if worker.state is WorkerState.IDLE}
        assert set(group.busy) == {worker for worker in mine if worker.state is WorkerState.BUSY}
        for worker in mine:
            check_worker(scheduler, worker)
        for job in own:
            assert job.busy == sum(w.state in (WorkerState.BUSY, WorkerState.DRAINING) for w in job.workers)


def check_worker(scheduler, worker):
    assert worker.size == sum(len(task.call) for task in worker.queue)
    assert worker.cancels == sum(task.canceled for task in worker.queue)
    assert all(task.place is worker and task.state is TaskState.ASSIGNED for task in worker.queue)
    settled = worker not in scheduler.assigner.unsettled
    if settled and worker.peer.state is PeerState.CONNECTED and not scheduler.closed:
        assert bool(worker.queue) == (worker.state in (WorkerState.BUSY, WorkerState.DRAINING))


def slots(world):
    return [job.slots for job in world.worker_jobs()]


def losses(world, tasks):
    return [world.outcomes[task].reason for task in tasks if isinstance(world.outcomes[task], Loss)]


def running(world):
    """Tasks that a worker runs at this moment."""
    return [slot.running for manager in world.managers.values() for slot in manager.slots if slot.running]


def until_running(world, count=1):
    world.run(until=lambda: len(running(world)) >= count)
    return running(world)


def cancel(world, task):
    world.event(lambda scheduler: scheduler.cancel(task))
