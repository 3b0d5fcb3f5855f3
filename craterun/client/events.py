"""Reading the journal as it grows: the reader of files joined to the kernel's news of them."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator

from craterun.core.errors import StateError, printable
from craterun.core.events import Event, Filter
from craterun.linux.inotify import DirectoryWatch
from craterun.linux.shortage import inotify_limit
from craterun.state.journal import JournalReader, make_journal_directory

_NANOSECOND = 1e-9


class EventFeed:
    """Events of a state directory that meet a condition, past ones and new ones.

    Opened before anything happens, it misses nothing of it: the watch is made before the first
    reading. Use as a context manager.
    """

    def __init__(
        self,
        root: str,
        wanted: Filter | None = None,
        *,
        since: int | None = None,
        until: int | None = None,
        follow: bool = False,
    ) -> None:
        """
        :param since: nanoseconds since the epoch; default: everything that is known, or, to
            ``follow``, what happens from now on
        :param until: the same; events of this instant and later are left out
        :raises StateError: the journal cannot be read, or, to follow it, not be made
        """
        self._wanted = wanted or Filter()
        self._since = since
        self._until = until
        self._watch: DirectoryWatch | None = None
        try:
            if follow:
                self._directory = make_journal_directory(root)
                self._watch = DirectoryWatch(self._directory, contents=True, name=True)
                self._identity = _identity(self._directory)
            self._reader = JournalReader(root, at_end=follow and since is None)
        except OSError as error:
            self.close()
            of_watch = str(error.filename).startswith("inotify")
            why = inotify_limit(error.errno or 0) if of_watch else ""
            raise StateError(
                f"cannot follow the events in {printable(root)}: "
                f"{os.strerror(error.errno or 0)}{why and '; '}{why}"
            ) from error

    @property
    def missed(self) -> int:
        """Segments of the journal that were removed before they could be read."""
        return self._reader.missed

    def read(self) -> list[Event]:
        """What has been written since the last call.

        :raises StateError: the journal cannot be read
        """
        try:
            events = self._reader.read()
        except OSError as error:
            raise StateError(f"cannot read events: {os.strerror(error.errno or 0)}") from error
        return [what for what in events if self._in_time(what) and self._wanted.wants(what)]

    def _in_time(self, what: Event) -> bool:
        after = self._since is None or what.time >= self._since
        return after and (self._until is None or what.time < self._until)

    def seconds_left(self) -> float | None:
        """Until ``until``; None: for ever."""
        if self._until is None:
            return None
        return max(0.0, (self._until - time.time_ns()) * _NANOSECOND)

    def fileno(self) -> int:
        """Readable when there may be news; `take_news` before the next `read`."""
        assert self._watch is not None
        return self._watch.fileno()

    def take_news(self) -> None:
        """
        :raises StateError: the directory has been removed
        """
        assert self._watch is not None
        if not self._watch.take() or _identity(self._directory) != self._identity:
            raise StateError(
                "the state directory's journal was removed; there is nothing to follow"
            )

    def follow(self, reader: int = -1) -> Iterator[list[Event]]:
        """Batches of events, waiting for more, until ``until``, or until ``reader`` is gone.

        :param reader: a pipe or socket that they are written to, or -1
        """
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        if reader >= 0:
            poll.register(reader, 0)  # POLLERR and POLLHUP are always reported
        while True:
            if events := self.read():
                yield events
            left = self.seconds_left()
            if left == 0:
                return
            ready = dict(poll.poll(None if left is None else left * 1000 + 1))
            if reader in ready:
                return
            if self.fileno() in ready:
                self.take_news()

    def close(self) -> None:
        """Stop reading and watching."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if hasattr(self, "_reader"):
            self._reader.close()

    def __enter__(self) -> EventFeed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
