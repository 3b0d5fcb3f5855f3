"""The short way from a log to a reader who has printed all of it.

What such a reader waits for is one chunk, most of the time: a few bytes at the end of a file. The
ordinary way (`LogCursor.read`) asks first what has become of the log, and takes from the index what
there is to read; meanwhile these bytes wait. Here they are read and written first, and everything
else is asked for afterwards. Whatever is not as usual is left to the ordinary way: nothing that
this one has not printed counts as read.

What makes that right is the order in which a writer does things (`state.logindex`): a chunk's bytes
come before its entry in the index, and that before the next chunk's bytes, of whichever stream.

- So bytes that were read from one file are the next ones of the whole log, if there was no entry
  for them *after* they had been read; or just one, that ends where they do.
- Each write to a file is news, that to the index, too. Who has taken the news and then finds no
  further entry in the index will be told of the next one. So the news of the bytes themselves only
  make it quicker.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Mapping

from craterun.linux.scheduling import FEW_BYTES
from craterun.linux.watches import FolderWatches, written
from craterun.state.logcursor import LogCursor, Spot
from craterun.state.logindex import ENTRY, FILES, INDEX, Kind, Stream

MOST_BYTES = 64 * 1024
"""More than that is not one chunk, and better read in larger pieces."""
_ENTRIES_BYTES = 64 * ENTRY.size

Ready = list[tuple[int, int]]
"""As select.poll gives it."""


class ExpressWay:
    """Prints what comes, for as long as it is the usual."""

    def __init__(
        self,
        cursor: LogCursor,
        targets: Mapping[Stream, int],
        put: Callable[[int, bytes], None],
    ) -> None:
        """:param cursor: moves on with what is printed
        :param targets: where to write each of the streams that are wanted
        :param put: writes what a target does not take at once
        """
        self._cursor = cursor
        self._targets = targets
        self._put = put

    def serve(self, wait: Callable[[], Ready], watches: FolderWatches, watch: int) -> Ready:
        """Until there is something else to do: what ``wait`` has returned, nothing taken; or an
        empty list: what there is to be read.

        :param wait: until there are news
        :param watches: tells of the log's folder, as ``watch``
        :raises OSError: a target cannot be written to (any more)
        """
        spot = self._cursor.spot()
        if spot is None or not spot.files:
            return wait()
        way = _Way(spot)
        try:
            return self._serve(way, wait, watches, watch)
        finally:
            self._cursor.go_on_at(way.spot())

    def _serve(
        self, way: _Way, wait: Callable[[], Ready], watches: FolderWatches, watch: int
    ) -> Ready:
        only_news = [(watches.fileno(), select.POLLIN)]
        usual = _usual(watch, way.streams)
        news, catch_up = watches.read, way.catch_up
        alone = len(self._targets) == 1
        pread, write, give_way = os.pread, os.write, os.sched_yield
        while True:
            # Whatever can be done before the wait is: bytes wait for each instruction after it.
            fd, offset, target = way.fd, way.offset, self._targets[way.stream]
            if (ready := wait()) != only_news:
                return ready
            data = pread(fd, MOST_BYTES, offset)
            if not (alone and data):
                data = way.check(data)
                target = self._targets[way.stream]
            if data:
                try:
                    size = write(target, data)
                except BlockingIOError:  # somebody made the description that we share non-blocking
                    size = 0
                if size < len(data):
                    self._put(target, data[size:])
                way.go_on(len(data))
                if len(data) < FEW_BYTES:
                    give_way()  # what brings it to the screen may be waiting for this processor
            if news() not in usual or not catch_up():
                return []


def _usual(watch: int, streams: list[Stream]) -> frozenset[bytes]:
    """News that mean no more than that there may be something to read where we look."""
    index = written(watch, INDEX)
    found = {index}
    for stream in streams:
        data = written(watch, FILES[stream])
        found |= {data, data + index, index + data, index + data + index, data + index + data}
    return frozenset(found)


class _Way:
    """Where we are in a segment.

    :ivar streams: those that there are
    :ivar stream: the one that the last bytes were in
    :ivar fd: its file
    :ivar offset: how far it has been printed
    """

    def __init__(self, spot: Spot) -> None:
        self._index, self._place, files = spot
        self.streams = list(files)
        self._files = {stream: fd for stream, (fd, _) in files.items()}
        self._offsets = {stream: offset for stream, (_, offset) in files.items()}
        self._select(self.streams[0])

    def _select(self, stream: Stream) -> None:
        self.stream = stream
        self.fd = self._files[stream]
        self.offset = self._offsets[stream]

    def check(self, data: bytes) -> bytes:
        """Whether ``data``, which has just been read, is what comes next in the log; if there is
        none, look in the other stream. The next bytes, if they are found so easily.
        """
        for stream in self.streams:
            if data:
                break
            if stream is not self.stream:
                self._select(stream)
                data = os.pread(self.fd, MOST_BYTES, self.offset)
        if self.catch_up():
            return data
        block = os.pread(self._index, _ENTRIES_BYTES, self._place)
        if len(block) != ENTRY.size:
            return b""
        _, offset, length, stream, kind = ENTRY.unpack(block)
        end = self.offset + len(data)
        is_next = stream == self.stream and offset + length == end and kind == Kind.CHUNK
        return data if is_next else b""

    def go_on(self, size: int) -> None:
        """So much more was printed."""
        self.offset += size
        self._offsets[self.stream] = self.offset

    def catch_up(self) -> bool:
        """Read the index, as far as it speaks of what was printed. False: it tells of more."""
        while block := os.pread(self._index, _ENTRIES_BYTES, self._place):
            if len(block) % ENTRY.size:
                return False
            for _, offset, length, number, kind in ENTRY.iter_unpack(block):
                if kind != Kind.CHUNK or self._offsets.get(number, 0) < offset + length:
                    return False
                self._place += ENTRY.size
            if len(block) < _ENTRIES_BYTES:
                break
        return True

    def spot(self) -> Spot:
        """Where we are now."""
        files = {stream: (self._files[stream], self._offsets[stream]) for stream in self.streams}
        return Spot(self._index, self._place, files)
