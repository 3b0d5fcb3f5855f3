"""One epoll for the descriptors of all containers, and one task that waits for it.

To have a task wait for each descriptor is what trio is made for, and what costs most for a
container that lives for milliseconds: each needs a task, a nursery around it and two system calls
too many (measured: a fifth of the supervisor's time for such a container). So what containers say
while they are short-lived, or quiet, comes by a callback; what is worth a task gets one (`pumps`).
"""

from __future__ import annotations

import logging
import select
from collections.abc import Callable

import trio

logger = logging.getLogger("craterun")


class Readiness:
    """Calls back when a descriptor is readable. `serve` sleeps in the kernel while none is.

    :ivar ended: nobody is called back any more
    """

    def __init__(self) -> None:
        self.ended = False
        self._set: select.epoll | None = None
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._opened = trio.Event()

    def _open(self) -> None:
        if self._set is None:
            self._set = select.epoll()
            self._opened.set()

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` on the event loop, again and again as long as ``fd`` is readable. It
        must not raise. `unwatch` before ``fd`` is closed: the keeper has a duplicate, and an epoll
        set does not forget what is still open somewhere (epoll(7)).

        :raises OSError: this process has no descriptor or memory left for it
        """
        self._open()
        assert self._set is not None
        self._set.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """No more calls; there are none anyway once `serve` has ended."""
        if self._set is not None:
            del self._callbacks[fd]
            self._set.unregister(fd)

    async def serve(self) -> None:
        """Until cancelled."""
        try:
            self._open()
        except OSError as error:
            # Out of descriptors: perhaps there are some when somebody has something to watch.
            logger.debug("no epoll set yet: %s", error)
            await self._opened.wait()
        assert self._set is not None
        callbacks = self._callbacks
        try:
            while True:
                await trio.lowlevel.wait_readable(self._set.fileno())
                for fd, _ in self._set.poll(0):
                    # One that was called before may have ended the watch of another.
                    if (callback := callbacks.get(fd)) is not None:
                        callback()
        finally:
            self.ended = True
            self._set.close()
            self._set = None
