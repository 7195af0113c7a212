"""The event loop of a manager: file descriptors and their handlers. asyncio would cost 60 imports."""

from __future__ import annotations

import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class EventLoop:
    """Calls the handlers of file descriptors that are ready. Belongs to one thread."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], object]] = {}

    def watch(self, fd: int, handler: Callable[[], object], *, writable: bool = False) -> None:
        """Call `handler` whenever `fd` is readable, or writable, until `unwatch`."""
        self._poll.register(fd, select.EPOLLOUT if writable else select.EPOLLIN)
        self._handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`; call this before closing it. Does nothing if `fd` is not watched."""
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def watches(self, fd: int) -> bool:
        """Return whether `fd` is watched."""
        return fd in self._handlers

    def run_once(self, timeout: float | None) -> None:
        """Wait at most `timeout` seconds, None for ever, and call the handlers of what is ready."""
        for fd, _ in self._poll.poll(timeout):
            # A handler called before may have ended the watch.
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()
