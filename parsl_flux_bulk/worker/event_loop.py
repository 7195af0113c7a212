"""A pool's event loop: file descriptors and what to do when they are ready. asyncio would be 60 imports."""

from __future__ import annotations

import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class EventLoop:
    """Calls handlers of file descriptors that are ready. Belongs to one thread."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, handler: Callable[[], None], *, writable: bool = False) -> None:
        """Call `handler` whenever `fd` is readable, or writable, until `unwatch`."""
        self._poll.register(fd, select.EPOLLOUT if writable else select.EPOLLIN)
        self._handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Stop watching, before `fd` is closed; one that is not watched is passed over."""
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def watches(self, fd: int) -> bool:
        """Whether `fd` is being watched."""
        return fd in self._handlers

    def turn(self, timeout: float | None) -> None:
        """Wait for at most `timeout` seconds, None for ever, and call the handlers of what is ready."""
        for fd, _ in self._poll.poll(timeout):
            # A handler before this one may have ended the watch.
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()
