"""An instance whose jobs end when the test says so, and requests for it."""

from __future__ import annotations

import itertools
import threading

from parsl_flux_bulk.errors import InstanceLost
from parsl_flux_bulk.instances.base import Capacity, ChannelAddress, JobRequest, Output, Refusal
from parsl_flux_bulk.jobspec import Jobspec


class FakeInstance:
    """An instance whose jobs end when the test says so."""

    def __init__(self, cores=2, nodes=1, gpus=0):
        self.description = f"{nodes} node(s) of {cores} core(s)"
        self.size = Capacity(nodes, nodes * cores, nodes * gpus)
        self.ids = itertools.count(1)
        self.requests = {}
        self.canceled = []
        self.sent = []
        self.watched = set()
        self.closed = False
        self.gone = False
        self.pending = []
        self.changed = threading.Condition()

    # -- what a test does --------------------------------------------------------------------------

    def tell(self, *events):
        with self.changed:
            self.pending += events
            self.changed.notify_all()

    def lose(self):
        with self.changed:
            self.gone = True
            self.changed.notify_all()

    def environment(self, job_id):
        return self.requests[job_id].jobspec.environment

    # -- the seam ----------------------------------------------------------------------------------

    def start(self):
        pass

    def connect(self):
        return FakeConnection(self)

    def completion(self):
        return FakeCompletion(self)

    def job_name(self, job_id):
        return f"f{job_id}"

    def close(self):
        self.closed = True


class FakeConnection:
    in_flight = 8

    def __init__(self, instance):
        self.instance = instance

    def capacity(self):
        return self.instance.size

    def submit(self, requests):
        if self.instance.gone:
            raise InstanceLost("broken")
        answers = []
        for request in requests:
            if request.jobspec.system.get("note") == "refuse":
                answers.append(Refusal("I refuse"))
                continue
            answers.append(next(self.instance.ids))
            self.instance.requests[answers[-1]] = request
        return answers

    def cancel(self, job_ids, reason):
        self.instance.canceled += job_ids

    def output(self, job_id, start):
        return Output(f"out of {job_id}", "", start)

    def close(self):
        pass


class FakeCompletion:
    def __init__(self, instance):
        self.instance = instance
        self.woken = False

    def channel(self):
        return ChannelAddress({"PARSL_FLUX_BULK_CHANNEL": f"to {id(self.instance)}"})

    def watch(self, job_id):
        self.instance.watched.add(job_id)

    def send(self, peer, body):
        self.instance.sent.append((peer, body))

    def poll(self, timeout):
        instance = self.instance
        with instance.changed:
            instance.changed.wait_for(lambda: instance.pending or instance.gone or self.woken, timeout)
            self.woken = False
            if instance.gone:
                raise InstanceLost("its host died")
            events, instance.pending = instance.pending, []
            return events

    def survey(self):
        """Nobody answers."""

    def wake(self):
        with self.instance.changed:
            self.woken = True
            self.instance.changed.notify_all()

    def close(self):
        pass


def request(cores=1, *, tasks=1, nodes=None, gpus=0, exclusive=False, duration=0, environment=None, note=""):
    inside = [{"type": "core", "count": cores}] + ([{"type": "gpu", "count": gpus}] if gpus else [])
    resource = {"type": "slot", "count": tasks, "label": "task", "with": inside}
    if nodes is not None:
        resource = {"type": "node", "count": nodes, "with": [resource]}
        if exclusive:
            resource["exclusive"] = True
    system = {"duration": duration, "environment": environment or {}, "note": note}
    tasks = [{"command": ["true"], "slot": "task", "count": {"per_slot": 1}}]
    return JobRequest(Jobspec({"resources": [resource], "tasks": tasks, "attributes": {"system": system}}))
