"""The beginning of a container's output, kept in memory besides the log."""

from __future__ import annotations

from craterun.state.logindex import Stream


class Head:
    """The first bytes of each stream, and how many there were in all.

    It sees what the log's writer is given, so it has the beginning whatever rotation removes, and
    also where no log is kept. What came before it was installed is not counted.

    :ivar limit: bytes that are kept of each stream
    :ivar kept: these bytes
    :ivar totals: bytes that were written to each stream, whether kept or not
    """

    __slots__ = ("kept", "limit", "totals")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept = {stream: bytearray() for stream in Stream}
        self.totals = dict.fromkeys(Stream, 0)

    def add(self, stream: Stream, data: memoryview) -> None:
        """The next bytes. There is one caller at a time for each stream."""
        room = self.limit - self.totals[stream]
        if room > 0:
            self.kept[stream] += data[:room]
        self.totals[stream] += len(data)

    def is_full(self, stream: Stream) -> bool:
        """Whether `count` does for what comes now."""
        return self.totals[stream] >= self.limit

    def count(self, stream: Stream, size: int) -> None:
        """As `add`, of bytes that are not kept."""
        self.totals[stream] += size
