"""Start one process of a job. Runs in the server.

``posix_spawn`` costs a quarter of ``subprocess.Popen``, which remains for what it cannot do.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence

_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python ignores, and that its children must not."""

_DEFAULT_PATH = os.fsencode(os.defpath)

_REMEMBERED = 1000
"""Programs whose paths are remembered, at most."""


class PrepareFailed(Exception):
    """`prepare` raised in the new process."""


_found: dict[tuple[bytes, bytes], bytes] = {}  # PATH and program -> path


def spawn(
    argv: list[str],
    environment: Mapping[bytes, bytes],
    descriptors: Sequence[int],
    prepare: Callable[[], None] | None = None,
) -> int:
    """Start a process in the current directory, in a session of its own; return its pid.

    Parameters
    ----------
    argv : list of str
        The program is searched in the ``PATH`` of `environment`, as execvp(3) does. A script without "#!"
        goes to the shell.
    descriptors : sequence of int
        Become the process's descriptors 0, 1, 2, … It has no others.
    prepare : callable or None
        Called in the new process.

    Raises
    ------
    OSError, ValueError
        The process cannot be started.
    PrepareFailed
    """
    failure: OSError | None = None
    for path in _candidates(argv[0], environment):
        try:
            return _start(path, argv, environment, descriptors, prepare)
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                shell = ["/bin/sh", os.fsdecode(path), *argv[1:]]
                return _start(b"/bin/sh", shell, environment, descriptors, prepare)
            if failure is None or error.errno not in (errno.ENOENT, errno.ENOTDIR):
                failure = error
    raise failure or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _candidates(program: str, environment: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """Yield the paths where a program may be, the one where it was found last first, as shells do."""
    name = os.fsencode(program)
    if b"/" in name:
        yield name
        return
    path = environment.get(b"PATH", _DEFAULT_PATH)
    found = _found.get((path, name))
    if found is not None:
        yield found
        del _found[path, name]  # not there any more, or the caller would not have asked again
    for directory in path.split(b":"):
        candidate = directory + b"/" + name if directory else name
        try:
            os.stat(candidate)
        except OSError:
            continue
        if directory.startswith(b"/"):
            if len(_found) >= _REMEMBERED:
                _found.clear()
            _found[path, name] = candidate
        yield candidate


def _start(
    path: bytes,
    argv: list[str],
    environment: Mapping[bytes, bytes],
    descriptors: Sequence[int],
    prepare: Callable[[], None] | None,
) -> int:
    if prepare is None:
        actions = [(os.POSIX_SPAWN_DUP2, descriptor, number) for number, descriptor in enumerate(descriptors)]
        try:
            return os.posix_spawn(
                path, argv, environment, file_actions=actions, setsid=True, setsigdef=_RESTORED
            )
        except NotImplementedError:  # glibc before 2.26 has no POSIX_SPAWN_SETSID
            pass
    stdio, others = descriptors[:3], descriptors[3:]

    def in_child() -> None:
        for number, descriptor in enumerate(others, 3):
            os.dup2(descriptor, number)
        if prepare is not None:
            prepare()

    import subprocess  # slow to import

    try:
        process = subprocess.Popen(
            argv, executable=path, env=environment, start_new_session=True, preexec_fn=in_child,
            stdin=stdio[0], stdout=stdio[1], stderr=stdio[2], pass_fds=range(3, len(descriptors)),
        )  # fmt: skip
    except subprocess.SubprocessError as error:
        raise PrepareFailed(str(error)) from error
    process.returncode = 0  # the server reaps it; Popen must not, nor warn that nobody did
    return process.pid


class Limits:
    """Makes what sets the soft limits of a job in its process."""

    def __init__(self) -> None:
        self._last: Mapping[str, int] = {}
        self._setter: Callable[[], None] | None = None

    def setter(self, limits: Mapping[str, int]) -> Callable[[], None] | None:
        """Return what sets these soft limits; None where they are in force already.

        A limit above the hard one is lowered to it; one of an unknown name is ignored.
        """
        if limits != self._last:
            self._last, self._setter = limits, _limits_setter(limits)
        return self._setter


def _limits_setter(limits: Mapping[str, int]) -> Callable[[], None] | None:
    changes = []
    for name, value in limits.items():
        number = getattr(resource, f"RLIMIT_{name.upper()}", None)
        if number is None:
            continue
        soft, hard = resource.getrlimit(number)
        if hard != resource.RLIM_INFINITY and (value == resource.RLIM_INFINITY or value > hard):
            value = hard
        if value != soft:
            changes.append((number, (value, hard)))
    if not changes:
        return None

    def set_limits() -> None:
        for number, pair in changes:
            resource.setrlimit(number, pair)

    return set_limits
