"""The values of mustache templates (``{{id}}``) in the jobspec of a task. Runs in the server."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence

HOSTNAME = socket.gethostname()

_TEMPLATE = re.compile(r"\{\{([a-z0-9._]+)\}\}")


class TaskValues:
    """Of one task; see flux-submit(1). All forms of the id are decimal here but hex.

    Attributes
    ----------
    job_id, rank : int
    size : int
        Number of tasks of the job.
    tmpdir : str
        The job's scratch directory.
    """

    def __init__(
        self, job_id: int, name: str, size: int, cores: Sequence[int], gpus: Sequence[int], tmpdir: str,
        rank: int = 0,
    ) -> None:  # fmt: skip
        self.job_id = job_id
        self.name = name
        self.size = size
        self.cores = cores
        self.gpus = gpus
        self.tmpdir = tmpdir
        self.rank = rank
        self._values: dict[str, str] = {}

    def of_task(self, rank: int) -> TaskValues:
        """Return the values of another task of the job."""
        return TaskValues(self.job_id, self.name, self.size, self.cores, self.gpus, self.tmpdir, rank)

    def render(self, text: str) -> str:
        """Replace the tags ``{{…}}`` in `text`; an unknown one stays."""
        if "{{" not in text:
            return text
        values = self._values = self._values or self._all()
        return _TEMPLATE.sub(lambda match: values.get(match[1], match[0]), text)

    def _all(self) -> dict[str, str]:
        job_id, size, task = str(self.job_id), str(self.size), str(self.rank)
        return {
            "id": job_id, "jobid": job_id, "id.dec": job_id, "id.f58": job_id, "id.hex": hex(self.job_id),
            "name": self.name, "nnodes": "1", "size": size, "ntasks": size,
            "taskid": task, "task.id": task, "task.rank": task, "task.index": task, "task.localid": task,
            "node.id": "0", "node.name": HOSTNAME, "node.broker_rank": "0",
            "node.cores": ",".join(map(str, self.cores)), "node.ncores": str(len(self.cores)),
            "node.gpus": ",".join(map(str, self.gpus)), "tmpdir": self.tmpdir,
        }  # fmt: skip
