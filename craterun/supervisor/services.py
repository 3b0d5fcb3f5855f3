"""What every container of a supervisor shares: keeper's link, clerk, OOM monitor, journal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from craterun.core.spec import HostFacts
from craterun.linux.host import is_in_memory
from craterun.state.journal import Journal
from craterun.supervisor.clerk import Clerk
from craterun.supervisor.link import KeeperLink
from craterun.supervisor.oom import OomMonitor


class Services:
    """Owns the link to the keeper, the clerk, the OOM monitor and the journals.

    :ivar link: launches processes and tells of their ends
    :ivar facts: what this host can do
    :ivar clerk: does file work
    :ivar oom: watches counters
    """

    def __init__(self, link: KeeperLink, root: str, facts: HostFacts) -> None:
        """:param root: the state directory, which decides where file work is done"""
        self.link = link
        self.facts = facts
        self.oom = OomMonitor(facts)
        self._journals: dict[str, Journal] = {}
        self.clerk = Clerk(in_place=is_in_memory(root))

    def journal(self, root: str) -> Journal:
        """That of a state directory; for the clerk's use only, since it writes to a file."""
        return self._journals.setdefault(root, Journal(root))

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """All serve as long as the block runs.

        They must outlive every container's last news and last record, so they end with the block
        and not by whatever cancels the caller. Afterwards the keeper has gone and is reaped.
        """
        scope = trio.CancelScope(shield=True)

        async def serve() -> None:
            with scope:
                async with trio.open_nursery() as all_of_them:
                    all_of_them.start_soon(self.link.serve)
                    all_of_them.start_soon(self.clerk.serve)
                    all_of_them.start_soon(self.oom.serve)

        try:
            async with trio.open_nursery() as outer:
                outer.start_soon(serve)
                try:
                    yield
                finally:
                    scope.cancel()
        finally:
            for journal in self._journals.values():
                journal.close()
            with trio.CancelScope(shield=True):
                await self.link.aclose()
