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
    uri : str
        That of the instance on its own host.
    capacity : Capacity
    """

    version: str
    owner: int
    uri: str
    capacity: Capacity


def probe(uri: str) -> Probe:
    """Return what the instance at a URI says.

    Raises
    ------
    InstanceUnavailable
        The instance cannot be reached, or does not answer in time, or there are no bindings.
    """
    import_bindings()
    try:
        answer = ask(uri, PROBE_TIMEOUT)
    except OSError as error:
        raise InstanceUnavailable(f"cannot reach {uri}: {error.strerror or error}") from error
    if answer is None:
        why = f"did not answer within {PROBE_TIMEOUT:g} s: its broker is stopped or hung"
        raise InstanceUnavailable(f"{uri} {why}")
    return answer


def ask(uri: str | None, timeout: float) -> Probe | None:
    """Return what an instance says, None if it does not answer in time; raise OSError if it is not there.

    Parameters
    ----------
    uri : str or None
        None is the enclosing instance.
    timeout : float
        Seconds.
    """
    answer: Future[Probe] = Future()
    # In a thread of its own: the bindings wait without limit for a broker that is frozen.
    threading.Thread(target=_ask, args=(uri, answer), name="flux-bulk-probe", daemon=True).start()
    return answer.result() if wait([answer], timeout).done else None


def _ask(uri: str | None, answer: Future[Probe]) -> None:
    try:
        handle = open_handle(uri)
        version, local_uri, owner = map(handle.attr_get, ("version", "local-uri", "security.owner"))
        result = Probe(version, int(owner), local_uri, capacity_of(handle))
    except BaseException as error:
        answer.set_exception(error)
    else:
        answer.set_result(result)
