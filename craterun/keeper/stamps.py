"""Times of day of children, told without a system call.

A child cannot send anything once it has executed its command, and a message just before would wake
the keeper once more. So it leaves the time in memory that it shares with the keeper: the page goes
away with execve(2), and what is in it is believed only between the times that the keeper read
itself.
"""

from __future__ import annotations

import time

from craterun.linux import calls

_SLOTS = 512
"""As many children can be on their way to execve at once, and have their times kept apart."""


class Stamps:
    """A page of times, nanoseconds of CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._page, self._times = calls.shared_integers(_SLOTS)
        self._slot = 0

    def reserve(self, number: int) -> None:
        """Before the clone: the next `stamp` is that of child ``number``."""
        self._slot = number % _SLOTS
        self._times[self._slot] = 0

    def stamp(self) -> None:
        """In the child: it is now."""
        self._times[self._slot] = time.monotonic_ns()

    def of(self, number: int) -> int:
        """When child ``number`` has called `stamp`; 0 if it has not."""
        return int(self._times[number % _SLOTS])

    def drop(self) -> None:
        """In a child that stays: share nothing with the keeper any more."""
        calls.unmap(self._page)
