"""The OOM monitor: one task for all containers of a supervisor, woken by the kernel.

A counter is cumulative and is read once more when its container has ended, so being told of changes
serves two purposes only: to report a killed child while the container lives on, and to find out at
once that the container does live on, which is what acquits the first process later (`core.oom`).
Neither is of use for a container that ends within milliseconds, and to be told costs as many system
calls as such a container can ill afford (measured with version 1: 31 µs, for 8 µs of the last
reading alone). So a container is watched only when it has lived for `SETTLED_SECONDS`; what was
killed before that is seen at that time, or at the end. The descriptor that it takes is there from
the start on: else starts that come in the meantime could leave none.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import select
from collections.abc import Callable

import trio

from craterun.core.life import Process
from craterun.core.oom import OomCount
from craterun.core.spec import HostFacts
from craterun.linux.oom import MemoryCgroup, is_process_doomed

logger = logging.getLogger("craterun")

SETTLED_SECONDS = 0.02
"""From then on, a container is watched."""

_LOOK_AGAIN_SECONDS = tuple(0.001 * 2**n for n in range(11))
"""Version 1 announces a kill and then kills, or finds that it need not: looked for so often after
an announcement, and no more. In between the kernel may write its report to a slow console."""


def _ignore() -> None:
    """Nobody wants to know."""


class OomWatch:
    """One container's counter. Made by `OomMonitor.watch`, ended by `OomMonitor.unwatch`.

    :ivar count: what is known so far
    :ivar error: why it could not be read, though there should be one
    """

    __slots__ = (
        "cgroup", "count", "due", "ended", "error", "key", "looks", "on_change", "process",
    )  # fmt: skip

    def __init__(
        self,
        cgroup: MemoryCgroup | None,
        process: Process | None,
        known: OomCount,
        on_change: Callable[[], None],
    ) -> None:
        self.cgroup = cgroup
        self.process = process
        self.count = known
        self.on_change = on_change
        self.key = -1
        self.due = math.inf
        self.looks = 0
        self.ended = False
        self.error: OSError | None = None

    def read(self) -> bool:
        """Bring `count` up to date. Whether there are more kills than before.

        :raises OSError: the cgroup is gone, or does not count
        """
        if self.cgroup is None:
            return False
        before = self.count.kills or 0
        kills = max(before, self.cgroup.kills())
        cleared = self.count.cleared
        # In this order, for the reason given in `core.oom`.
        if kills > cleared and self.process is not None:
            doomed = is_process_doomed(self.process.pid, self.process.start_time)
            cleared = cleared if doomed else kills
        self.count = OomCount(kills, cleared)
        return kills > before

    def limit(self) -> int | None:
        """The cgroup's own limit in bytes, if it has one."""
        return None if self.cgroup is None else self.cgroup.limit()

    @property
    def init_alive(self) -> bool:
        """Whether the first process is known to have survived all kills."""
        return (self.count.kills or 0) <= self.count.cleared


class OomMonitor:
    """Watches counters. Its task, `serve`, sleeps in the kernel while nothing happens."""

    def __init__(self, facts: HostFacts) -> None:
        self._facts = facts
        self._set: select.epoll | None = None
        self._watched: dict[int, OomWatch] = {}
        self._due: dict[OomWatch, None] = {}
        """Watches with something to do at a time; in no order."""
        self._sleep = trio.CancelScope()
        self._called = trio.Event()

    def watch(
        self,
        cgroups: tuple[str, ...],
        process: Process | None,
        known: OomCount,
        on_change: Callable[[], None],
    ) -> OomWatch:
        """Begin to watch a container.

        :param cgroups: its directories
        :param process: its first process
        :param known: what an earlier supervisor has found out
        :param on_change: called on the event loop when more kills have been counted
        """
        cgroup = MemoryCgroup.of(cgroups, self._facts)
        watch = OomWatch(cgroup, process, known, on_change)
        if cgroup is not None:
            cgroup.reserve()
            self._schedule(watch, SETTLED_SECONDS)
        return watch

    def unwatch(self, watch: OomWatch) -> None:
        """Stop watching, and read the counter for the last time: the container's processes have
        ended, and its cgroup is still there. `OomWatch.count` has the result. Nothing, the second
        time.
        """
        if watch.ended:
            return
        watch.ended = True
        try:
            if watch.cgroup is None:
                watch.count = OomCount(None)
            else:
                # Nothing is cleared any more: the first process has ended.
                watch.process = None
                watch.read()
        except (OSError, ValueError) as error:
            logger.debug("no last count of OOM kills: %s", error)
            if isinstance(error, OSError) and error.errno != errno.ENOENT:
                watch.error = error  # otherwise the host just does not count memory here
            # Known kills are known; that there were no others is not.
            watch.count = OomCount(watch.count.kills or None, watch.count.cleared)
        finally:
            self._forget(watch)
            # It leads back to whoever owns the watch: a cycle for each container would be garbage
            # that only the collector finds.
            watch.on_change = _ignore

    def _forget(self, watch: OomWatch) -> None:
        """No more news of it: its descriptor's number may soon be another's."""
        self._due.pop(watch, None)
        self._watched.pop(watch.key, None)
        watch.key = -1
        if watch.cgroup is not None:
            watch.cgroup.close_news()

    def is_doomed(self, watch: OomWatch) -> bool:
        """Whether the first process has ended or was sent SIGKILL, before somebody sends it one.

        If not, all kills up to now are cleared.
        """
        if watch.process is None or watch.ended:
            return True
        try:
            doomed = is_process_doomed(watch.process.pid, watch.process.start_time)
        except OSError:
            return False  # no descriptor to look with: nothing is known, so nothing is cleared
        if not doomed and watch.cgroup is not None:
            self._read(watch)
        return doomed

    def _schedule(self, watch: OomWatch, seconds: float) -> None:
        watch.due = trio.current_time() + seconds
        self._due[watch] = None
        if watch.due < self._sleep.deadline:  # noqa: PLR1730  setting it costs, even the same
            self._sleep.deadline = watch.due
        self._called.set()

    async def serve(self) -> None:
        """Until cancelled."""
        try:
            await self._called.wait()  # most commands never have anything to watch
            try:
                self._set = select.epoll()
            except OSError as error:
                # Out of descriptors: then kills are told of when their container ends.
                logger.debug("OOM kills cannot be watched for: %s", error)
                await trio.sleep_forever()
            while True:
                await self._wait(self._set.fileno())
                for key, _ in self._set.poll(0):
                    if (watch := self._watched.get(key)) is not None:
                        self._told(watch)
                self._do_what_is_due()
        finally:
            for watch in list(self._watched.values()):
                self._forget(watch)
            if self._set is not None:
                self._set.close()

    async def _wait(self, fd: int) -> None:
        """Until there is news, or something is due."""
        deadline = min((watch.due for watch in self._due), default=math.inf)
        with trio.CancelScope(deadline=deadline) as self._sleep:
            await trio.lowlevel.wait_readable(fd)

    def _told(self, watch: OomWatch) -> None:
        assert watch.cgroup is not None
        watch.cgroup.take_news()
        if watch.cgroup.announces_before:
            watch.looks = 0
            self._schedule(watch, _LOOK_AGAIN_SECONDS[0])
        self._read(watch)

    def _do_what_is_due(self) -> None:
        now = trio.current_time()
        for watch in [watch for watch in self._due if watch.due <= now]:
            del self._due[watch]
            if watch.key < 0:
                self._register(watch)
            else:
                watch.looks += 1
                if watch.looks < len(_LOOK_AGAIN_SECONDS):
                    self._schedule(watch, _LOOK_AGAIN_SECONDS[watch.looks])
            self._read(watch)

    def _register(self, watch: OomWatch) -> None:
        assert watch.cgroup is not None
        assert self._set is not None
        try:
            watch.key = watch.cgroup.open_news(self._set)
        except OSError as error:
            # Then its kills are counted at its end, if at all.
            logger.debug("no news of OOM kills: %s", os.strerror(error.errno or 0))
        else:
            self._watched[watch.key] = watch

    def _read(self, watch: OomWatch) -> None:
        try:
            changed = watch.read()
        except (OSError, ValueError) as error:
            # The cgroup was removed under us: an epoll set would report that for ever.
            logger.debug("OOM kills cannot be counted: %s", error)
            self._forget(watch)
            return
        if changed:
            watch.on_change()
