"""Pin workers: which cores and GPUs of a node each worker of a manager gets."""

from __future__ import annotations

import os

from parsl_flux_bulk.protocol.variables import CORES, GPUS, NODE_CORES, SHARING, SLOTS, UNPINNED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

_GPU_LISTS = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "ZE_AFFINITY_MASK",
)
_RENUMBERED_BY_ROCR = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


class Binding:
    """CPUs and environment of one worker.

    Attributes
    ----------
    cpus : tuple of int
        Logical CPUs; empty if the process may use fewer or more cores than the job got, so that all workers
        share all CPUs.
    environment : dict
        Variables that differ from the manager's.
    """

    __slots__ = ("cpus", "environment")

    def __init__(self, cpus: tuple[int, ...], environment: dict[str, str]) -> None:
        self.cpus = cpus
        self.environment = environment


def bindings(environ: Mapping[str, str], cores: Sequence[tuple[int, ...]] | None = None) -> list[Binding]:
    """Divide the CPUs and GPUs of this process among the workers of its job on this node, at least one.

    The job's cores count, not the CPUs: an instance may be configured with more cores than there are CPUs.
    Without affinity, this process may use all CPUs, and those of other jobs must not be taken. Workers of one
    unit share its GPUs, and its cores where they are fewer than the workers.

    Parameters
    ----------
    environ
        Gives the cores and GPUs of a unit, its workers, the cores that the job got here, and the available
        GPUs.
    cores
        Logical CPUs of each physical core; by default of those that this process may use.
    """
    cores = physical_cores() if cores is None else cores
    cores_each = max(1, int(environ.get(CORES) or 1))
    gpus_each = max(0, int(environ.get(GPUS) or 0))
    sharing = max(1, int(environ.get(SHARING) or 1))
    lists = {name: environ[name].split(",") for name in _GPU_LISTS if gpus_each and environ.get(name)}
    count = int(environ.get(SLOTS) or 0)
    given = environ.get(NODE_CORES) or ""  # an old version of Flux leaves the template as it is
    allocated = int(given) if given.isdecimal() else len(cores)
    if not count:
        count = sharing * min([allocated // cores_each, *(len(gpus) // gpus_each for gpus in lists.values())])
    count = max(1, count)
    pinned = UNPINNED not in environ and -(-count // sharing) * cores_each <= len(cores) <= allocated
    found = []
    for slot in range(count):
        unit, number = divmod(slot, sharing)
        own = cores[unit * cores_each : (unit + 1) * cores_each] if pinned else ()
        if sharing <= len(own):
            own = own[number * len(own) // sharing : (number + 1) * len(own) // sharing]
        environment = {"PARSL_WORKER_RANK": str(slot)}
        for name, gpus in lists.items():
            share = gpus[unit * gpus_each : (unit + 1) * gpus_each]
            if "ROCR_VISIBLE_DEVICES" in lists and name in _RENUMBERED_BY_ROCR:
                # AMD's runtime numbers the GPUs that ROCR leaves visible from 0; these lists use its numbers.
                share = [str(index) for index in range(len(share))]
            environment[name] = ",".join(share)
        found.append(Binding(tuple(cpu for core in own for cpu in core), environment))
    return found


def physical_cores(cpus: Collection[int] | None = None, siblings: str = SIBLINGS) -> list[tuple[int, ...]]:
    """Return the logical CPUs that this process may use, those of one physical core together.

    Parameters
    ----------
    cpus
        The CPUs to group; by default those that this process may use.
    siblings
        Path of the file that lists all CPUs of the core of CPU ``{}``.
    """
    cores: dict[str, list[int]] = {}
    for cpu in sorted(os.sched_getaffinity(0) if cpus is None else cpus):
        try:
            with open(siblings.format(cpu)) as file:
                core = file.read()
        except OSError:
            core = str(cpu)
        cores.setdefault(core, []).append(cpu)
    return [tuple(core) for core in cores.values()]
