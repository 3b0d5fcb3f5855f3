"""Where the last lines of a log begin, found from its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from craterun.state.logcursor import Piece, Place
from craterun.state.logindex import Kind, Stream, entries_backward
from craterun.state.logsegment import Segment, open_finished, open_last

_BLOCK_BYTES = 64 * 1024
_LOOK_BACK_ENTRIES = 256 * 1024


class _Search:
    """The search for the last lines, fed with bytes from the end of the log to its beginning.

    The lines of both streams are in one order: that of their last bytes, which are newlines but for
    a stream's last line.

    :ivar starts: where output begins in each stream
    """

    def __init__(self, lines: int, ends: dict[Stream, int], wanted: frozenset[Stream]) -> None:
        self._left = lines
        self.starts = dict(ends)
        self._unseen = set(wanted)
        self._open: set[Stream] = set()  # the start of a chosen line is still being looked for
        self._over = set(Stream) - wanted

    def is_done(self) -> bool:
        """Whether nothing further back matters."""
        return not self._left and not self._open

    def ignores(self, stream: Stream) -> bool:
        """Whether bytes of ``stream`` matter no more."""
        return stream in self._over or (not self._left and stream not in self._open)

    def take(self, segment: Segment, stream: Stream, low: int, high: int) -> None:
        """Bytes ``low`` to ``high`` of ``stream``, which come before all that was taken."""
        while low < high and not self.ignores(stream):
            at = max(low, high - _BLOCK_BYTES)
            data = segment.read(stream, at, high - at)
            if data:
                self._take_block(stream, at, data)
            high = at

    def _take_block(self, stream: Stream, at: int, data: bytes) -> None:
        if stream in self._unseen:
            self._unseen.discard(stream)
            if not data.endswith(b"\n"):
                self._left -= 1
                self._open.add(stream)
        if not self._left and stream not in self._open:
            return
        position = len(data)
        if stream in self._open or self._left:
            count = data.count(b"\n")
            if count and count < self._left:
                self._left -= count
                self._open.add(stream)
                position = 0
            while position > 0:
                position = data.rfind(b"\n", 0, position)
                if position < 0:
                    break
                if not self._left:
                    if stream in self._open:
                        self._settle(stream, at + position + 1)
                    return
                self._left -= 1
                self._open.add(stream)
        if stream in self._open:
            self.starts[stream] = at

    def _settle(self, stream: Stream, start: int) -> None:
        self.starts[stream] = start
        self._open.discard(stream)
        self._over.add(stream)


def find_tail(directory: int, lines: int, streams: Iterable[Stream] = Stream) -> Place:
    """Where the last ``lines`` lines begin. Reads as far back as it must, and no further."""
    segment = open_last(directory)
    place = Place(segment.serial, segment.index_size, {s: segment.end(s) for s in Stream})
    search = _Search(lines, place.positions, frozenset(streams))
    serial = segment.serial
    try:
        while True:
            index_place = _search_segment(segment, search, place)
            serial = segment.serial
            if search.is_done() or serial == 1:
                break
            earlier = open_finished(directory, serial - 1)
            if earlier is None:
                break
            segment.close()
            segment = earlier
    finally:
        segment.close()
    return Place(serial, index_place, search.starts)


def _search_segment(segment: Segment, search: _Search, end: Place) -> int:
    """Go through one segment from its end; where in its index that stopped."""
    is_last = segment.serial == end.serial
    place = end.index_place if is_last else segment.index_size
    ends = end.positions if is_last else {stream: segment.end(stream) for stream in Stream}
    reached = dict(ends)
    for stream, low, high in _uncovered(segment, place, ends):
        search.take(segment, stream, low, high)
        reached[stream] = low
    if search.is_done():
        return place
    for at, (_, offset, length, number, kind) in entries_backward(segment.index, place):
        if kind != Kind.CHUNK or number not in (1, 2):
            continue
        stream = Stream(number)
        if search.ignores(stream):
            continue
        low = segment.bases[stream] + offset
        # Up to where the following chunk began: should the index have a gap, that is in between.
        search.take(segment, stream, low, max(low + length, reached[stream]))
        reached[stream] = low
        if search.is_done():
            return at
    for stream in reversed(Stream):
        search.take(segment, stream, segment.bases[stream], reached[stream])
    return 0


def _uncovered(
    segment: Segment, index_size: int, ends: dict[Stream, int]
) -> list[tuple[Stream, int, int]]:
    """Bytes at the end of a segment that its index does not cover, the last ones first."""
    covered = dict(segment.bases) if not index_size else {}
    for number, (_, (_, offset, length, stream, kind)) in enumerate(
        entries_backward(segment.index, index_size)
    ):
        if kind == Kind.CHUNK and stream in (1, 2) and stream not in covered:
            covered[Stream(stream)] = segment.bases[Stream(stream)] + offset + length
        if len(covered) == len(Stream) or number > _LOOK_BACK_ENTRIES:
            break
    else:
        covered = {**segment.bases, **covered}
    found = [(stream, covered.get(stream, ends[stream]), ends[stream]) for stream in Stream]
    return [(stream, low, high) for stream, low, high in reversed(found) if low < high]


def last_lines(pieces: Iterator[Piece], lines: int) -> dict[Stream, int]:
    """Where the last lines of any pieces begin, in each stream that has such; reads all of them."""
    ends: deque[tuple[tuple[int, int], Stream, int]] = deque(maxlen=lines)
    line_start: dict[Stream, int] = {}
    latest: dict[Stream, tuple[int, int, int]] = {}
    for number, (stream, offset, _, data) in enumerate(pieces):
        line_start.setdefault(stream, offset)
        at = 0
        while (newline := data.find(b"\n", at)) >= 0:
            ends.append(((number, newline), stream, line_start[stream]))
            at = newline + 1
            line_start[stream] = offset + at
        latest[stream] = (number, len(data), offset + len(data))
    unfinished = [
        ((number, size), stream, line_start[stream])
        for stream, (number, size, end) in latest.items()
        if line_start[stream] < end
    ]
    chosen = sorted([*ends, *unfinished])[-lines:] if lines else []
    starts: dict[Stream, int] = {}
    for _, stream, start in chosen:
        starts.setdefault(stream, start)
    return starts
