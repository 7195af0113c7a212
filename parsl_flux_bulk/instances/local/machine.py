"""What this machine has, for the embedded instance."""

from __future__ import annotations

import os
from pathlib import Path

from parsl_flux_bulk.errors import InstanceUnavailable


def physical_cores() -> list[list[int]]:
    """The CPUs that this process may use, those of one physical core together."""
    usable = os.sched_getaffinity(0)
    cores: dict[str, list[int]] = {}
    for cpu in sorted(usable):
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            siblings = str(cpu)
        cores.setdefault(siblings.strip(), []).append(cpu)
    return list(cores.values())


def gpu_names(count: int) -> list[str] | None:
    """The names of the first `count` GPUs; None for none."""
    if not count:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(count)]
    names = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if count > len(names):
        raise InstanceUnavailable(f"gpus={count}: CUDA_VISIBLE_DEVICES={visible!r} names {len(names)}")
    return names[:count]
