"""The files of a log that is being written: segments, what is open of them, and their index.

Used by the log's writer alone (`state.logs`), which decides when what is written, and locks.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress

from craterun.core.logoptions import LogOptions
from craterun.state import logresume
from craterun.state.logindex import (
    ENTRY,
    FILES,
    INDEX,
    STREAMS,
    IndexEntry,
    Stream,
    numbered,
    pack_marks,
)

SLOW = (-1, -1, -1, 0)
"""No open file, and no end of a chunk that could be written to it; no index; the base."""


class Segments:
    """One directory's. Files are made at their first byte, or by `_make`.

    Before a file would exceed ``options.max_bytes``, all three are finished together as a segment
    and new ones begun; beyond ``options.max_files`` the oldest are removed.

    :ivar sizes: bytes written to each stream, removed ones included
    """

    def __init__(
        self, directory: int, options: LogOptions, may_keep: Callable[[int], bool] | None
    ) -> None:
        """See `LogWriter`."""
        self._directory = directory
        self._max_bytes = options.max_bytes
        # Of an index: one entry more, and there must be room for the end mark.
        self._index_most = (self._max_bytes or 1 << 62) - 2 * ENTRY.size
        self._max_files = options.max_files
        self._may_keep = may_keep
        self._is_short = False
        self._files: dict[str, int] = {}
        self._quick = dict.fromkeys(STREAMS, SLOW)
        self._index_bytes = 0
        self._serial = 1
        self._bases = dict.fromkeys(STREAMS, 0)
        self._finished: list[tuple[int, dict[Stream, int]]] = []
        self.sizes = dict.fromkeys(STREAMS, 0)

    def _room(self, stream: Stream) -> int:
        """Bytes that may be appended to ``stream`` in this segment."""
        if not self._max_bytes:
            return 1 << 62
        if self._index_bytes > self._index_most:
            return 0
        return self._max_bytes - (self.sizes[stream] - self._bases[stream])

    def _write_index(self, entries: bytes) -> None:
        fd = self._open(INDEX)
        rest = memoryview(entries)
        while rest:
            rest = rest[os.write(fd, rest) :]
        self._index_bytes += len(entries)
        if self._index_bytes > self._index_most:
            self._quick = dict.fromkeys(STREAMS, SLOW)

    def _rotate(self, time_ns: int) -> None:
        """Finish this segment and begin the next one, in the order that `logindex` states."""
        self._drop()
        self._open(INDEX)
        self._close()
        for stream in STREAMS:
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

    def _make(self, name: str) -> None:
        """An empty file, without opening it: most containers write to one stream at most."""
        with suppress(FileExistsError):
            os.mknod(name, stat.S_IFREG | 0o600, dir_fd=self._directory)

    def _close(self) -> None:
        self._quick = dict.fromkeys(STREAMS, SLOW)
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()

    def _locate(self, stream: Stream, offset: int, directory: int) -> tuple[int, int]:
        """See `LogWriter.locate`."""
        directory = directory if self._directory < 0 else self._directory
        for serial, bases in self._finished:
            following = self._base_after(serial, stream)
            if offset < following and following > bases[stream]:
                name = numbered(FILES[stream], serial)
                return logresume.open_to_read(directory, name), bases[stream]
        return logresume.open_to_read(directory, FILES[stream]), self._bases[stream]

    def _base_after(self, serial: int, stream: Stream) -> int:
        later = (bases[stream] for other, bases in self._finished if other > serial)
        return next(later, self._bases[stream])

    # --- taking over from a writer that was killed ------------------------------------------------

    def _adopt(self) -> logresume.Remains:
        """Go on where the writer before us was."""
        remains = logresume.look(self._directory)
        self._serial, self._bases = remains.serial, remains.bases
        self._finished, self.sizes = remains.finished, remains.sizes
        self._index_bytes = remains.index_bytes
        return remains

    def _mend(self, remains: logresume.Remains) -> None:
        """Finish what it did not."""
        if remains.lacks_marks:
            os.ftruncate(self._open(INDEX), 0)
            self._begin(self._serial, self._bases, time.time_ns())
        self._mend_index()
        if remains.moved:
            self._rotate(time.time_ns())

    def _mend_index(self) -> None:
        """Cut off an entry that was not finished; add one for bytes that none covers."""
        if self._index_bytes % ENTRY.size:
            self._index_bytes -= self._index_bytes % ENTRY.size
            os.ftruncate(self._open(INDEX), self._index_bytes)
        covered = logresume.covered(self._directory, self._index_bytes)
        for stream in STREAMS:
            size = self.sizes[stream] - self._bases[stream]
            while (start := covered.get(stream, size)) < size:
                length = min(size - start, 0xFFFFFFFF)
                entry = IndexEntry(time.time_ns(), start, length, stream)
                self._write_index(entry.pack())
                covered[stream] = start + length
