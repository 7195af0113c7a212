"""What this machine has for jobs of the embedded instance."""

from __future__ import annotations

import os
from dataclasses import dataclass

from parsl_flux_bulk.errors import InstanceUnavailable


@dataclass(frozen=True)
class Machine:
    """What jobs can request of this machine."""

    hostname: str
    cores: int
    gpus: int
    working_dir: str


def gpu_names(count: int) -> list[str] | None:
    """Return the names of the first `count` GPUs; None for none."""
    if not count:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(count)]
    names = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if count > len(names):
        raise InstanceUnavailable(f"gpus={count}: CUDA_VISIBLE_DEVICES={visible!r} names {len(names)}")
    return names[:count]
