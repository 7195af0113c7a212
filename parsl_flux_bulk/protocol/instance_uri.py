"""``FLUX_URI`` in a task: hidden, because the task holds cores for which jobs in that instance could wait.

::

    flux run    ──> an error, which quotes NO_INSTANCE
    flux start  ──> worker/flux_commands/flux-broker ──> a broker, with the URI of the instance around it
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping

INSTANCE_URI = "PARSL_WORKER_FLUX_URI"
"""Variable with the URI of the instance that runs a task, for code that wants that instance all the same."""

NO_INSTANCE = f"no instance in this task; give the task nested=True, or use {INSTANCE_URI}"
"""``FLUX_URI`` in a task: clients of Flux quote the value in their error, of at most 159 bytes. No colon: a
value with one is a URI."""

NO_INSTANCE_PACKED = "no instance in a packed job; use bulksubmit --no-packed, or 'flux start flux run'"
"""``FLUX_URI`` in a packed job. Without any, clients would go to the system instance, if there is one."""

_URI = "FLUX_URI"
_SEARCH_PATH = "FLUX_EXEC_PATH_PREPEND"

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_COMMANDS = os.path.join(_PACKAGE, "worker", "flux_commands")
"""Directory in which ``flux`` looks for its commands first."""

HIDING_COMMAND = (
    "sh",
    "-c",
    f'[ -z "${_URI}" ] || export {INSTANCE_URI}="${_URI}" {_URI}="{NO_INSTANCE}" '
    f'{_SEARCH_PATH}="$0${{{_SEARCH_PATH}:+:${_SEARCH_PATH}}}"; exec "$@"',
    _COMMANDS,
)
"""Runs a command with the environment that `hide` makes."""


def hide(environ: MutableMapping[str, str]) -> None:
    """Keep clients of Flux in a task from submitting to the instance that runs the task."""
    if uri := environ.get(_URI):
        environ[INSTANCE_URI] = uri
        environ[_URI] = NO_INSTANCE
        further = environ.get(_SEARCH_PATH)
        environ[_SEARCH_PATH] = f"{_COMMANDS}:{further}" if further else _COMMANDS


def forget_hidden(environ: MutableMapping[str, str]) -> None:
    """Remove the URI if it is hidden: a program that a task starts chooses an instance by its absence."""
    if environ.get(_URI) == NO_INSTANCE:
        del environ[_URI]
