"""Submit to and cancel in a Flux instance, over a handle that belongs to one thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parsl_flux_bulk.instances.base import Capacity, JobId, JobRequest, Refusal
from parsl_flux_bulk.instances.flux.cancel_jobs import MARK
from parsl_flux_bulk.instances.flux.handle import capacity_of, raise_if_lost
from parsl_flux_bulk.instances.flux.results import read_output


class FluxConnection:
    """Submits and cancels jobs; see :class:`~parsl_flux_bulk.instances.base.Connection`.

    Parameters
    ----------
    handle : flux.Flux
    mark : str
        For the cancel guard: what to mark jobs with; "" marks none.
    """

    def __init__(self, handle: Any, mark: str = "") -> None:
        self._handle = handle
        self._mark = {MARK: mark} if mark else {}

    def submit(self, requests: Sequence[JobRequest]) -> list[JobId | Refusal]:
        from flux.job import submit_async

        in_flight: list[Any] = []
        for request in requests:
            try:
                in_flight.append(
                    submit_async(
                        self._handle,
                        request.jobspec.with_system(**self._mark).text,
                        urgency=request.urgency,
                        waitable=True,
                        novalidate=True,
                    )
                )
            except (OSError, ValueError) as error:
                in_flight.append(_refusal(error))
        answers = [_answer(future) for future in in_flight]
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

    def output(self, job_id: JobId) -> tuple[str, str]:
        from flux.job import job_info_lookup

        try:
            log = job_info_lookup(self._handle, job_id, keys=["guest.output"]).get()["guest.output"]
        except OSError as error:
            raise_if_lost(error)
            return "", ""
        return read_output(log)

    def capacity(self) -> Capacity:
        try:
            return capacity_of(self._handle)
        except OSError as error:
            raise_if_lost(error)
            raise

    def close(self) -> None:
        self._handle = None


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
