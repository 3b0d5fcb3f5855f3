"""How many starts are under way at once; the others wait, first come first served."""

from __future__ import annotations

import os
from types import TracebackType

import trio

from craterun.core.errors import UsageError

STARTS_FOR_EACH_PROCESSOR = 4
"""Two hundred starts asked for at once on two processors: two at a time are slower by a fifth, as a
start sleeps now and then; from four on, the rate is that without a bound. Each start under way has
a process and a dozen descriptors in the keeper, so that more would only cost."""


def default_parallel_starts() -> int:
    """Four for each processor that this process may use, and no fewer than eight."""
    return max(8, STARTS_FOR_EACH_PROCESSOR * len(os.sched_getaffinity(0)))


class Admission:
    """An async context manager around each start. Waiting in line can be cancelled.

    :ivar most: starts under way at once
    """

    def __init__(self, most: int | None) -> None:
        """:param most: None: `default_parallel_starts`

        :raises UsageError: less than one
        """
        if most is not None and most < 1:
            raise UsageError(f"max_parallel_starts is {most}; it must be at least 1")
        self.most = default_parallel_starts() if most is None else most
        self._free = self.most
        self._line = trio.lowlevel.ParkingLot()

    @property
    def under_way(self) -> int:
        """How many there are."""
        return self.most - self._free

    async def __aenter__(self) -> None:
        # Whoever leaves hands the place to the first in line, so that nobody who comes just then
        # can take it: while there is a line, nothing is free.
        if self._free:
            self._free -= 1
        else:
            await self._line.park()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._line:
            self._line.unpark()
        else:
            self._free += 1
