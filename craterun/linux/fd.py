"""Descriptors with one owner each."""

from __future__ import annotations

import os
import resource
import warnings

from craterun.core.errors import UsageError

_FILES_EACH = 8
_FILES_BESIDES = 64


class Fd:
    """Owns a descriptor: closes it once, or hands it over with `take`.

    The number is forgotten before the descriptor is closed, so that a late user gets an error
    instead of somebody else's file.
    """

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        """Takes ownership of ``number``."""
        self._number = number

    def fileno(self) -> int:
        """The number, borrowed. `ValueError` if it was closed or taken."""
        if self._number < 0:
            raise ValueError("descriptor was closed or handed over")
        return self._number

    def take(self) -> int:
        """The number, whose ownership goes to the caller."""
        number = self.fileno()
        self._number = -1
        return number

    @property
    def closed(self) -> bool:
        """Whether there is nothing left to own."""
        return self._number < 0

    def close(self) -> None:
        """Close it; nothing happens the second time."""
        number, self._number = self._number, -1
        if number >= 0:
            os.close(number)

    def __del__(self) -> None:
        number = getattr(self, "_number", -1)
        if number >= 0:
            self.close()  # first: the warning may be an error
            warnings.warn(f"descriptor {number} was never closed", ResourceWarning, stacklevel=1)

    def __repr__(self) -> str:
        return f"Fd({self._number})"


def reserved_files(limit: int) -> int:
    """How many of a process's ``limit`` descriptors no further container may take.

    They are for what must not fail while containers run: their logs, counters and last records.
    """
    return min(64, limit // 4)


def is_plentiful(number: int) -> bool:
    """Whether there are enough descriptors for one that was just opened to be kept."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return number < limit - reserved_files(limit) // 2


def require_files_for(containers: int, option: str) -> None:
    """Check that so many containers may be started and looked after at once by one process.

    :param option: how they were asked for
    :raises UsageError: the hard limit of open files is too low for that
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = containers * _FILES_EACH + _FILES_BESIDES
    if needed > most != resource.RLIM_INFINITY:
        raise UsageError(
            f"{option} {containers} needs {needed} open files, and the hard limit is {most}; give "
            "fewer, or raise it with: ulimit -Hn"
        )
