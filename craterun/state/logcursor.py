"""Read a log in the order in which it was written, from anywhere in it, again and again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import NamedTuple

from craterun.state.logindex import ENTRY, Kind, Stream
from craterun.state.logsegment import Segment, open_last, open_segment

_READ_BYTES = 1024 * 1024
_INDEX_BYTES = ENTRY.size * 4096
_ENDLESS = 1 << 63


class Piece(NamedTuple):
    """Bytes of one stream.

    :ivar offset: of its first byte, since the container began
    :ivar time_ns: when they were read from the container, nanoseconds since the epoch; only of a
        cursor that is `timed`, else that of some chunk nearby
    """

    stream: Stream
    offset: int
    time_ns: int
    data: bytes


class Place(NamedTuple):
    """Where to begin: an entry of a segment's index, and the first byte of each stream."""

    serial: int
    index_place: int
    positions: dict[Stream, int]


class Spot(NamedTuple):
    """Where the next bytes will be, as long as the segment is the one that is written to.

    :ivar entries: the index, borrowed
    :ivar place: of the first entry that was not read, in bytes
    :ivar files: of each stream that has one: the file, borrowed, and the first byte in it that was
        not read
    """

    entries: int
    place: int
    files: dict[Stream, tuple[int, int]]


class _Phase(Enum):
    """Of a stream, between --since and --until. A line belongs to the chunk that it began in."""

    BEFORE = 1  # no chunk has been late enough
    SEEKING = 2  # one was, but it began amid a line
    WITHIN = 3
    LAST_LINE = 4  # a chunk was too late, but it began amid a line
    AFTER = 5


class LogCursor:
    """A reader's place in a log.

    :ivar positions: how far each stream has been read, in bytes since the container began
    :ivar missed: bytes that had been removed by rotation before this cursor got there
    :ivar ended: the writer's end mark is the last thing that was read
    :ivar complete: nothing more can come that was asked for
    """

    def __init__(
        self,
        directory: int,
        *,
        streams: Iterable[Stream] = Stream,
        timed: bool = False,
        since_ns: int | None = None,
        until_ns: int | None = None,
        start: Place | None = None,
    ) -> None:
        """:param directory: the container's folder, borrowed
        :param streams: which are wanted
        :param timed: a piece never spans two chunks
        :param since_ns: begin with the first line whose chunk came then or later
        :param until_ns: end before the first line whose chunk came then or later
        :param start: default: the beginning of what is kept
        """
        self._directory = directory
        self._wanted = frozenset(streams)
        self._timed = timed
        self._since = since_ns
        self._until = until_ns
        self.missed = dict.fromkeys(Stream, 0)
        self.ended = False
        self._segment: Segment | None = None
        self._next = start.serial if start else 0
        self._place = start.index_place if start else 0
        self.positions: dict[Stream, int] = dict(start.positions) if start else {}
        self._last = dict.fromkeys(Stream, b"\n")
        self._time = 0
        begin = _Phase.WITHIN if since_ns is None else _Phase.BEFORE
        self._phases = dict.fromkeys(Stream, begin)
        self._limits = dict.fromkeys(Stream, _ENDLESS)

    @property
    def complete(self) -> bool:
        """Whether every wanted stream has passed --until, or the limits set by `stop_here`."""
        return all(
            self._phases[stream] is _Phase.AFTER
            or self.positions.get(stream, 0) >= self._limits[stream]
            for stream in self._wanted
        )

    def stop_here(self) -> None:
        """Read no further than what is there now, however fast the writer goes on."""
        segment = open_last(self._directory)
        try:
            self._limits = {stream: segment.end(stream) for stream in Stream}
        finally:
            segment.close()

    def read(self, *, final: bool = False) -> Iterator[Piece]:
        """All pieces that are there now and were not read yet.

        :param final: nobody will write any more, or nobody waits for it: give out bytes, too, that
            no entry of the index covers
        """
        while not self.complete:
            segment = self._segment or self._open(final=final)
            if segment is None:
                return
            # Asked before the index is read: what is read afterwards is then all of it.
            finished = segment.look()
            yield from self._read_all(segment, self._indexed(segment))
            if finished or final:
                yield from self._read_all(segment, self._unindexed(segment))
            if not finished:
                return
            self._leave(segment)

    def spot(self) -> Spot | None:
        """Where this cursor is; None: only `read` can tell what is to be given out next."""
        segment = self._segment
        if segment is None or segment.finished or self.ended or self._timed or self.complete:
            return None
        if self._since is not None or self._until is not None:
            return None
        files = {}
        for stream in self._wanted:
            if (fd := segment.file(stream)) >= 0:
                files[stream] = fd, self.positions[stream] - segment.bases[stream]
        # Finding the files may have told that they are finished.
        return None if segment.finished else Spot(segment.index, self._place, files)

    def go_on_at(self, spot: Spot) -> None:
        """After `spot`, all before that one was read by others."""
        assert self._segment is not None
        self._place = spot.place
        for stream, (_, offset) in spot.files.items():
            self.positions[stream] = self._segment.bases[stream] + offset

    def close(self) -> None:
        """Close what is open."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    # --- segments ---------------------------------------------------------------------------------

    def _open(self, *, final: bool) -> Segment | None:
        segment = open_segment(self._directory, self._next or 1)
        if segment is None and final and self._next <= 1:
            segment = open_last(self._directory)  # files without an index
        if segment is None:
            return None
        if self._next and segment.serial != self._next:
            self._place = 0
        self._begin(segment)
        self._segment = segment
        return segment

    def _begin(self, segment: Segment) -> None:
        """Take the segment's bases over; what is between our positions and those was removed."""
        for stream in Stream:
            base = segment.bases[stream]
            position = self.positions.setdefault(stream, base)
            if position < base:
                self.missed[stream] += base - position
                self.positions[stream] = base
                self._last[stream] = b"\n"

    def _leave(self, segment: Segment) -> None:
        for stream in Stream:
            size = segment.size(stream)
            if size:
                last = segment.read(stream, segment.bases[stream] + size - 1, 1)
                self._last[stream] = last or b"\n"
        self._next = segment.serial + 1
        self._place = 0
        self.close()

    # --- what to give out: (stream, time, start, end) ---------------------------------------------

    def _indexed(self, segment: Segment) -> Iterator[tuple[Stream, int, int, int]]:
        """As the index tells, neighbouring chunks of a stream joined unless times matter."""
        streams = {int(stream): stream for stream in Stream}
        joined: tuple[Stream, int, int, int] | None = None
        while not self.complete and (block := segment.read_index(self._place, _INDEX_BYTES)):
            block = block[: len(block) - len(block) % ENTRY.size]
            if not block:
                break
            for time_ns, offset, length, number, kind in ENTRY.iter_unpack(block):
                self._place += ENTRY.size
                if kind != Kind.CHUNK:
                    self.ended = kind == Kind.END
                    continue
                stream = streams.get(number)
                if stream is None:
                    continue
                self.ended = False
                self._time = time_ns
                span = self._advance(segment, stream, time_ns, offset + length)
                if span is None:
                    continue
                if (
                    joined is not None
                    and not self._timed
                    and joined[0] is stream
                    and joined[3] == span[2]
                    and span[3] - joined[2] <= _READ_BYTES
                ):
                    joined = (stream, joined[1], joined[2], span[3])
                    continue
                if joined is not None:
                    yield joined
                joined = span
        if joined is not None:
            yield joined

    def _advance(
        self, segment: Segment, stream: Stream, time_ns: int, end: int
    ) -> tuple[Stream, int, int, int] | None:
        """Move on to ``end``, an offset in the file; what of that is to be given out."""
        end = min(segment.bases[stream] + end, self._limits[stream])
        start = self.positions[stream]
        if end <= start:
            return None
        if stream not in self._wanted:
            self.positions[stream] = end
            return None
        if self._since is not None or self._until is not None:
            self._judge(segment, stream, time_ns)
        phase = self._phases[stream]
        if phase is _Phase.SEEKING:
            newline = self._after_newline(segment, stream, start, end)
            if newline is None:
                self.positions[stream] = end
                return None
            start = newline
            self._phases[stream] = _Phase.WITHIN
            if self._is_late(time_ns):
                self._phases[stream] = _Phase.AFTER
        elif phase is _Phase.LAST_LINE:
            newline = self._after_newline(segment, stream, start, end)
            if newline is not None:
                self._phases[stream] = _Phase.AFTER
                self.positions[stream] = end
                return stream, time_ns, start, newline
        self.positions[stream] = end
        if self._phases[stream] in (_Phase.BEFORE, _Phase.AFTER) or start == end:
            return None
        return stream, time_ns, start, end

    def _judge(self, segment: Segment, stream: Stream, time_ns: int) -> None:
        """What a chunk of this time means for its stream."""
        phase = self._phases[stream]
        if phase is _Phase.BEFORE and self._since is not None and time_ns >= self._since:
            whole = self._at_line_start(segment, stream)
            phase = _Phase.WITHIN if whole else _Phase.SEEKING
        if phase is _Phase.WITHIN and self._is_late(time_ns):
            whole = self._at_line_start(segment, stream)
            phase = _Phase.AFTER if whole else _Phase.LAST_LINE
        self._phases[stream] = phase

    def _is_late(self, time_ns: int) -> bool:
        return self._until is not None and time_ns >= self._until

    def _at_line_start(self, segment: Segment, stream: Stream) -> bool:
        position = self.positions[stream]
        if position > segment.bases[stream]:
            return segment.read(stream, position - 1, 1) in (b"\n", b"")
        return self._last[stream] == b"\n"

    @staticmethod
    def _after_newline(segment: Segment, stream: Stream, start: int, end: int) -> int | None:
        """Where the next line begins, if that is known before ``end``."""
        while start < end:
            data = segment.read(stream, start, min(_READ_BYTES, end - start))
            if not data:
                return None
            newline = data.find(b"\n")
            if newline >= 0:
                return start + newline + 1
            start += len(data)
        return None

    def _unindexed(self, segment: Segment) -> Iterator[tuple[Stream, int, int, int]]:
        """Bytes at the end that no entry covers: they came with, or after, the last one."""
        for stream in Stream:
            time_ns = self._time or segment.modified_ns(stream)
            span = self._advance(segment, stream, time_ns, segment.size(stream))
            if span is not None:
                yield span

    @staticmethod
    def _read_all(
        segment: Segment, spans: Iterator[tuple[Stream, int, int, int]]
    ) -> Iterator[Piece]:
        for stream, time_ns, begin, end in spans:
            start = begin
            while start < end:
                data = segment.read(stream, start, min(_READ_BYTES, end - start))
                if not data:
                    break  # somebody truncated the file
                yield Piece(stream, start, time_ns, data)
                start += len(data)
