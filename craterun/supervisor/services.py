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
from craterun.supervisor.readiness import Readiness


class Services:
    """Owns the link to the keeper, the clerk, the OOM monitor and the journals.

    :ivar link: launches processes and tells of their ends
    :ivar facts: what this host can do
    :ivar clerk: does file work
    :ivar oom: watches counters
    :ivar ready: calls back when a descriptor is readable
    :ivar tasks: of all that must not end before the last container has
    """

    tasks: trio.Nursery

    def __init__(self, link: KeeperLink, root: str, facts: HostFacts) -> None:
        """:param root: the state directory, which decides where file work is done"""
        self.link = link
        self.facts = facts
        self.oom = OomMonitor(facts)
        self.ready = Readiness()
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
        scope, begun = trio.CancelScope(shield=True), trio.Event()

        # Ctrl-C, where a program leaves it to trio, ends what the program does and not this.
        @trio.lowlevel.enable_ki_protection
        async def serve() -> None:
            with scope:
                async with trio.open_nursery() as self.tasks:
                    self.tasks.start_soon(self.link.serve)
                    self.tasks.start_soon(self.clerk.serve)
                    self.tasks.start_soon(self.oom.serve)
                    self.tasks.start_soon(self.ready.serve)
                    begun.set()

        try:
            async with trio.open_nursery() as outer:
                # Not Nursery.start: if the caller is cancelled already, that waits for a task to
                # end by this, which one that is shielded does not.
                outer.start_soon(serve)
                with trio.CancelScope(shield=True):
                    await begun.wait()
                try:
                    yield
                finally:
                    scope.cancel()
        finally:
            for journal in self._journals.values():
                journal.close()
            with trio.CancelScope(shield=True):
                await self.link.aclose()
