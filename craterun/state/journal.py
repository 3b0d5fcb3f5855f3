"""The journal of a state directory: what happened to its containers, written by whoever did it.

    <root>/.events/<number>     segments of a JSON text sequence (`core.events`), from 1 on

Many processes append, none of them knows of the others, and none takes a lock. What makes that
sound is one rule: **an element counts if, and only if, it begins before `SEGMENT_BYTES`.** Appends
to one file are put into an order by the kernel (O_APPEND; the inode's lock), so exactly one element
crosses that border. Its writer sees so by its own file offset, and goes on to the next segment;
whoever appends later finds that its element began behind the border, does not count, and is to be
written again, there. Readers stop at the border, too. Nothing is lost and nothing counts twice.

Old segments are removed by whoever makes a new one. A reader that has one open can read it to its
end all the same, and sees by the numbers if it was so slow that it missed one.

A writer never fails: a full disk or a missing permission costs events, which are counted and told
with the next event that can be written. Nothing is synced.
"""

from __future__ import annotations

import errno
import os
import re
import time
from contextlib import suppress

from craterun.core.events import (
    RECORD_SEPARATOR,
    Attribute,
    Event,
    EventType,
    decode_event,
    encode_event,
    event,
)
from craterun.core.units import is_id

_DIRECTORY = ".events"
SEGMENT_BYTES = 1024 * 1024
"""About 5000 events."""
KEPT_SEGMENTS = 4
_READ_BYTES = 256 * 1024
_ATTEMPTS = 10
_SEGMENT = re.compile(r"[1-9][0-9]{0,17}\Z")
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
"""A foreign FIFO must not block a reader."""
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def journal_directory(root: str) -> str:
    """Where the segments are."""
    return os.path.join(root, _DIRECTORY)


def make_journal_directory(root: str) -> str:
    """The same, made if need be: somebody wants to wait for the first event.

    :raises OSError: it cannot be made
    """
    path = journal_directory(root)
    os.makedirs(root, 0o711, exist_ok=True)
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    return path


class Journal:
    """A writer. Not for several threads at once. Opens its segment at the first event."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._fd = -1
        self._number = 0
        self._lost = 0

    def append(self, *events: Event) -> None:
        """Write ``events``, in this order; those that cannot be written are counted as lost."""
        waiting = [encode_event(what) for what in events]
        marker = b""
        if self._lost:
            count: dict[str, Attribute] = {"count": self._lost}
            marker = encode_event(Event(time.time_ns(), EventType.EVENTS_LOST, "", None, count))
            waiting.insert(0, marker)
        try:
            while waiting:
                self._write(waiting)
        except OSError:
            told = bool(marker) and marker not in waiting
            self._lost = (0 if told else self._lost) + len(waiting) - (marker in waiting)
        else:
            self._lost = 0

    def _write(self, elements: list[bytes]) -> None:
        """Append, and take off the list what has arrived: not what began behind the border.

        :raises OSError: disk full, …
        """
        if self._fd < 0:
            self._open()
        data = b"".join(elements)
        written = os.write(self._fd, data)
        end = os.lseek(self._fd, 0, os.SEEK_CUR)
        begin = end - written
        if end >= SEGMENT_BYTES:
            self.close()
        while elements and begin < SEGMENT_BYTES and begin + len(elements[0]) <= end:
            begin += len(elements.pop(0))
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _open(self) -> None:
        """The newest segment, or one more if the newest is the one that was full.

        :raises OSError: …
        """
        path = make_journal_directory(self._root)
        for _ in range(_ATTEMPTS):
            newest = max(segments(path), default=0)
            try:
                if newest > self._number:
                    self._fd = os.open(f"{path}/{newest}", _APPEND)
                    self._number = newest
                    return
                self._fd = os.open(f"{path}/{newest + 1}", _APPEND | os.O_CREAT | os.O_EXCL, 0o600)
            except (FileExistsError, FileNotFoundError):
                continue  # somebody else was faster
            # Others may have made, filled and removed this very number while we slept between
            # looking and making: then ours is a ghost, which nobody will read.
            if max(segments(path), default=0) >= newest + 1 + KEPT_SEGMENTS:
                self.close()
                with suppress(FileNotFoundError):
                    os.unlink(f"{path}/{newest + 1}")
                continue
            self._number = newest + 1
            for number in segments(path):
                if number <= self._number - KEPT_SEGMENTS:
                    with suppress(FileNotFoundError):
                        os.unlink(f"{path}/{number}")
            return
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)

    def close(self) -> None:
        """Close the segment; the next event opens one again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def note(root: str, *events: Event) -> None:
    """Append ``events`` from a process that has no journal open."""
    journal = Journal(root)
    try:
        journal.append(*events)
    finally:
        journal.close()


def segments(directory: str) -> list[int]:
    """Numbers of the segments that exist, in order; none if there is no directory."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if _SEGMENT.match(name))


class JournalReader:
    """A cursor on the journal; call `read` again whenever something may have been written.

    :ivar missed: segments that were removed before this reader came to them
    """

    def __init__(self, root: str, *, at_end: bool = False) -> None:
        """:param at_end: begin with what is written from now on"""
        self.missed = 0
        self._directory = journal_directory(root)
        self._fd = -1
        self._number = 0
        self._position = 0
        self._rest: bytes | None = None
        """The beginning of an element that ends behind `_position`, or never; None outside of one.
        """
        if at_end and self._advance(newest=True):
            self._position = os.fstat(self._fd).st_size

    def read(self) -> list[Event]:
        """All events that have been written since, in the order of writing.

        :raises OSError: the journal cannot be read
        """
        events: list[Event] = []
        while True:
            if self._fd < 0 and not self._advance():
                return events
            # In this order: if there is a next segment, nothing is written to this one any more
            # that counts, so that what is read after looking is all of it.
            has_next = any(number > self._number for number in segments(self._directory))
            done = self._read_segment(events)
            if not done and not has_next:
                return events
            if not self._advance():
                return events

    def _read_segment(self, events: list[Event]) -> bool:
        """Read to the end of file, or to the border; then the segment is done."""
        while data := os.pread(self._fd, _READ_BYTES, self._position):
            first, *others = data.split(RECORD_SEPARATOR)
            if self._rest is not None:
                self._rest += first
            begin = self._position + len(first)
            self._position += len(data)
            for element in others:
                _take(self._rest, events)
                self._rest = None
                if begin >= SEGMENT_BYTES:
                    return True
                self._rest = element
                begin += len(RECORD_SEPARATOR) + len(element)
            # The last one may not be all there yet.
            if _take(self._rest, events):
                self._rest = None
                if self._position >= SEGMENT_BYTES:
                    return True
        return False

    def _advance(self, *, newest: bool = False) -> bool:
        """Open the next segment that exists; False if there is none."""
        while True:
            later = [number for number in segments(self._directory) if number > self._number]
            if not later:
                return False
            number = later[-1 if newest else 0]
            try:
                fd = os.open(f"{self._directory}/{number}", _READ)
            except FileNotFoundError:
                continue  # removed since we looked
            if self._number:
                self.missed += number - self._number - 1
            self.close()
            self._fd, self._number, self._position, self._rest = fd, number, 0, None
            return True

    def close(self) -> None:
        """Stop reading."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> JournalReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _take(element: bytes | None, events: list[Event]) -> bool:
    """Whether ``element`` is whole."""
    what = decode_event(element or b"")
    if what is not None:
        events.append(what)
    return what is not None


class Told:
    """What the journal already says of containers: for a successor, who must not say it again.

    :ivar complete: it goes back to the first event ever, so that what it does not say was not said
    """

    def __init__(self, root: str) -> None:
        self._seen: dict[str, list[Event]] = {}
        self._oldest = 0
        try:
            self.complete = segments(journal_directory(root))[:1] in ([], [1])
            with JournalReader(root) as reader:
                events = reader.read()
        except OSError:
            self.complete, events = False, []
        for what in events:
            if is_id(what.id):
                self._seen.setdefault(what.id, []).append(what)
        if not self.complete:
            self._oldest = events[0].time if events else time.time_ns()

    def has(self, what: Event) -> bool:
        """Whether the journal has ``what``, or had it before it was cut."""
        if what.time < self._oldest:
            return True
        return any(
            seen.type == what.type and _count(seen) >= _count(what)
            for seen in self._seen.get(what.id, ())
        )


def _count(what: Event) -> int:
    """Of an event that comes more than once in a container's life: which one it is."""
    keys: dict[str, str] = {EventType.OOM: "kills", EventType.RESTARTED: "restarts"}
    key = keys.get(what.type, "")
    count = what.attributes.get(key)
    return count if isinstance(count, int) else 0


def was_sent_signal(root: str, container_id: str, number: int) -> bool:
    """Whether a command of ours has sent the container's first process signal ``number``."""
    mark = container_id.encode()
    kind = f'"{EventType.SIGNALED}"'.encode()
    directory = journal_directory(root)
    try:
        for segment in reversed(segments(directory)):
            with open(os.open(f"{directory}/{segment}", _READ), "rb") as file:
                content = file.read()
            if kind not in content:
                continue
            for element in content.split(RECORD_SEPARATOR):
                if mark in element and kind in element:
                    what = decode_event(element)
                    if what is not None and what.attributes.get("signal") == number:
                        return True
    except OSError:
        return False
    return False


def signaled(container_id: str, name: str | None, number: int) -> Event:
    """A signal to the first process; on record before it is sent, so that its end finds it."""
    return event(EventType.SIGNALED, container_id, name, signal=number)
