"""Which cores and GPUs of a node each worker of a pool gets."""

from __future__ import annotations

import os

from parsl_flux_bulk.protocol.variables import CORES, GPUS, SLOTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

_DEVICE_LISTS = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "ZE_AFFINITY_MASK",
)
_RENUMBERED_BY_ROCR = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


class Binding:
    """One worker's share.

    Attributes
    ----------
    cpus : tuple of int
        Logical CPUs; empty if there are too few to give each worker its own, so that all share all.
    environment : dict
        Variables that differ from the pool's.
    """

    __slots__ = ("cpus", "environment")

    def __init__(self, cpus: tuple[int, ...], environment: dict[str, str]) -> None:
        self.cpus = cpus
        self.environment = environment


def siblings_of(cpu: int) -> list[int]:
    """Return the logical CPUs of the core that `cpu` is part of (Linux, ``topology``)."""
    try:
        with open(_SIBLINGS.format(cpu)) as file:
            return parse_list(file.read())
    except OSError:
        return [cpu]


def parse_list(text: str) -> list[int]:
    """Read the kernel's list format, such as ``0,4-6``."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def group_cores(
    cpus: Collection[int], siblings: Callable[[int], list[int]] = siblings_of
) -> list[tuple[int, ...]]:
    """Group the logical CPUs that we may use by physical core, in order of their numbers."""
    left, cores = set(cpus), []
    for cpu in sorted(cpus):
        if cpu in left:
            core = tuple(other for other in siblings(cpu) if other in left)
            left.difference_update(core, (cpu,))
            cores.append(core or (cpu,))
    return cores


def bindings(environ: Mapping[str, str], cpus: Collection[int] | None = None) -> list[Binding]:
    """Divide what this process may use among as many workers as fit, at least one.

    Parameters
    ----------
    environ
        Says how much each gets, and which GPUs there are.
    cpus
        Logical CPUs; by default those that this process may use.
    """
    cores = group_cores(os.sched_getaffinity(0) if cpus is None else cpus)
    cores_each = max(1, int(environ.get(CORES) or 1))
    gpus_each = max(0, int(environ.get(GPUS) or 0))
    lists = (
        {name: environ[name].split(",") for name in _DEVICE_LISTS if environ.get(name)} if gpus_each else {}
    )
    count = int(environ.get(SLOTS) or 0)
    if not count:
        count = min([len(cores) // cores_each, *(len(devices) // gpus_each for devices in lists.values())])
    count = max(1, count)
    own_cores = count * cores_each <= len(cores)
    shares = []
    for slot in range(count):
        mine = cores[slot * cores_each : (slot + 1) * cores_each] if own_cores else []
        environment = {"PARSL_WORKER_RANK": str(slot)}
        for name, devices in lists.items():
            share = devices[slot * gpus_each : (slot + 1) * gpus_each]
            if "ROCR_VISIBLE_DEVICES" in lists and name in _RENUMBERED_BY_ROCR:
                # AMD's runtime numbers what ROCR leaves visible from 0, and these lists use its numbers.
                share = [str(index) for index in range(len(share))]
            environment[name] = ",".join(share)
        shares.append(Binding(tuple(cpu for core in mine for cpu in core), environment))
    return shares
