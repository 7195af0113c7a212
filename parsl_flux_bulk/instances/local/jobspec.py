"""Translate a jobspec into a :class:`JobPlan`, or refuse it in words.

Pure: no I/O, no processes. The jobspec is valid already (:mod:`parsl_flux_bulk.jobspec`). Refused is
what would change what a job *is*, and cannot be had here: several nodes, queues, dependencies,
constraints that this host does not meet.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from parsl_flux_bulk.instances.local import options
from parsl_flux_bulk.instances.local.job_plan import JobPlan
from parsl_flux_bulk.instances.local.machine import Machine
from parsl_flux_bulk.instances.local.options import JsonObject
from parsl_flux_bulk.jobspec.common_parts import CommonParts
from parsl_flux_bulk.jobspec.jobspec import Jobspec

_OF_ANOTHER_INSTANCE = (
    "FLUX_URI",
    "FLUX_KVS_NAMESPACE",
    "FLUX_JOB_ID_PATH",
    "FLUX_PROXY_REMOTE",
    "PMI_FD",
    "PMI_RANK",
    "PMI_SIZE",
)
"""A jobspec made inside a Flux job may carry these; here they would lead to the wrong instance."""


MAX_TASKS = 4096
"""Tasks of one job at most; the server starts them all before it does anything else."""


class PlanWriter:
    """Makes of each job what a :class:`.job_plan.PlanReader` reads.

    What a jobspec has in common with the one before is neither translated nor sent again.
    """

    def __init__(self, machine: Machine, flux_uri: str = "") -> None:
        self._machine = machine
        self._flux_uri = flux_uri
        self._parts = CommonParts()

    def write(self, jobspec: Jobspec, urgency: int) -> list[Any]:
        """Translate a jobspec; raises as `plan_job`."""
        parts = self._parts.split(jobspec)
        system = JsonObject(jobspec.system, "attributes.system")
        environment = None
        if parts.environment is not None:
            environment = _without_other_instance(system.object("environment").strings())
            if self._flux_uri:
                environment["FLUX_URI"] = self._flux_uri
        own = _without_other_instance(JsonObject(parts.own, "attributes.system.environment").strings())
        plan = None if parts.same else plan_job(jobspec, self._machine, urgency)
        command = jobspec.data["tasks"][0]["command"]
        self._parts.sent(parts)
        return [plan, command, _job_name(system, command), urgency, environment, own]


def _without_other_instance(environment: dict[str, str]) -> dict[str, str]:
    for name in _OF_ANOTHER_INSTANCE:
        environment.pop(name, None)
    return environment


class Unsatisfiable(Exception):
    """A valid request that this instance can never satisfy."""


def plan_job(jobspec: Jobspec, machine: Machine, urgency: int) -> JobPlan:
    """Translate a jobspec.

    Raises
    ------
    JobspecError
        A value has the wrong type, which Flux would notice only as it starts the job; says where.
    Unsatisfiable
        The jobspec asks for what this machine does not have.
    """
    system = JsonObject(jobspec.system, "attributes.system")
    totals, exclusive = jobspec.count_resources()
    _check_fit(totals, machine)
    _check_conditions(jobspec.system, machine)
    tasks = jobspec.data["tasks"]
    if len(tasks) > 1:
        raise Unsatisfiable(f"{len(tasks)} entries of 'tasks': the embedded instance takes one")
    command = tasks[0]["command"]
    shell = system.object("shell").object("options")
    ntasks, tasks_per_core = options.tasks_per_resource(shell, tasks[0]["count"].get("total", totals["slot"]))
    if (count := ntasks or tasks_per_core * totals["core"]) > MAX_TASKS:
        raise Unsatisfiable(
            f"unsatisfiable request: {count} tasks; the embedded instance runs at most {MAX_TASKS} in a job"
        )
    stdout, stderr = options.output_streams(shell)
    cwd = jobspec.system.get("cwd", "")
    return JobPlan(
        command=command,
        cwd=cwd if cwd.startswith("{{") else os.path.join(machine.working_dir, cwd),
        name=_job_name(system, command),
        urgency=urgency,
        cores=totals["core"],
        gpus=totals["gpu"],
        exclusive=exclusive,
        ntasks=ntasks,
        tasks_per_core=tasks_per_core,
        duration=system.seconds("duration", 0),
        affinity=options.affinity(shell.get("cpu-affinity")),
        gpu_affinity=options.affinity(shell.get("gpu-affinity")),
        stdin=options.input_path(shell),
        stdout=stdout,
        stderr=stderr,
        rlimits=shell.object("rlimit").integers(),
        env_expand=shell.object("env-expand").strings(),
        exit_timeout=options.exit_timeout(shell),
        exit_on_error=bool(shell.get("exit-on-error")),
        pmi=shell.get("pmi") != "off",
        signal=options.warning_signal(shell),
    )


def _job_name(system: JsonObject, command: list[str]) -> str:
    job = system.object("job")
    return job.text("name") if "name" in job else os.path.basename(command[0])


def _check_fit(totals: Counter[str], machine: Machine) -> None:
    here = f"the embedded instance on {machine.hostname} has"
    for kind, available, name in (
        ("node", 1, "node"),
        ("core", machine.cores, "core"),
        ("gpu", machine.gpus, "GPU"),
    ):
        if totals[kind] > available:
            plural = "s" * (totals[kind] != 1)
            raise Unsatisfiable(f"unsatisfiable request: {totals[kind]} {name}{plural}; {here} {available}")
    if unknown := totals.keys() - {"node", "slot", "core", "gpu"}:
        raise Unsatisfiable(
            f"unsatisfiable request: resources of type {', '.join(map(repr, sorted(unknown)))}; "
            f"{here} 'node', 'slot', 'core' and 'gpu'"
        )
    if not totals["slot"] or not totals["core"]:
        raise Unsatisfiable("unsatisfiable request: resources need a 'slot' with at least one 'core'")


def _check_conditions(system: Mapping[str, Any], machine: Machine) -> None:
    if system.get("queue"):
        raise Unsatisfiable(f"queue {system['queue']!r}: the embedded instance has no queues")
    if system.get("dependencies"):
        raise Unsatisfiable("dependencies: the embedded instance has none; run the jobs one after the other")
    constraints = system.get("constraints")
    if constraints and not _meets(constraints, machine):
        raise Unsatisfiable(f"constraints {json.dumps(constraints)}: {machine.hostname} does not meet them")


def _meets(constraint: Mapping[str, list[Any]], machine: Machine) -> bool:
    """Evaluate an RFC 31 constraint for this host, which has no properties and is rank 0."""
    return all(_meets_term(operator, values, machine) for operator, values in constraint.items())


def _meets_term(operator: str, values: list[Any], machine: Machine) -> bool:
    if operator == "hostlist":
        return machine.hostname in values or "localhost" in values
    if operator == "ranks":
        return any(value.split("-")[0].split(",")[0] == "0" for value in values)
    if operator == "properties":  # "^p" asks for nodes without p
        return all(value.startswith("^") for value in values)
    met = [_meets(value, machine) for value in values]
    return {"and": all(met), "or": any(met), "not": not all(met)}[operator]
