"""Placement: which member gets a job. Policies know neither threads nor I/O.

A job goes, whole, to one member: the fullest of those where it can start now, so that others become idle and
can be released; else the one with the fewest cores waited for. A policy restricts the choice first.
"""

from __future__ import annotations

from collections.abc import Sequence

from parsl_flux_bulk.instances.base import Capacity, Refusal
from parsl_flux_bulk.instances.federation.members import Member
from parsl_flux_bulk.jobspec.jobspec import Demand, Jobspec


class Placement:
    """The policy for blocks: all members are alike, and their resources add up."""

    def label(self, member: Member) -> str:
        """Return the name of a member for messages."""
        return f"block {member.name}"

    def capacity(self, members: Sequence[Member]) -> Capacity:
        """Add up the resources of READY members."""
        sizes = [member.capacity for member in members]
        return Capacity(*(sum(getattr(size, name) for size in sizes) for name in ("nodes", "cores", "gpus")))

    def demand(self, jobspec: Jobspec) -> Demand:
        """Return what a job needs of a member."""
        return jobspec.demand

    def candidates(self, fitting: list[Member], demand: Demand) -> list[Member]:
        """Restrict the choice between the members that can run a job; return at least one of them."""
        return fitting

    def prepare(self, jobspecs: Sequence[Jobspec]) -> None:
        """Get ready to place these jobs; may block, unlike the other methods."""

    def preferred(self, members: list[Member]) -> list[Member]:
        """Return the members that the next jobs go to, unless they do not fit there."""
        return members

    def removed(self, member: Member) -> None:
        """Note that a member was removed."""

    def check(self) -> None:
        """Raise InstanceLost if no job can ever be placed again."""


def choose(candidates: Sequence[Member], demand: Demand) -> Member:
    """Choose the fullest member where the job can start now, else the one where it waits the least."""
    free_now = [member for member in candidates if member.free_cores >= member.cores_of(demand)]
    pick = min if free_now else max
    return pick(free_now or candidates, key=lambda member: member.free_cores)


def no_room(demand: Demand, members: Sequence[Member]) -> Refusal:
    """Refuse a request that exceeds every member."""
    largest = max(members, key=lambda member: member.capacity.cores).capacity
    wanted = f"{demand.nodes} node(s), {demand.cores} core(s), {demand.gpus} GPU(s)"
    if demand.duration:
        wanted += f" for {demand.duration:g} s"
    return Refusal(
        f"unsatisfiable request: no instance has {wanted}; the largest has {largest.nodes} node(s), "
        f"{largest.cores} core(s), {largest.gpus} GPU(s)"
    )
