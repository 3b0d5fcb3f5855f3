"""A text that is shown again and again in the same place of a terminal."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

_USUAL_COLUMNS = 80
_CLEAR_SCREEN = "\x1b[H\x1b[2J"
_CLEAR_BELOW = "\x1b[J"

Size = Callable[[], os.terminal_size]


class Screen:
    """Draws lines over those that it drew before.

    The cursor stays visible and the terminal in its normal mode, so that there is nothing to be
    restored, whatever ends the program. Lines are cut to the terminal: one that wrapped, or
    scrolled away, could not be drawn over.
    """

    def __init__(self, write: Callable[[str], object], size: Size) -> None:
        """:param size: asked at each drawing, since the terminal may have changed"""
        self._write = write
        self._size = size
        self._lines = 0
        self._widest = 0

    def draw(self, lines: Sequence[str]) -> None:
        """Show ``lines`` in place of the former ones, in one write."""
        columns, rows = self._size()
        room = max(1, rows - 1)  # the last row is where the cursor waits
        shown = list(lines)
        if len(shown) > room:
            left_out = len(shown) - room + 1
            shown = [*shown[: room - 1], f"… and {left_out} more"]
        # One column less: a character in the last one leaves the cursor in a state that terminals
        # disagree about.
        shown = [line[: max(1, columns - 1)] for line in shown]
        if self._widest > columns - 1:
            # It has become narrower: the former lines were cut or wrapped, as the terminal likes.
            start = _CLEAR_SCREEN
        else:
            start = (f"\x1b[{self._lines}A" if self._lines else "") + "\r" + _CLEAR_BELOW
        self._write(start + "".join(f"{line}\r\n" for line in shown))
        self._lines = len(shown)
        self._widest = max(map(len, shown), default=0)


def can_draw(fd: int) -> bool:
    """Whether ``fd`` is a terminal that understands cursor movements."""
    return os.isatty(fd) and os.environ.get("TERM", "dumb") != "dumb"


def columns(fd: int) -> int:
    """How wide the terminal is; 80 if it does not say, or has gone, which is nobody's failure."""
    try:
        return os.get_terminal_size(fd).columns or _USUAL_COLUMNS
    except OSError:
        return _USUAL_COLUMNS
