"""One segment of a log, opened for reading while its writer may be finishing it."""

from __future__ import annotations

import os

from craterun.state.logindex import (
    FILES,
    INDEX,
    MARKS_BYTES,
    Stream,
    finished_serials,
    numbered,
    read_marks,
)


class Segment:
    """The files of one segment. What was opened stays readable, whatever happens to its name.

    :ivar serial: which one
    :ivar bases: bytes of each stream that came before it
    :ivar finished: the writer is through with it
    """

    def __init__(
        self, directory: int, serial: int, index: int, bases: dict[Stream, int], *, finished: bool
    ) -> None:
        """Takes ``index``, a descriptor, or -1 if there is none; borrows ``directory``."""
        self.serial = serial
        self.bases = bases
        self.finished = finished
        self._directory = directory
        self._index = index
        self._files: dict[Stream, int] = {}

    @property
    def index_size(self) -> int:
        """Bytes of the index."""
        return os.fstat(self._index).st_size if self._index >= 0 else 0

    @property
    def index(self) -> int:
        """The index, borrowed; -1 if there is none."""
        return self._index

    def read_index(self, place: int, size: int) -> bytes:
        """What the index has at byte ``place``."""
        return os.pread(self._index, size, place) if self._index >= 0 else b""

    def look(self) -> bool:
        """Whether the writer is through with it: no more will come than can be read now."""
        if not self.finished and self._index >= 0:
            self.finished = not self._is_current()
        return self.finished

    def _is_current(self) -> bool:
        try:
            named = os.stat(INDEX, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(self._index))

    def file(self, stream: Stream) -> int:
        """The stream's file, borrowed; -1 if there is none (yet)."""
        fd = self._files.get(stream, -1)
        if fd < 0 and (fd := self._open_file(stream)) >= 0:
            self._files[stream] = fd
        return fd

    def _open_file(self, stream: Stream) -> int:
        with_suffix = numbered(FILES[stream], self.serial)
        if self.look():
            return open_in(self._directory, with_suffix)
        fd = open_in(self._directory, FILES[stream])
        if fd < 0:
            return open_in(self._directory, with_suffix)
        if self._index >= 0 and not self._is_current():
            # Finished meanwhile: what has the plain name may belong to the next segment.
            os.close(fd)
            self.finished = True
            return open_in(self._directory, with_suffix)
        return fd

    def size(self, stream: Stream) -> int:
        """Bytes in the stream's file."""
        fd = self.file(stream)
        return os.fstat(fd).st_size if fd >= 0 else 0

    def modified_ns(self, stream: Stream) -> int:
        """When the stream's file was last written to, nanoseconds since the epoch."""
        fd = self.file(stream)
        return os.fstat(fd).st_mtime_ns if fd >= 0 else 0

    def end(self, stream: Stream) -> int:
        """Where in the stream the segment ends, as things are."""
        return self.bases[stream] + self.size(stream)

    def read(self, stream: Stream, start: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``start``, which counts from the stream's beginning."""
        fd = self.file(stream)
        place = start - self.bases[stream]
        return os.pread(fd, size, place) if fd >= 0 and place >= 0 else b""

    def close(self) -> None:
        """Close all files."""
        fds = [self._index, *self._files.values()]
        self._index = -1
        self._files.clear()
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def open_in(directory: int, name: str) -> int:
    """A file of the folder, for reading; -1 if there is none.

    :raises OSError: there is one, but it is not ours to follow (a symlink), or cannot be opened
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=directory)
    except FileNotFoundError:
        return -1


def open_current(directory: int) -> Segment | None:
    """The segment that is being written; None if it has no index (yet)."""
    index = open_in(directory, INDEX)
    if index < 0:
        return None
    marks = read_marks(index)
    if marks is not None:
        return Segment(directory, marks[0], index, marks[1], finished=False)
    before = finished_serials(directory)
    if before and os.fstat(index).st_size < MARKS_BYTES:
        os.close(index)  # just being made
        return None
    serial = before[-1] + 1 if before else 1
    return Segment(directory, serial, index, _ends(directory, serial - 1), finished=False)


def open_finished(directory: int, serial: int) -> Segment | None:
    """Segment ``serial`` if it is finished and still there."""
    index = open_in(directory, numbered(INDEX, serial))
    if index < 0:
        return None
    marks = read_marks(index)
    bases = marks[1] if marks else _ends(directory, serial - 1)
    return Segment(directory, serial, index, bases, finished=True)


def _ends(directory: int, serial: int) -> dict[Stream, int]:
    """Where segment ``serial`` ends: for the one after it, if that has no marks (any more)."""
    segment = open_finished(directory, serial) if serial > 0 else None
    if segment is None:
        return dict.fromkeys(Stream, 0)
    try:
        return {stream: segment.end(stream) for stream in Stream}
    finally:
        segment.close()


def open_segment(directory: int, least: int) -> Segment | None:
    """The first segment there is whose serial is ``least`` or more.

    None if there is none yet, or if the writer is just making it. Segments may be finished and
    dropped all the while.
    """
    while True:
        segment = open_finished(directory, least)
        if segment is not None:
            return segment
        current = open_current(directory)
        if current is not None and current.serial == least:
            return current
        # A listing may miss a file that is just renamed, which can only be the one opened above.
        serials = [serial for serial in finished_serials(directory) if serial >= least]
        if current is None:
            if not serials:
                return None
        elif current.serial > least and (not serials or serials[0] > current.serial):
            return current
        else:
            current.close()
            if not serials:
                return None
        least = serials[0]


def open_last(directory: int) -> Segment:
    """The segment that has the last bytes, with or without an index."""
    while True:
        segment = open_current(directory)
        if segment is None:
            serials = finished_serials(directory)
            if not serials:
                return Segment(directory, 1, -1, dict.fromkeys(Stream, 0), finished=False)
            segment = open_finished(directory, serials[-1])
        if segment is not None:
            return segment
