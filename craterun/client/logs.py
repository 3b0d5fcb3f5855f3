"""Open the logs of containers and follow them, whoever writes and whoever removes them meanwhile.

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

from craterun.core.errors import CraterunError, NoSuchContainerError, StateError
from craterun.linux.watches import FolderWatches
from craterun.state import readers
from craterun.state.records import METADATA
from craterun.state.store import Store

_ENDED = struct.Struct("I")
_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL


class OpenLog:
    """A container's folder, kept from being deleted for as long as this is open.

    :ivar id: the container's
    :ivar directory: the folder's descriptor
    """

    def __init__(self, store: Store, text: str) -> None:
        """:param text: id, prefix or name
        :raises NoSuchContainerError: there is none
        :raises CraterunError: it keeps no log
        """
        self.id = store.resolve(text)
        self._store = store
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self.directory = os.open(store.path(self.id), flags)
        except FileNotFoundError:
            raise self._removed() from None
        try:
            self._held = readers.hold(self.directory)
            # In this order: see state.readers. Not there: being removed, or damaged; the end tells.
            self._safe = self._held and self._has_record()
            self._check_driver()
        except BaseException:
            self.close()
            raise

    def _has_record(self) -> bool:
        try:
            os.stat(METADATA, dir_fd=self.directory, follow_symlinks=False)
        except OSError:
            return False
        return True

    def _check_driver(self) -> None:
        try:
            record = self._store.load(self.id)
        except (StateError, NoSuchContainerError):
            return  # the log may be there all the same
        if record.log.driver == "none":
            raise CraterunError(
                f"container {self.id} keeps no log (it was run with --log-driver none)"
            )

    def _removed(self) -> NoSuchContainerError:
        return NoSuchContainerError(f"container {self.id} was removed before its log could be read")

    def check_whole(self) -> None:
        """After reading: raise if the folder was being deleted meanwhile.

        :raises NoSuchContainerError: it was, so that what was read may lack something
        """
        if not self._safe and os.fstat(self.directory).st_nlink == 0:
            raise self._removed()

    def is_supervised(self) -> bool:
        """Whether anybody may still write to it."""
        fd = self.reopen()
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(fd)

    def reopen(self) -> int:
        """Another descriptor of the folder, for a lock of its own; the caller's."""
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.directory)

    def close(self) -> None:
        """Let go of it; if it was removed meanwhile and nobody else reads it, delete it."""
        if self.directory >= 0:
            readers.release(self.directory)
            readers.discard_own(self._store.root, self.id, self.directory)
            os.close(self.directory)
            self.directory = -1


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
        self._watches = FolderWatches()
        self._ends, self._report = os.pipe()
        try:
            self._watched = {self._watches.add(log.directory): n for n, log in self._logs.items()}
            for number, log in self._logs.items():
                if not log.is_supervised():
                    self._over.add(number)
                    continue
                threading.Thread(
                    target=_wait_unlocked, args=(log.reopen(), number, self._report), daemon=True
                ).start()
        except BaseException:
            self.close()
            raise

    def run(
        self, show: Callable[[int, bool], bool], flush: Callable[[], None], until_ns: int | None
    ) -> None:
        """Until all logs have ended.

        :param show: print what is new of one log; told whether that was all; says whether it was
        :param flush: called before waiting
        :param until_ns: end then, whatever is still to come
        :raises BrokenPipeError: an output has lost its reader
        """
        expired = False
        while self._logs:
            for number in sorted(self._fresh & self._logs.keys()):
                if show(number, number in self._over) or expired:
                    del self._logs[number]
            self._fresh.clear()
            flush()
            if self._logs:
                expired = not self._wait(until_ns)

    def _wait(self, until_ns: int | None) -> bool:
        """Until there is news; False: until the time was up."""
        poll = select.poll()
        poll.register(self._watches.fileno(), select.POLLIN)
        poll.register(self._ends, select.POLLIN)
        for output in self._outputs:
            poll.register(output, 0)  # errors and hangups are always told
        timeout = None if until_ns is None else max(0, until_ns - time.time_ns()) / 1e6
        ready = poll.poll(timeout)
        if not ready:
            self._fresh = set(self._logs)
            return False
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
        return True

    def close(self) -> None:
        """Stop waiting. A thread that still waits for a lock goes on until that is free."""
        self._watches.close()
        os.close(self._ends)


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
