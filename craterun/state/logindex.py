"""``log.index``: when each chunk of output came, in which order; and how a log is divided.

A log consists of *segments*, of which the last is being written. A segment is three files:
``stdout.log``, ``stderr.log``, ``log.index``; when it is finished, each gets a suffix, the
segment's serial: ``stdout.log.000001``. Offsets in an index are those in the segment's own files;
marks at the beginning of every index but the first tell what came before. An entry has 24 bytes:

    u64 nanoseconds since the epoch | u64 offset | u32 length | u8 stream | u8 kind | two zero bytes

The order of what the writer does is what readers build upon:

- A chunk's bytes are written before its entry. Log bytes that no entry covers are valid.
- An index begins with its marks, and exists before any other file of its segment, but for the
  first segment's, which has no marks and comes after the first chunk.
- A finished segment's index is renamed last. So as long as ``log.index`` is the index that a
  reader has open, ``stdout.log`` and ``stderr.log`` belong to it; and once it has its suffix, so
  have they.
- Of a segment that is dropped, the index goes first.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

ENTRY = struct.Struct("<QQIBB2x")
INDEX = "log.index"
_SERIAL = re.compile(r"log\.index\.(\d{6,12})\Z")


class Stream(IntEnum):
    """Standard streams, numbered as their descriptors."""

    STDOUT = 1
    STDERR = 2

    # An enum's own hash is a function in Python, called for each look-up in a dict of streams; a
    # pump makes half a dozen of them for each chunk.
    __hash__ = int.__hash__


STREAMS = tuple(Stream)
"""To go through both: an enum's own iterator is a generator in Python."""
_STREAMS = frozenset(Stream)
FILES = {Stream.STDOUT: "stdout.log", Stream.STDERR: "stderr.log"}


class Kind(IntEnum):
    """What an entry tells.

    CHUNK: bytes that were read at once. START, one for each stream: the segment's serial (in the
    place of the length) and how many bytes of the stream (in that of the offset) came before it.
    END, stream 0: the writer has finished and nothing will follow.
    """

    CHUNK = 0
    START = 1
    END = 2


MARKS_BYTES = 2 * ENTRY.size
"""What an index with marks begins with."""


class IndexEntry(NamedTuple):
    """One chunk as it was read.

    :ivar time_ns: nanoseconds since the epoch, u64
    :ivar offset: of the chunk in its segment's file, u64
    :ivar length: bytes, u32
    :ivar stream: which file
    """

    time_ns: int
    offset: int
    length: int
    stream: Stream

    def pack(self) -> bytes:
        """As it stands in the file."""
        return ENTRY.pack(self.time_ns, self.offset, self.length, self.stream, Kind.CHUNK)


def read_index(path: str) -> Iterator[IndexEntry]:
    """All chunks of an index file; a torn last one, or what follows damage, is left out."""
    with open(path, "rb") as file:
        while len(data := file.read(ENTRY.size)) == ENTRY.size:
            time_ns, offset, length, stream, kind = ENTRY.unpack(data)
            if kind != Kind.CHUNK:
                continue
            if stream not in _STREAMS:
                return
            yield IndexEntry(time_ns, offset, length, Stream(stream))


def numbered(name: str, serial: int) -> str:
    """The name of a finished segment's file."""
    return f"{name}.{serial:06}"


def finished_serials(directory: int) -> list[int]:
    """Serials of the finished segments, ascending. One that is renamed at this moment may lack."""
    found = (_SERIAL.match(name) for name in os.listdir(directory))
    return sorted(int(match[1]) for match in found if match)


def pack_marks(time_ns: int, serial: int, bases: dict[Stream, int]) -> bytes:
    """What the index of segment ``serial`` begins with."""
    return b"".join(
        ENTRY.pack(time_ns, bases[stream], serial, stream, Kind.START) for stream in Stream
    )


def read_marks(index: int) -> tuple[int, dict[Stream, int]] | None:
    """Serial and bases that an open index begins with; None if it has none: it is the first."""
    data = os.pread(index, MARKS_BYTES, 0)
    if len(data) < MARKS_BYTES:
        return None
    bases = {}
    serial = 0
    for _, offset, length, stream, kind in ENTRY.iter_unpack(data):
        if kind != Kind.START or stream not in _STREAMS:
            return None
        serial = length
        bases[Stream(stream)] = offset
    return (serial, bases) if len(bases) == len(Stream) else None


def entries_backward(index: int, end: int) -> Iterator[tuple[int, tuple[int, int, int, int, int]]]:
    """All whole entries of an open index before byte ``end``, the last first, with their places.

    An entry is (time, offset, length, stream, kind).
    """
    block_bytes = ENTRY.size * 2048
    end -= end % ENTRY.size
    while end > 0:
        start = max(0, end - block_bytes)
        data = os.pread(index, end - start, start)
        place = start + len(data) - len(data) % ENTRY.size
        for at in range(place - start - ENTRY.size, -1, -ENTRY.size):
            yield start + at, ENTRY.unpack_from(data, at)
        end = start
