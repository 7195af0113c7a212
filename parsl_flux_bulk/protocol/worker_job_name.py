"""The names of worker jobs, by which executors in one Flux instance know each other's.

Of what Flux lists of all jobs, nothing else is free to choose: other attributes have a meaning, and
annotations cannot be set on submission. A name begins with the executor's label, for people who read the
output of flux-jobs(1).
"""

from __future__ import annotations

import re
import uuid
from typing import NamedTuple

_NAME = re.compile(r"\.flux-bulk-([0-9a-f]{16})-(\d+)c(\d+)g\Z")


class WorkerJobName(NamedTuple):
    """What the name of a worker job says.

    Attributes
    ----------
    mark : str
        Of the executor.
    cores, gpus : int
        Those that each unit of workers needs on one node.
    """

    mark: str
    cores: int
    gpus: int

    def with_label(self, label: str) -> str:
        """Return the name."""
        return f"{label}.flux-bulk-{self.mark}-{self.cores}c{self.gpus}g"


def new_mark() -> str:
    """Return what marks the worker jobs of one executor, and of no other."""
    return uuid.uuid4().hex[:16]


def parse_name(name: str) -> WorkerJobName | None:
    """Return what a job's name says; None if it is not a worker job of an executor."""
    found = _NAME.search(name)
    return WorkerJobName(found[1], int(found[2]), int(found[3])) if found else None
