"""What this machine has, for the embedded instance."""

from __future__ import annotations

import os

from parsl_flux_bulk.errors import InstanceUnavailable
from parsl_flux_bulk.worker import affinity


def physical_cores() -> list[list[int]]:
    """Return the CPUs that this process may use, those of one physical core together."""
    return [list(core) for core in affinity.physical_cores()]


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
