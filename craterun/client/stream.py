"""The journal as an async iterator, on asyncio and trio alike."""

from __future__ import annotations

from collections import deque

import anyio
import anyio.to_thread

from craterun.client.events import EventFeed
from craterun.core.events import Event


class EventStream:
    """Iterate over it with ``async for``; close it, or use it with ``async with``.

    It sees everything that is written from its making on, however late it is read.
    """

    def __init__(self, feed: EventFeed, *, follow: bool) -> None:
        """Takes ownership of ``feed``."""
        self._feed = feed
        self._follow = follow
        self._ready: deque[Event] = deque()
        self._ended = False

    @property
    def missed(self) -> int:
        """Segments of the journal (about 5000 events each) that were removed unread."""
        return self._feed.missed

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        while not self._ready:
            if self._ended:
                raise StopAsyncIteration
            left = self._feed.seconds_left()
            # Not abandoned when cancelled: what was read would be lost to the next call.
            self._ready.extend(await anyio.to_thread.run_sync(self._feed.read))
            if not self._follow or left == 0:
                self._ended = True
            elif not self._ready:
                with anyio.move_on_after(left):
                    await anyio.wait_readable(self._feed.fileno())
                    self._feed.take_news()
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Stop following. Nothing, the second time."""
        self._ended = True
        self._feed.close()

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
