"""Call a function with many items in one task; runs in a worker."""

from __future__ import annotations

import time

from parsl_flux_bulk.protocol import serialize

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


def run(function: Callable[..., Any], starred: bool, items: Sequence[Any]) -> tuple[float, bytes, bytes]:
    """Call a function with each item, or with the elements of each, until one raises an exception.

    Returns
    -------
    (seconds, results, failure)
        The time taken, the outcome with the list of results, and the outcome of the item that raised an
        exception, b"" if none did. Serialized here, so that the time includes it.
    """
    begun = time.perf_counter()
    values = []
    failure = b""
    try:
        if starred:
            for item in items:
                values.append(function(*item))
        else:
            for item in items:
                values.append(function(item))
    except Exception as error:
        failure = serialize.raised(error)
    results = serialize.returned(values)
    return time.perf_counter() - begun, results, failure
