"""Which jobs are packed, and when by default."""

from __future__ import annotations

from typing import Any

import pytest

from parsl_flux_bulk.blocks.packed.packed_jobs import pack
from parsl_flux_bulk.blocks.packed.placement import is_packable
from parsl_flux_bulk.cli.bulksubmit.packing import packs_by_default
from parsl_flux_bulk.instances.flux.instance import FluxInstance
from parsl_flux_bulk.instances.local.client import LocalInstance
from parsl_flux_bulk.jobspec import build
from parsl_flux_bulk.jobspec.resources import Resources


@pytest.mark.parametrize(
    ("specification", "packable"),
    [
        ({}, True),
        ({"cores_per_task": 4, "gpus_per_task": 1, "duration": 60}, True),
        ({"num_tasks": 2}, True),
        ({"num_tasks": 2, "shell_options": {"pmi": "off"}}, True),
        ({"num_tasks": 2, "shell_options": {"pmi": "pmix"}}, False),
        ({"num_tasks": 2, "shell_options": {"mpi": "none"}}, True),
        ({"num_nodes": 1, "exclusive": True}, False),
        ({"shell_options": {"cpu-affinity": "per-task"}}, True),
        ({"shell_options": {"cpu-affinity": "map:0-1"}}, False),
        ({"shell_options": {"pty": True}}, False),
    ],
    ids=str,
)
def test_what_is_packed(specification: dict[str, Any], packable: bool) -> None:
    jobspec = build(Resources.from_specification(specification), ["true"], environment={}, cwd="/")
    assert is_packable(jobspec, jobspec.demand) == packable


def test_the_default_is_for_many_jobs_in_an_own_instance() -> None:
    own = FluxInstance.own()
    assert [packs_by_default(own, jobs) for jobs in (1, 99, 100, 10**6)] == [False, False, True, True]
    assert not packs_by_default(FluxInstance.attach("local:///x"), 10**6)
    assert not packs_by_default(LocalInstance(), 10**6)


def test_an_instance_that_is_not_flux_stays_as_it_is() -> None:
    local = LocalInstance()
    assert pack(local) is local
