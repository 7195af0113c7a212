"""Submit to and cancel in a Flux instance, over a handle that belongs to one thread."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from typing import Any

from parsl_flux_bulk.errors import OutputUnavailable
from parsl_flux_bulk.instances.base import (
    FLUX_IN_FLIGHT,
    Capacity,
    JobId,
    JobRequest,
    Output,
    Position,
    Refusal,
)
from parsl_flux_bulk.instances.flux import output_log
from parsl_flux_bulk.instances.flux.cancel_marked_jobs import MARK
from parsl_flux_bulk.instances.flux.handle import capacity_of, raise_if_lost
from parsl_flux_bulk.instances.flux.results import read_output
from parsl_flux_bulk.instances.flux.shell_options import OutputFiles, complete, spool_paths
from parsl_flux_bulk.instances.output_parts import read_files


class FluxConnection:
    """Submits and cancels jobs; see :class:`~parsl_flux_bulk.instances.base.Connection`.

    Parameters
    ----------
    handle : flux.Flux
    files : dict
        The output files of submitted jobs, for the completion.
    spool : str
        Directory for output without a file; "" leaves such output to the instance.
    mark : str
        For the cancel guard: what to mark jobs with; "" marks none.
    """

    in_flight = FLUX_IN_FLIGHT

    def __init__(self, handle: Any, files: dict[JobId, OutputFiles], spool: str, mark: str = "") -> None:
        self._handle = handle
        self._files = files
        self._spool = spool
        self._mark = {MARK: mark} if mark else {}

    def submit(self, requests: Sequence[JobRequest]) -> list[JobId | Refusal]:
        from flux.job import submit_async

        in_flight: list[Any] = []
        files: list[OutputFiles] = []
        for request in requests:
            jobspec, output = complete(request.jobspec, self._spool)
            files.append(output)
            try:
                in_flight.append(
                    submit_async(
                        self._handle,
                        _sign(jobspec.with_system(**self._mark).text),
                        urgency=request.urgency,
                        waitable=True,
                        pre_signed=True,
                        novalidate=True,
                    )
                )
            except (OSError, ValueError) as error:
                in_flight.append(_refusal(error))
        answers = [_answer(future) for future in in_flight]
        for answer, output in zip(answers, files, strict=True):
            if not isinstance(answer, Refusal) and output.stdout + output.stderr:
                self._files[answer] = output
        if any(isinstance(answer, Refusal) for answer in answers):
            self._check_connection()
        return answers

    def _check_connection(self) -> None:
        """Raise InstanceLost if the broker has ended.

        A request in flight when the broker dies fails with the last errno, such as ENOENT, as if the
        instance had refused the job.
        """
        try:
            self._handle.rpc("attr.get", {"name": "rank"}).get()
        except OSError as error:
            raise_if_lost(error)

    def cancel(self, job_ids: Sequence[JobId], reason: str) -> None:
        from flux.job import cancel_async

        in_flight = [cancel_async(self._handle, job_id, reason) for job_id in job_ids]
        for future in in_flight:
            try:
                future.get()
            except OSError as error:
                raise_if_lost(error)

    def output(self, job_id: JobId, start: Position) -> Output:
        if self._spool and (kept := read_files(spool_paths(self._spool, job_id), start)):
            return kept
        try:
            found = output_log.blobs(output_log.look_up(self._handle, job_id))
            for number, blob in enumerate(found[start[0] :], start=start[0]):
                if isinstance(blob, str):
                    blob = output_log.content(output_log.load(self._handle, blob))
                if any(texts := read_output(blob.decode(errors="replace"))):
                    return Output(*texts, (number + 1, 0))
            return Output("", "", (len(found), 0))
        except OSError as error:
            raise_if_lost(error)
            self._check_known(job_id)
            return Output("", "", start)

    def _check_known(self, job_id: JobId) -> None:
        """Raise OutputUnavailable for an unknown job; one that is known has not started, or never did."""
        from flux.job import job_info_lookup

        try:
            job_info_lookup(self._handle, job_id, keys=["eventlog"]).get()
        except OSError as error:
            raise_if_lost(error)
            raise OutputUnavailable(
                f"the instance has no job {job_id} any more, nor its output: Flux forgets old jobs "
                "(inactive-num-limit, inactive-age-limit). Read the output soon after the job's end, "
                "or name a file for it"
            ) from error

    def capacity(self) -> Capacity:
        try:
            return capacity_of(self._handle)
        except OSError as error:
            raise_if_lost(error)
            raise

    def close(self) -> None:
        self._handle = None


def _sign(jobspec: str) -> str:
    """Sign a jobspec as flux_job_submit(3) does for the owner of the instance, with the mechanism "none".

    Without flux-security, flux_job_submit of flux-core 0.88 never frees what it has signed.
    """
    header = f"version\0i1\0userid\0i{os.getuid()}\0mechanism\0snone\0"
    return ".".join((*(base64.b64encode(part.encode()).decode() for part in (header, jobspec)), "none"))


def _answer(future: Any) -> JobId | Refusal:
    if isinstance(future, Refusal):
        return future
    try:
        return int(future.get_id())
    except OSError as error:
        return _refusal(error)


def _refusal(error: OSError | ValueError) -> Refusal:
    if isinstance(error, OSError):
        raise_if_lost(error)
        return Refusal(error.strerror or str(error))
    return Refusal(str(error))
