"""Lines out of a stream of bytes, read no further than they are asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from craterun.core.errors import UsageError

MAX_LINE_BYTES = 16 * 1024 * 1024
"""A longer line is refused and skipped; this and the jobs at work bound what is in memory."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """One line of the input.

    :ivar number: counted from 1, empty ones included
    :ivar content: without its end; None: it was too long
    """

    number: int
    content: bytes | None

    def text(self) -> bytes:
        """The content.

        :raises UsageError: it was too long
        """
        if self.content is None:
            raise UsageError(f"the line is longer than {MAX_LINE_BYTES} bytes")
        return self.content


class LineReader:
    """Divides what ``receive`` returns, which is b"" at the end.

    :ivar consumed: bytes of the input that were returned as lines
    """

    def __init__(
        self, receive: Callable[[], Awaitable[bytes]], limit: int = MAX_LINE_BYTES
    ) -> None:
        self.consumed = 0
        self._receive = receive
        self._limit = limit
        self._rest = bytearray()
        self._searched = 0
        self._skipping = False
        self._number = 0
        self._ended = False

    async def next(self) -> Line | None:
        """The next line that is not empty; None at the end. Cancelled, it loses nothing."""
        while True:
            line = self._take()
            if line is not None:
                if line.content is None or line.content.strip():
                    return line
            elif self._ended:
                return None
            else:
                data = await self._receive()
                self._rest += data
                self._ended = not data

    def _take(self) -> Line | None:
        """The next line that is here in full."""
        end = self._rest.find(b"\n", self._searched)
        if end < 0:
            if self._ended and (self._rest or self._skipping):
                end = len(self._rest)  # the last line may lack its end
            else:
                self._searched = len(self._rest)
                if self._searched > self._limit:
                    self.consumed += self._searched
                    self._rest.clear()
                    self._searched = 0
                    self._skipping = True
                return None
        content = None if self._skipping or end > self._limit else bytes(self._rest[:end])
        self.consumed += min(end + 1, len(self._rest))
        del self._rest[: end + 1]
        self._searched = 0
        self._skipping = False
        self._number += 1
        if self._number == 1 and content is not None:
            content = content.removeprefix(_BYTE_ORDER_MARK)
        return Line(self._number, content)
