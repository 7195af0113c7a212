"""What this machine has for jobs of the embedded instance. Runs in the user's process."""

from __future__ import annotations

import os
from dataclasses import dataclass

from parsl_flux_bulk.errors import InstanceUnavailable
from parsl_flux_bulk.protocol import variables

_DIRECTORIES = ("/dev/shm", "/tmp")
"""Where the file is: not in TMPDIR, which may differ between two scripts of a user."""


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


def claims_path() -> str:
    """Return the path of the file with the claims of this user.

    Raises
    ------
    InstanceUnavailable
        The environment names a directory that does not exist.
    """
    named = os.environ.get(variables.CLAIMS)
    if named and not os.path.isdir(named):
        raise InstanceUnavailable(
            f"{variables.CLAIMS}={named!r} is not a directory; set it to one, or unset it"
        )
    directory = named or next(filter(os.path.isdir, _DIRECTORIES), _DIRECTORIES[-1])
    return os.path.join(directory, f"parsl-flux-bulk-{os.getuid()}.cores")
