"""Ask an instance what it is, within a bound, without using it."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass

from parsl_flux_bulk.errors import InstanceUnavailable
from parsl_flux_bulk.instances.base import Capacity
from parsl_flux_bulk.instances.flux.handle import capacity_of, import_bindings, open_handle

PROBE_TIMEOUT = 20.0
"""Seconds within which the instance must answer."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What an instance says of itself.

    Attributes
    ----------
    version : str
        Of flux-core.
    owner : int
        User id; any other user is a guest.
    capacity : Capacity
    """

    version: str
    owner: int
    capacity: Capacity


def probe(uri: str, timeout: float = PROBE_TIMEOUT) -> Probe:
    """Return what the instance at a URI says.

    Raises
    ------
    InstanceUnavailable
        The instance cannot be reached, or does not answer in time, or there are no bindings.
    """
    import_bindings()
    answer: Future[Probe] = Future()
    # In a thread of its own: the bindings wait without limit for a broker that is frozen.
    threading.Thread(target=_ask, args=(uri, answer), name="flux-bulk-probe", daemon=True).start()
    if not wait([answer], timeout).done:
        raise InstanceUnavailable(f"{uri} did not answer within {timeout:g} s: its broker is stopped or hung")
    try:
        return answer.result()
    except OSError as error:
        raise InstanceUnavailable(f"cannot reach {uri}: {error.strerror or error}") from error


def _ask(uri: str, answer: Future[Probe]) -> None:
    try:
        handle = open_handle(uri)
        version, owner = handle.attr_get("version"), int(handle.attr_get("security.owner"))
        result = Probe(version, owner, capacity_of(handle))
    except BaseException as error:
        answer.set_exception(error)
    else:
        answer.set_result(result)
