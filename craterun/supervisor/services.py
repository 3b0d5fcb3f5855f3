"""What every container of a supervisor shares: the keeper's link and the clerk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from craterun.linux.host import is_in_memory
from craterun.supervisor.clerk import Clerk
from craterun.supervisor.link import KeeperLink


class Services:
    """Owns the link to the keeper, and the clerk.

    :ivar link: launches processes and tells of their ends
    :ivar clerk: does file work
    """

    def __init__(self, link: KeeperLink, root: str) -> None:
        """:param root: the state directory, which decides where file work is done"""
        self.link = link
        self.clerk = Clerk(in_place=is_in_memory(root))

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Both serve as long as the block runs.

        They must outlive every container's last news and last record, so they end with the block
        and not by whatever cancels the caller. Afterwards the keeper has gone and is reaped.
        """
        scope = trio.CancelScope(shield=True)

        async def serve() -> None:
            with scope:
                async with trio.open_nursery() as both:
                    both.start_soon(self.link.serve)
                    both.start_soon(self.clerk.serve)

        try:
            async with trio.open_nursery() as outer:
                outer.start_soon(serve)
                try:
                    yield
                finally:
                    scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self.link.aclose()
