"""Whatever happens, in whatever order: no task is lost, none runs twice, all end, and end rightly."""

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from world import (
    COMPLETED,
    FAILED,
    JOB_CANCELED,
    NODE_LOST,
    REFUSED,
    SMALL,
    Function,
    World,
    check_books,
    shaped,
)

from parsl_flux_bulk.instances.base import Capacity, JobResult, JobStatus, WorkerCores
from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.scheduler.messages import (
    CapacityChanged,
    PeerConnected,
    PeerLost,
    TaskOutcome,
    TaskReturned,
    UsageReported,
    WorkerDied,
)
from parsl_flux_bulk.scheduler.model import TaskJob, WorkerJob
from parsl_flux_bulk.scheduler.states import TaskState

RESOURCES = [
    SMALL,
    SMALL,
    SMALL,
    shaped(2),
    shaped(1, 1),
    shaped(64),
    shaped(0.5),
    shaped(1, 0.5),
    Resources(num_tasks=2),
    Resources(num_tasks=1, duration=9.0),
    Resources(num_nodes=1, num_tasks=1, exclusive=True),
    Resources(num_nodes=2, num_tasks=2, exclusive=True),
]
OPTIONS = [
    {"nodes": 1, "cores": 2},
    {"nodes": 2, "cores": 2, "gpus": 1},
    {"nodes": 2, "cores": 4, "worker_idle_time": 0.0},
    {"nodes": 1, "cores": 2, "tasks_per_job": 1},
]
RESULTS = {"completed": COMPLETED, "refused": REFUSED, "failed": FAILED, "canceled": JOB_CANCELED}
INDEX = st.integers(0, 1 << 16)


class Chaos(RuleBasedStateMachine):
    """Hypothesis decides what the world does next, and when the scheduler hears of it."""

    @initialize(options=st.sampled_from(OPTIONS), warm=st.sampled_from([0, 0, 1, 30, 300]))
    def begin_world(self, options, warm):
        self.world = World(**options)
        self.functions = [Function() for _ in range(3)]
        self.canceled = set()
        self.occupied = []
        self.shut_down = False
        if warm:
            # Workers that are there already, and whose service_time is known.
            self.world.submit(warm, SMALL, self.functions[0])
            self.flow(200, run=True)

    # -- what there is -----------------------------------------------------------------------------

    def managers(self, *, with_up=False, with_down=False, alive=False):
        return [
            manager
            for manager in self.world.managers.values()
            if (not with_up or manager.up)
            and (not with_down or manager.down)
            and not (alive and manager.ended)
        ]

    def slots(self, running):
        return [
            slot
            for manager in self.managers(alive=True)
            for slot in manager.slots
            if (slot.running is not None) == running and (running or slot.queue)
        ]

    def startable(self):
        pending = self.world.pending()
        return [model for model in pending if not model.cancel and self.world.place(model) is not None]

    def endable(self):
        return [
            model
            for model in self.world.jobs.values()
            if (
                model.state == "running"
                and (all(manager.ended for manager in model.managers) or model.cancel)
            )
            or (model.state == "pending" and (model.cancel or not self.world.possible(model)))
        ]

    # -- the user ----------------------------------------------------------------------------------

    @rule(
        count=st.sampled_from([1, 1, 2, 5, 40]),
        kind=st.integers(0, len(RESOURCES) - 1),
        function=st.integers(0, 2),
        size=st.sampled_from([10, 10, 2 << 20]),
        bare=st.sampled_from([False, False, False, True]),
    )
    def submit(self, count, kind, function, size, bare):
        resources = RESOURCES[kind]
        count = min(count, 3) if resources.shape is None or size > 10 else count
        bare = bare and resources.shape is None
        self.world.submit(count, resources, self.functions[function], size, bare)

    @precondition(lambda self: self.world.tasks)
    @rule(index=INDEX, given=st.booleans())
    def cancel(self, index, given):
        wanted = [
            task
            for task in self.world.tasks
            if task not in self.world.outcomes and (not given or task.state is TaskState.ASSIGNED)
        ]
        if wanted:
            task = wanted[index % len(wanted)]
            self.canceled.add(task)
            self.world.scheduler.cancel(task)

    @rule(lottery=st.integers(0, 60))
    def shutdown(self, lottery):
        if lottery == 31:
            self.shut_down = True
            self.world.scheduler.shutdown()

    # -- time, and the scheduler ------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 0.0, 0.0001, 0.004, 0.06, 0.2, 1.0, 3.0, 20.0]))
    def take(self, seconds):
        self.world.now += seconds
        self.world.take()

    @rule(steps=st.sampled_from([1, 2, 5, 20]), run=st.booleans())
    def flow(self, steps, run):
        """For a while, nothing bad happens; tasks may all be short, or not end at all."""
        for _ in range(steps):
            if not self.calm_step(run):
                self.world.now += 0.005

    @rule(count=st.sampled_from([20, 100]), function=st.integers(0, 2))
    def burst(self, count, function):
        """Many tasks come, and are given."""
        self.world.submit(count, SMALL, self.functions[function])
        self.flow(3, run=False)

    @precondition(lambda self: any(slot.queue for slot in self.slots(running=True)))
    @rule()
    def stall(self):
        """What runs takes long, and others wait behind it."""
        self.world.now += 0.2
        self.world.take()

    # -- the instance ------------------------------------------------------------------------------

    @precondition(lambda self: self.startable())
    @rule(index=INDEX)
    def start_job(self, index):
        models = self.startable()
        model = models[index % len(models)]
        self.world.start(model, self.world.place(model))

    @precondition(lambda self: self.endable())
    @rule(index=INDEX)
    def end_job(self, index):
        models = self.endable()
        self.finish(models[index % len(models)])

    @precondition(lambda self: self.world.pending())
    @rule(index=INDEX, result=st.sampled_from(["refused", "failed", "canceled"]))
    def job_never_runs(self, index, result):
        models = self.world.pending()
        self.world.end(models[index % len(models)], RESULTS[result])

    @precondition(lambda self: [m for m in self.world.active() if not m.managers])
    @rule(index=INDEX, result=st.sampled_from(["completed", "failed"]))
    def bare_job_ends(self, index, result):
        models = [model for model in self.world.active() if not model.managers]
        self.end(models[index % len(models)], RESULTS[result])

    def finish(self, model):
        if model.state == "pending":
            self.end(model, JOB_CANCELED if model.cancel else REFUSED)
        elif model.cancel:
            self.end(model, JOB_CANCELED)
        elif model.exit_code:
            self.end(model, JobResult(JobStatus.FAILED, exit_code=model.exit_code))
        else:
            self.end(model, COMPLETED)

    def end(self, model, result):
        if not model.managers and model.state == "running":
            self.world.starts[model.job.task] += 1
        self.world.end(model, result)

    @rule(
        nodes=st.integers(1, 2),
        cores=st.sampled_from([2, 8]),
        gpus=st.integers(0, 2),
    )
    def capacity(self, nodes, cores, gpus):
        """The instance says that it is another one now; what it does is as before."""
        self.world.scheduler.handle(CapacityChanged(Capacity(nodes, cores, gpus)))

    @rule(node=st.integers(0, 1), cores=st.integers(1, 2))
    def somebody_else(self, node, cores):
        """A job of another program starts."""
        node %= len(self.world.free)
        if self.world.free[node][0] >= cores:
            self.world.occupy(node, cores)
            self.occupied.append((node, cores))

    @precondition(lambda self: self.occupied)
    @rule(index=INDEX)
    def somebody_else_ends(self, index):
        self.world.release(*self.occupied.pop(index % len(self.occupied)))

    @rule()
    def survey(self):
        """The instance says what is free."""
        self.world.scheduler.handle(self.world.usage())

    @rule(
        free=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2)), max_size=3),
        waiting=st.integers(0, 255),
        down=st.integers(0, 1),
        scope=st.integers(0, 2),
        others=st.sets(st.integers(1, 3)),
        executors=st.lists(st.tuples(st.integers(0, 4), st.sets(st.integers(1, 4))), max_size=2),
    )
    def wrong_survey(self, free, waiting, down, scope, others, executors):
        """The instance contradicts itself, or its answer is old."""
        jobs = [model.job for model in self.world.jobs.values()]
        lists = [], {}
        for index, job in enumerate(jobs[-8:]):
            if waiting >> index & 1:
                lists[1][job] = ""
            else:
                lists[0].append(job)
        truth = self.world.usage().capacity
        cores = [WorkerCores(held, {size: size for size in wanted}) for held, wanted in executors]
        self.world.scheduler.handle(UsageReported(truth, free, *lists, down, scope, others, cores))

    # -- messages ----------------------------------------------------------------------------------

    @precondition(lambda self: self.managers(with_up=True))
    @rule(index=INDEX, count=st.sampled_from([1, 2, 1000]))
    def hear(self, index, count):
        managers = self.managers(with_up=True)
        manager = managers[index % len(managers)]
        for _ in range(min(count, len(manager.up))):
            manager.up.popleft()(self.world.scheduler)

    @precondition(lambda self: self.managers(with_down=True))
    @rule(index=INDEX, count=st.sampled_from([1, 1000]))
    def tell(self, index, count):
        managers = self.managers(with_down=True)
        manager = managers[index % len(managers)]
        for _ in range(min(count, len(manager.down))):
            if manager.down:
                manager.receive()

    @rule(token=st.integers(0, 30))
    def stranger(self, token):
        """Somebody that nobody knows, or whose job has ended."""
        if token not in {model.job.token for model in self.world.jobs.values() if model.state != "ended"}:
            peer = ("stranger", token, self.world.now)
            scheduler = self.world.scheduler
            self.world.managers[peer] = Stranger()
            scheduler.handle(PeerConnected(peer, token, 2, "mars", 1, 0, 1))
            scheduler.handle(TaskOutcome(peer, 0, 1, b"mine"))
            scheduler.handle(TaskReturned(peer, 0, 1))
            scheduler.handle(WorkerDied(peer, 1, 2, 3))
            scheduler.handle(PeerLost(peer))
            scheduler.handle(PeerLost(peer))

    # -- workers -----------------------------------------------------------------------------------

    @precondition(lambda self: self.slots(running=False))
    @rule(index=INDEX)
    def begin(self, index):
        slots = self.slots(running=False)
        slot = slots[index % len(slots)]
        slot.manager.begin(slot)

    @precondition(lambda self: self.slots(running=True))
    @rule(index=INDEX, body=st.sampled_from([None, None, b"!raised"]))
    def finish_task(self, index, body):
        slots = self.slots(running=True)
        slot = slots[index % len(slots)]
        slot.manager.finish(slot, body)

    @precondition(lambda self: self.slots(running=True) or self.slots(running=False))
    @rule(index=INDEX, count=st.sampled_from([1, 5, 100]))
    def run_many(self, index, count):
        slots = self.slots(running=True) + self.slots(running=False)
        slot = slots[index % len(slots)]
        for _ in range(count):
            if slot.running is None and slot.queue:
                slot.manager.begin(slot)
            if slot.running is not None:
                slot.manager.finish(slot)

    @precondition(lambda self: self.managers(alive=True))
    @rule(index=INDEX, signal=st.sampled_from([None, 9]), idle=st.booleans())
    def worker_dies(self, index, signal, idle):
        slots = [slot for manager in self.managers(alive=True) for slot in manager.slots]
        slots = [slot for slot in slots if (slot.running is None) == idle] or slots
        slot = slots[index % len(slots)]
        slot.manager.die(slot, None if signal else 3, signal)

    @precondition(lambda self: self.managers(alive=True))
    @rule(index=INDEX, lose=st.sampled_from([0, 0, 1, 3, 1000]))
    def manager_vanishes(self, index, lose):
        managers = self.managers(alive=True)
        managers[index % len(managers)].end(137, lose)

    @precondition(lambda self: [m for m in self.world.active() if m.managers])
    @rule(index=INDEX, lose=st.sampled_from([0, 3]))
    def node_vanishes(self, index, lose):
        models = [model for model in self.world.active() if model.managers]
        model = models[index % len(models)]
        for manager in model.managers:
            manager.end(1, lose, silent=True)
        self.end(model, NODE_LOST)

    # -- what is always true -----------------------------------------------------------------------

    @invariant()
    def books_are_right(self):
        if hasattr(self, "world"):
            check_books(self.world)

    @invariant()
    def never_more_workers_than_tasks(self):
        if hasattr(self, "world"):
            for model in self.world.pending():
                if isinstance(model.job, WorkerJob):
                    asked = [t for t in self.world.tasks if t.resources.shape == model.job.shape]
                    # Workers that share cores or GPUs come by the whole unit, that of the nodes at that time.
                    assert model.job.slots <= max(len(asked), model.job.unit.workers)

    # -- in the end --------------------------------------------------------------------------------

    def teardown(self):
        if not hasattr(self, "world"):
            return
        world = self.world
        for node, cores in self.occupied:
            world.release(node, cores)
        world.answers = True
        for scope in (1, 2):  # parts that it does not have
            world.scheduler.handle(UsageReported(Capacity(0, 0, 0), (), [], {}, scope=scope))
        for _ in range(2_000 + 10 * len(world.tasks)):
            if not self.calm_step():
                deadline = world.scheduler.deadline()
                if deadline is None:
                    break
                world.now = max(world.now, deadline)
                world.take()
        else:
            raise AssertionError(f"it never comes to rest: {world.scheduler.status()} at {world.now}")
        world.check_all_ended(self.canceled, self.shut_down)
        assert all(model.state == "ended" for model in world.jobs.values()), "a job is left"
        status = world.scheduler.status()
        assert (status.pending, status.running, status.worker_jobs, status.task_jobs) == (0, 0, 0, 0)
        assert status.done + status.failed + status.canceled == len(world.tasks)

    def calm_step(self, run=True):
        """Let everything happen that is due, and nothing bad; whether anything was."""
        world = self.world
        world.now += 0.0001
        world.take()
        something = False
        for manager in self.managers(with_up=True):
            while manager.up:
                manager.up.popleft()(world.scheduler)
                something = True
        for manager in self.managers(with_down=True):
            while manager.down:
                manager.receive()
                something = True
        if something:
            return True
        self.nobody_idles()
        for slot in self.slots(running=False):
            if slot.running is None:
                slot.manager.begin(slot)
                something = True
        if run:
            for slot in self.slots(running=True):
                slot.manager.finish(slot)
                something = True
        for model in self.endable():
            self.finish(model)
            something = True
        for model in self.world.active() if run else ():
            if not model.managers:
                self.end(model, COMPLETED)
                something = True
        for model in self.startable():
            if (nodes := world.place(model)) is not None:
                world.start(model, nodes)
                something = True
        if something:
            world.take()
        return something

    def nobody_idles(self):
        """Every message has arrived: then no worker that may have tasks is without, while tasks wait."""
        waiting = {task.resources.shape for task in self.world.tasks if task.state is TaskState.PENDING}
        for model in self.world.active():
            job = model.job
            if isinstance(job, TaskJob) or not job.available or job.shape not in waiting:
                continue
            for manager in model.managers:
                assert manager.ended or all(slot.running or slot.queue for slot in manager.slots), "one idles"


class Stranger:
    """Takes what it is told, as somebody who is not there does."""

    ended = True
    up = ()
    down = ()


EXAMPLES = int(os.environ.get("SCHEDULER_EXAMPLES", "150"))

# Hypothesis takes a timeout for a failure, and then looks for minutes for a smaller example of it.
pytestmark = pytest.mark.timeout(4 * max(150, EXAMPLES))

TestChaos = Chaos.TestCase
TestChaos.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
