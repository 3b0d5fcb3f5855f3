"""The writer of a container's log: two byte-exact streams and an index of when what came.

``stdout.log`` and ``stderr.log`` hold exactly the bytes written, nothing else. POSIX gives no order
between two pipes, so the order in which chunks were *read* is kept beside them, in ``log.index``
(`state.logindex`, which also tells how a log is divided once it has grown).
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from craterun.core.logoptions import LogOptions
from craterun.state.loghead import Head
from craterun.state.logindex import (
    ENTRY,
    FILES,
    INDEX,
    IndexEntry,
    Kind,
    Stream,
    entries_backward,
    finished_serials,
    numbered,
    pack_marks,
    read_index,
    read_marks,
)

__all__ = [
    "FILES", "INDEX", "IndexEntry", "LogWriter", "NoLog", "Stream", "Writer", "open_writer",
    "read_index",
]  # fmt: skip

_FAILED = stat.S_ISVTX
"""On the container's folder: a writer has failed. It costs no space, which there may be none of."""
_LOOK_BACK_ENTRIES = 1024 * 1024


Then = Callable[[Stream, memoryview], None]
"""Called with bytes as soon as they are in their file, before their index entry is: whoever they
are passed on to then has nothing that a reader of the log would not find."""


class Writer(Protocol):
    """What a container's output is appended to.

    :ivar sizes: bytes of each stream that can be read again
    :ivar error: the failure that ended the logging, or None
    :ivar lost_bytes: what came after that
    :ivar head: sees all that is appended, if somebody wants that
    """

    sizes: dict[Stream, int]
    error: OSError | None
    lost_bytes: int
    head: Head | None

    def is_lossy(self) -> bool: ...

    def append(
        self, stream: Stream, data: memoryview, time_ns: int, then: Then | None = None
    ) -> None: ...

    def locate(self, stream: Stream, offset: int) -> tuple[int, int]: ...

    def finish(self) -> None: ...

    def complaint(self) -> str | None: ...


def open_writer(
    directory: int,
    options: LogOptions,
    *,
    resume: bool,
    may_keep: Callable[[int], bool] | None = None,
) -> Writer:
    """The writer for a container's folder, whose descriptor stays the caller's."""
    if options.driver == "none":
        return NoLog()
    return LogWriter(directory, options, resume=resume, may_keep=may_keep)


class NoLog:
    """Keeps nothing: only who is attached sees the output."""

    def __init__(self) -> None:
        self.sizes = dict.fromkeys(Stream, 0)
        self.error: OSError | None = None
        self.lost_bytes = 0
        self.head: Head | None = None

    def is_lossy(self) -> bool:
        """Always: what is appended cannot be read again, so that readers have to be fed."""
        return True

    def append(
        self, stream: Stream, data: memoryview, time_ns: int, then: Then | None = None
    ) -> None:
        """Nothing is kept but the head, if that is wanted."""
        if self.head is not None:
            self.head.add(stream, data)

    def locate(self, stream: Stream, offset: int) -> tuple[int, int]:
        """Nowhere."""
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), FILES[stream])

    def finish(self) -> None:
        """Nothing."""

    def complaint(self) -> str | None:
        """Nothing was to be kept."""
        return None


class LogWriter:
    """The one writer of a container's log. Files are made at their first byte, or by `finish`.

    Before a file would exceed ``options.max_bytes``, all three are finished together as a segment
    and new ones begun; beyond ``options.max_files`` the oldest are removed.

    A failed write (disk full) ends the logging of both streams: a log with a hole would be taken
    for complete. What came later is counted in ``lost_bytes``; the container goes on. A mark on the
    folder keeps a successor from going on behind the hole.

    :ivar sizes: bytes written to each stream, removed ones included
    :ivar error: the failure, or None
    """

    def __init__(
        self,
        directory: int,
        options: LogOptions | None = None,
        *,
        resume: bool = False,
        may_keep: Callable[[int], bool] | None = None,
    ) -> None:
        """:param directory: descriptor of the container's folder, which stays the caller's
        :param options: default: the defaults
        :param resume: go on with what an earlier writer left
        :param may_keep: whether a file that was just opened may stay open; else it is closed again
            after each chunk, so that however many containers write, few descriptors do
        """
        options = options or LogOptions()
        self._directory = directory
        self._max_bytes = options.max_bytes
        self._max_files = options.max_files
        self._files: dict[str, int] = {}
        self._may_keep = may_keep
        self._is_short = False
        # The pumps of both streams may be in threads, and rotating concerns both.
        self._writing = threading.Lock()
        self.sizes = dict.fromkeys(Stream, 0)
        self.error: OSError | None = None
        self.lost_bytes = 0
        self.head: Head | None = None
        self._inherited_failure = False
        self._index_bytes = 0
        self._serial = 1
        self._bases = dict.fromkeys(Stream, 0)
        self._finished: list[tuple[int, dict[Stream, int]]] = []
        if resume:
            try:
                self._resume()
            except OSError as error:
                self._fail(error)

    def append(
        self, stream: Stream, data: memoryview, time_ns: int, then: Then | None = None
    ) -> None:
        """Append one chunk and its index entry; divided if it does not fit into a segment."""
        if self.head is not None:
            self.head.add(stream, data)
        with self._writing:
            while data:
                if self.error is not None:
                    self.lost_bytes += len(data)
                    break
                try:
                    room = self._room(stream)
                    if room <= 0:
                        self._rotate(time_ns)
                        room = self._room(stream)
                except OSError as error:
                    self._fail(error)
                    continue
                self._append(stream, data[:room], time_ns, then)
                data = data[room:]
            if self._is_short:
                self._is_short = False
                self._close()

    def _room(self, stream: Stream) -> int:
        """Bytes that may be appended to ``stream`` in this segment."""
        if not self._max_bytes:
            return 1 << 62
        if self._index_bytes + 2 * ENTRY.size > self._max_bytes:  # one for the end mark
            return 0
        return self._max_bytes - (self.sizes[stream] - self._bases[stream])

    def _append(self, stream: Stream, data: memoryview, time_ns: int, then: Then | None) -> None:
        offset = self.sizes[stream] - self._bases[stream]
        rest = data
        try:
            fd = self._open(FILES[stream])
            while rest:
                written = os.write(fd, rest)
                self.sizes[stream] += written
                rest = rest[written:]
            if then is not None:
                then(stream, data)
            self._write_index(IndexEntry(time_ns, offset, len(data), stream).pack())
        except OSError as error:
            self._fail(error)
            self.lost_bytes += len(rest)

    def _write_index(self, entries: bytes) -> None:
        fd = self._open(INDEX)
        rest = memoryview(entries)
        while rest:
            rest = rest[os.write(fd, rest) :]
        self._index_bytes += len(entries)

    def _fail(self, error: OSError) -> None:
        self.error = error
        with suppress(OSError):
            mode = stat.S_IMODE(os.fstat(self._directory).st_mode)
            os.fchmod(self._directory, mode | _FAILED)

    def is_lossy(self) -> bool:
        """Whether what is appended cannot be read again. True stays true."""
        return self.error is not None

    def has_failed(self) -> bool:
        """Whether logging ended by an error. True stays true."""
        return self.error is not None

    def complaint(self) -> str | None:
        """What is wrong with the log, for the container's record; None if nothing is."""
        if self.error is None:
            return None
        if self._inherited_failure:
            return (
                "the log is incomplete: an earlier supervisor could not write it; "
                f"at least {self.lost_bytes} bytes of output were not logged"
            )
        return (
            f"the log is incomplete: {os.strerror(self.error.errno or 0)}; "
            f"{self.lost_bytes} bytes of output were not logged"
        )

    def locate(self, stream: Stream, offset: int) -> tuple[int, int]:
        """The file that has byte ``offset`` of ``stream``, or the first one after it that is kept.

        Returns a descriptor to read with pread(2), which the caller owns, and the offset in the
        stream that the file begins with.
        """
        with self._writing:
            for serial, bases in self._finished:
                following = self._base_after(serial, stream)
                if offset < following and following > bases[stream]:
                    name = numbered(FILES[stream], serial)
                    return self._open_to_read(name), bases[stream]
            return self._open_to_read(FILES[stream]), self._bases[stream]

    def _base_after(self, serial: int, stream: Stream) -> int:
        later = (bases[stream] for other, bases in self._finished if other > serial)
        return next(later, self._bases[stream])

    def reader(self, stream: Stream) -> int:
        """A descriptor of the file that ``stream`` is being written to, which the caller owns."""
        with self._writing:
            self._open(FILES[stream])
            return self._open_to_read(FILES[stream])

    def finish(self) -> None:
        """Make sure that both files exist, mark the end, and close all."""
        with self._writing:
            if self._directory < 0:
                return
            try:
                if self.error is None:
                    if INDEX in self._files or self._index_bytes:
                        self._write_index(ENTRY.pack(time.time_ns(), 0, 0, 0, Kind.END))
                    for stream in Stream:
                        self._open(FILES[stream])
            except OSError as error:
                self._fail(error)
            finally:
                self._close()
                self._directory = -1  # its owner may close it now

    # --- segments -----------------------------------------------------------------------------

    def _rotate(self, time_ns: int) -> None:
        """Finish this segment and begin the next one, in the order that `logindex` states."""
        self._drop()
        self._open(INDEX)
        self._close()
        for stream in Stream:
            with suppress(FileNotFoundError):  # nothing was written to it in this segment
                self._rename(FILES[stream])
        self._rename(INDEX)
        self._finished.append((self._serial, self._bases))
        self._begin(self._serial + 1, dict(self.sizes), time_ns)
        self._drop()

    def _begin(self, serial: int, bases: dict[Stream, int], time_ns: int) -> None:
        self._serial = serial
        self._bases = bases
        self._index_bytes = 0
        self._write_index(pack_marks(time_ns, serial, bases))

    def _drop(self) -> None:
        while self._finished and self._finished[0][0] <= self._serial - self._max_files:
            serial, _ = self._finished.pop(0)
            for name in (INDEX, *FILES.values()):
                with suppress(FileNotFoundError):
                    os.unlink(numbered(name, serial), dir_fd=self._directory)

    def _rename(self, name: str) -> None:
        new = numbered(name, self._serial)
        os.rename(name, new, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def _open(self, name: str) -> int:
        fd = self._files.get(name)
        if fd is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = self._files[name] = os.open(name, flags, 0o600, dir_fd=self._directory)
            self._is_short |= self._may_keep is not None and not self._may_keep(fd)
        return fd

    def _open_to_read(self, name: str) -> int:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=self._directory)

    def _close(self) -> None:
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()

    # --- taking over from a writer that was killed ------------------------------------------------

    def _resume(self) -> None:
        """Find out where the writer before us was, and finish what it did not."""
        if os.fstat(self._directory).st_mode & _FAILED:
            self._inherited_failure = True
            self.error = OSError(errno.EIO, os.strerror(errno.EIO))
        bases = dict.fromkeys(Stream, 0)
        for serial in finished_serials(self._directory):
            marks = self._marks(numbered(INDEX, serial))
            bases = marks[1] if marks else bases
            self._finished.append((serial, bases))
            bases = {s: bases[s] + self._existing(numbered(FILES[s], serial)) for s in Stream}
        current = self._marks(INDEX)
        if current is not None:
            self._serial, self._bases = current
        elif self._finished:
            self._serial, self._bases = self._finished[-1][0] + 1, bases
        moved = [s for s in Stream if self._existing(numbered(FILES[s], self._serial))]
        for stream in Stream:
            name = numbered(FILES[stream], self._serial) if stream in moved else FILES[stream]
            self.sizes[stream] = self._bases[stream] + self._existing(name)
        self._index_bytes = self._existing(INDEX)
        if self.error is not None:
            return
        if self._finished and current is None:
            os.ftruncate(self._open(INDEX), 0)
            self._begin(self._serial, self._bases, time.time_ns())
        self._mend_index()
        if moved:  # it was killed amid `_rotate`
            self._rotate(time.time_ns())

    def _marks(self, name: str) -> tuple[int, dict[Stream, int]] | None:
        try:
            index = self._open_to_read(name)
        except FileNotFoundError:
            return None
        try:
            return read_marks(index)
        finally:
            os.close(index)

    def _mend_index(self) -> None:
        """Cut off an entry that was not finished; add one for bytes that none covers."""
        if self._index_bytes % ENTRY.size:
            self._index_bytes -= self._index_bytes % ENTRY.size
            os.ftruncate(self._open(INDEX), self._index_bytes)
        covered = self._covered()
        for stream in Stream:
            size = self.sizes[stream] - self._bases[stream]
            while (start := covered.get(stream, size)) < size:
                length = min(size - start, 0xFFFFFFFF)
                entry = IndexEntry(time.time_ns(), start, length, stream)
                self._write_index(entry.pack())
                covered[stream] = start + length

    def _covered(self) -> dict[Stream, int]:
        """How much of each file the index covers; none for a stream last heard of too long ago."""
        if not self._index_bytes:
            return dict.fromkeys(Stream, 0)
        covered: dict[Stream, int] = {}
        index = self._open_to_read(INDEX)
        try:
            entries = entries_backward(index, self._index_bytes)
            for number, (_, (_, offset, length, stream, kind)) in enumerate(entries):
                if kind == Kind.CHUNK and stream not in covered:
                    covered[Stream(stream)] = offset + length
                if len(covered) == len(Stream) or number > _LOOK_BACK_ENTRIES:
                    return covered
        finally:
            os.close(index)
        return {stream: covered.get(stream, 0) for stream in Stream}

    def _existing(self, name: str) -> int:
        try:
            return os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_size
        except OSError:
            return 0
