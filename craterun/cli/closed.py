"""Standard streams that were closed when we were started, as by ``>&-``.

`craterun.__main__` has put /dev/null there. Most commands may go on with that; this is for those
whose work would be for nothing.
"""

from __future__ import annotations

from craterun.core.errors import UsageError
from craterun.serve import desk

streams: tuple[int, ...] = ()
"""The numbers of those."""


def require_stdin(remedy: str) -> None:
    """For a command that is about to read it.

    :param remedy: what to do about it
    :raises UsageError: there is none
    """
    _require(0, "stdin is closed, and there is nothing to be read", remedy)


def require_stdout(remedy: str) -> None:
    """For a command that is nothing without its output.

    :param remedy: what to do about it
    :raises UsageError: there is none
    """
    _require(1, "stdout is closed, and the results would be lost", remedy)


def _require(number: int, problem: str, remedy: str) -> None:
    # A worker has its client's streams; these here were its server's.
    if number in streams and desk.current is None:
        raise UsageError(f"{problem}; {remedy}")
