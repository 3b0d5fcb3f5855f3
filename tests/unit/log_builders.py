"""What the tests of the log's writer share: chunks, a folder, and what is in it afterwards."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

from craterun.core.logoptions import MIN_MAX_BYTES, LogOptions
from craterun.state.logs import FILES, INDEX, LogWriter, Stream, read_index
from tests.unit.builders import no_leaked_descriptors

SMALL = LogOptions(max_bytes=MIN_MAX_BYTES, max_files=1000)
"""Many segments, none of which is removed."""
Chunks = list[tuple[Stream, bytes]]
CHUNKS = st.lists(st.tuples(st.sampled_from(Stream), st.binary(min_size=1, max_size=40)))
ENTRY_BYTES = 24


@contextmanager
def folder() -> Iterator[tuple[Path, int]]:
    """An empty folder and a descriptor of it; hypothesis cannot use tmp_path."""
    with tempfile.TemporaryDirectory() as path, no_leaked_descriptors():
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield Path(path), fd
        finally:
            os.close(fd)


def append(writer: LogWriter, chunks: Chunks, first: int = 0) -> None:
    for number, (stream, data) in enumerate(chunks, first):
        writer.append(stream, memoryview(data), 1000 + number)


def whole(chunks: Chunks, stream: Stream) -> bytes:
    return b"".join(data for s, data in chunks if s is stream)


def replay(path: Path) -> Chunks:
    """The chunks in the order of the index, cut from the log files."""
    files = {stream: (path / name).read_bytes() for stream, name in FILES.items()}
    return [
        (entry.stream, files[entry.stream][entry.offset : entry.offset + entry.length])
        for entry in read_index(str(path / INDEX))
    ]


class Disk:
    """An os.write with ``free`` bytes left, which like the kernel's writes what still fits."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.real = os.write

    def write(self, fd: int, data: memoryview) -> int:
        if self.free == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.real(fd, data[: self.free])
        self.free -= written
        return written
