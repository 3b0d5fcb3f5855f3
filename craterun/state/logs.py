"""The log of one container: two byte-exact files and an index of when what came.

``stdout.log`` and ``stderr.log`` hold exactly the bytes written, nothing else. POSIX gives no order
between two pipes, so the order in which chunks were *read* is kept beside them, in ``log.index``:
one fixed-size entry for each chunk, written after the chunk itself. Log bytes that the index does
not cover, after a crash between the two writes, are valid and merely have no time.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from enum import IntEnum

import msgspec

_ENTRY = struct.Struct("<QQIB3x")
INDEX = "log.index"


class Stream(IntEnum):
    """Standard streams, numbered as their descriptors."""

    STDOUT = 1
    STDERR = 2


_STREAMS = frozenset(Stream)
FILES = {Stream.STDOUT: "stdout.log", Stream.STDERR: "stderr.log"}


class IndexEntry(msgspec.Struct, frozen=True):
    """One chunk as it was read: 24 bytes, little-endian, on disk.

    :ivar time_ns: nanoseconds since the epoch, u64
    :ivar offset: of the chunk in its stream's file, u64
    :ivar length: bytes, u32
    :ivar stream: which file, u8, followed by three zero bytes
    """

    time_ns: int
    offset: int
    length: int
    stream: Stream

    def pack(self) -> bytes:
        """As it stands in the file."""
        return _ENTRY.pack(self.time_ns, self.offset, self.length, self.stream)


def read_index(path: str) -> Iterator[IndexEntry]:
    """All whole entries of an index file; a torn last one, or what follows damage, is left out."""
    with open(path, "rb") as file:
        while len(data := file.read(_ENTRY.size)) == _ENTRY.size:
            time_ns, offset, length, stream = _ENTRY.unpack(data)
            if stream not in _STREAMS:
                return
            yield IndexEntry(time_ns, offset, length, Stream(stream))


class LogWriter:
    """The one writer of a container's log. Files are made at their first byte, or by `finish`.

    A failed write (disk full) ends the logging of both streams: a log with a hole would be taken
    for complete. What came later is counted in ``lost_bytes``; the container goes on.

    :ivar sizes: bytes written to each stream's file
    :ivar error: the failure, or None
    """

    def __init__(self, directory: int, *, resume: bool = False) -> None:
        """:param directory: descriptor of the container's folder, which stays the caller's
        :param resume: go on with what an earlier writer left
        """
        self._directory = directory
        self._files: dict[str, int] = {}
        self._opening = threading.Lock()
        self.sizes = dict.fromkeys(Stream, 0)
        if resume:
            self.sizes = {stream: self._existing(FILES[stream]) for stream in Stream}
            self._mend_index()
        self.error: OSError | None = None
        self.lost_bytes = 0

    def append(self, stream: Stream, data: memoryview, time_ns: int) -> None:
        """Append one chunk and its index entry."""
        if self.error is not None:
            self.lost_bytes += len(data)
            return
        offset = self.sizes[stream]
        rest = data
        try:
            fd = self._open(FILES[stream])
            while rest:
                written = os.write(fd, rest)
                self.sizes[stream] += written
                rest = rest[written:]
            entry = memoryview(IndexEntry(time_ns, offset, len(data), stream).pack())
            while entry:
                entry = entry[os.write(self._open(INDEX), entry) :]
        except OSError as error:
            self.error = error
            self.lost_bytes += len(rest)

    def has_failed(self) -> bool:
        """Whether logging ended by an error. True stays true."""
        return self.error is not None

    def reader(self, stream: Stream) -> int:
        """A descriptor to read the stream's file with pread(2), which the caller owns."""
        self._open(FILES[stream])
        return os.open(FILES[stream], os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)

    def finish(self) -> None:
        """Make sure that both files exist, and close all."""
        try:
            if self.error is None:
                for stream in Stream:
                    self._open(FILES[stream])
        except OSError as error:
            self.error = error
        finally:
            for fd in self._files.values():
                os.close(fd)
            self._files.clear()

    def _open(self, name: str) -> int:
        fd = self._files.get(name)
        if fd is not None:
            return fd
        with self._opening:  # the pumps of both streams may be in threads
            if name not in self._files:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
                self._files[name] = os.open(name, flags, 0o600, dir_fd=self._directory)
            return self._files[name]

    def _mend_index(self) -> None:
        """Cut off an entry that the writer before us did not finish."""
        size = self._existing(INDEX)
        if size % _ENTRY.size:
            os.ftruncate(self._open(INDEX), size - size % _ENTRY.size)

    def _existing(self, name: str) -> int:
        try:
            return os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_size
        except OSError:
            return 0
