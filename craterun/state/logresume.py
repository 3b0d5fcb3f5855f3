"""What the writer of a log finds when it goes on where another one was killed."""

from __future__ import annotations

import os
from typing import NamedTuple

from craterun.state.logindex import (
    FILES,
    INDEX,
    Kind,
    Stream,
    entries_backward,
    finished_serials,
    numbered,
    read_marks,
)

_LOOK_BACK_ENTRIES = 1024 * 1024


class Remains(NamedTuple):
    """A log as its last writer left it.

    :ivar serial: of the segment that was being written, or amid being finished
    :ivar bases: bytes of each stream before that segment
    :ivar finished: serial and bases of each segment before it
    :ivar sizes: bytes of each stream, segments before included
    :ivar index_bytes: of the segment's index, a torn entry included
    :ivar lacks_marks: its index should begin with marks, and does not
    :ivar moved: its writer was killed amid `LogWriter._rotate`: a file has its serial already
    """

    serial: int
    bases: dict[Stream, int]
    finished: list[tuple[int, dict[Stream, int]]]
    sizes: dict[Stream, int]
    index_bytes: int
    lacks_marks: bool
    moved: bool


def look(directory: int) -> Remains:
    """Find out where the writer was. Changes nothing.

    :param directory: the container's folder, borrowed
    :raises OSError: an index cannot be read
    """
    serial, bases = 1, dict.fromkeys(Stream, 0)
    finished = []
    following = bases
    for number in finished_serials(directory):
        marks = _marks(directory, numbered(INDEX, number))
        following = marks[1] if marks else following
        finished.append((number, following))
        following = {
            stream: following[stream] + _size(directory, numbered(FILES[stream], number))
            for stream in Stream
        }
    current = _marks(directory, INDEX)
    if current is not None:
        serial, bases = current
    elif finished:
        serial, bases = finished[-1][0] + 1, following
    sizes = {}
    moved = False
    for stream in Stream:
        size = _size(directory, numbered(FILES[stream], serial))
        moved |= size > 0
        sizes[stream] = bases[stream] + (size or _size(directory, FILES[stream]))
    return Remains(
        serial,
        bases,
        finished,
        sizes,
        _size(directory, INDEX),
        bool(finished) and current is None,
        moved,
    )


def covered(directory: int, index_bytes: int) -> dict[Stream, int]:
    """How much of each file the index covers; none for a stream last heard of too long ago."""
    if not index_bytes:
        return dict.fromkeys(Stream, 0)
    ends: dict[Stream, int] = {}
    index = open_to_read(directory, INDEX)
    try:
        for number, (_, entry) in enumerate(entries_backward(index, index_bytes)):
            _, offset, length, stream, kind = entry
            if kind == Kind.CHUNK and stream not in ends:
                ends[Stream(stream)] = offset + length
            if len(ends) == len(Stream) or number > _LOOK_BACK_ENTRIES:
                return ends
    finally:
        os.close(index)
    return {stream: ends.get(stream, 0) for stream in Stream}


def open_to_read(directory: int, name: str) -> int:
    """A file of the log, whose descriptor is the caller's."""
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)


def _marks(directory: int, name: str) -> tuple[int, dict[Stream, int]] | None:
    try:
        index = open_to_read(directory, name)
    except FileNotFoundError:
        return None
    try:
        return read_marks(index)
    finally:
        os.close(index)


def _size(directory: int, name: str) -> int:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_size
    except OSError:
        return 0
