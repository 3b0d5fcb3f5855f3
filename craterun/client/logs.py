"""Follow the logs of containers, whoever writes and whoever removes them meanwhile.

Synchronous; nothing polls. News of a log come by inotify. Its end comes as a mark in the log, or,
where there is none (a container that wrote nothing, a supervisor and keeper that were killed), as
the release of the supervisor's lock, for which a thread waits.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from craterun.core.errors import CraterunError
from craterun.state.openlog import OpenLog

if TYPE_CHECKING:
    from craterun.client.express import ExpressWay, Ready
    from craterun.linux.watches import FolderWatches

_LONGEST_WAIT_MS = 86_400_000.0
"""poll(2) takes no more than 2**31 - 1."""
_ENDED = struct.Struct("I")
_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Follower:
    """Waits for news of several logs."""

    def __init__(self, logs: Sequence[OpenLog], outputs: Sequence[int] = ()) -> None:
        """:param outputs: descriptors that we write to; if their readers go away, nothing is left
        to wait for
        """
        self._logs = dict(enumerate(logs))
        self._outputs = outputs
        self._over: set[int] = set()
        self._fresh = set(self._logs)
        self._watches = _watches()
        self._ends, self._report = os.pipe()
        try:
            self._watched = {self._watch(log): n for n, log in self._logs.items()}
            for number, log in self._logs.items():
                if not log.is_supervised():
                    self._over.add(number)
                    continue
                threading.Thread(
                    target=_wait_unlocked, args=(log.reopen(), number, self._report), daemon=True
                ).start()
            self._poll = self._make_poll()
        except BaseException:
            self.close()
            raise

    def _make_poll(self) -> select.poll:
        poll = select.poll()
        poll.register(self._watches.fileno(), select.POLLIN)
        poll.register(self._ends, select.POLLIN)
        for output in self._outputs:
            poll.register(output, 0)  # errors and hangups are always told
        return poll

    def _watch(self, log: OpenLog) -> int:
        try:
            return self._watches.add(log.directory)
        except OSError as error:
            raise CraterunError(
                f"cannot follow the log of container {log.id}: {os.strerror(error.errno or 0)}; "
                "this user's programs watch too many directories: raise "
                "/proc/sys/fs/inotify/max_user_watches"
            ) from error

    def run(
        self,
        show: Callable[[int, bool], bool],
        flush: Callable[[], None],
        until_ns: int | None,
        express: ExpressWay | None = None,
    ) -> None:
        """Until all logs have ended.

        :param show: print what is new of one log; told whether that was all; says whether it was
        :param flush: called before waiting
        :param until_ns: end then, whatever is still to come
        :param express: of the only log, waited for without end: prints what it can
        :raises BrokenPipeError: an output has lost its reader
        """
        if express is not None:
            from craterun.linux.scheduling import prefer_short_slices

            prefer_short_slices()
        expired = False
        while self._logs:
            for number in sorted(self._fresh & self._logs.keys()):
                if show(number, number in self._over) or expired:
                    del self._logs[number]
            self._fresh.clear()
            flush()
            if self._logs:
                expired = not self._wait(until_ns, express)

    def _wait(self, until_ns: int | None, express: ExpressWay | None) -> bool:
        """Until there is news; False: until the time was up."""
        wait = self._poll.poll
        if express is not None:
            ((watch, number),) = self._watched.items()
            if ready := express.serve(wait, self._watches, watch):
                self._take(ready)
            else:
                self._fresh.add(number)
            return True
        left = None if until_ns is None else max(0, until_ns - time.time_ns()) / 1e6
        ready = wait(None if left is None else min(left, _LONGEST_WAIT_MS))
        if not ready:
            self._fresh = set(self._logs)
            return until_ns is not None and time.time_ns() < until_ns
        self._take(ready)
        return True

    def _take(self, ready: Ready) -> None:
        """Find out what is new."""
        for fd, events in ready:
            if fd == self._watches.fileno():
                changed = self._watches.take()
                self._fresh |= (
                    set(self._logs)
                    if changed is None
                    else {self._watched[watch] for watch in changed if watch in self._watched}
                )
            elif fd == self._ends:
                (number,) = _ENDED.unpack(os.read(fd, _ENDED.size))
                self._over.add(number)
                self._fresh.add(number)
            elif events & _GONE:
                raise BrokenPipeError

    def close(self) -> None:
        """Stop waiting. A thread that still waits for a lock goes on until that is free."""
        self._watches.close()
        os.close(self._ends)


def _watches() -> FolderWatches:
    from craterun.linux.watches import FolderWatches  # what only prints needs no ctypes

    try:
        return FolderWatches()
    except OSError as error:
        raise CraterunError(
            f"cannot follow logs: {os.strerror(error.errno or 0)}; this user's programs have too "
            "many inotify instances: raise /proc/sys/fs/inotify/max_user_instances"
        ) from error


def _wait_unlocked(fd: int, number: int, report: int) -> None:
    """In a thread: wait for the lock of the folder ``fd``, which is taken, and report."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)
    try:
        os.write(report, _ENDED.pack(number))
    except BrokenPipeError:
        return  # it is not waited for any more
