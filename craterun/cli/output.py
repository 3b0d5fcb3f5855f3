"""What a person sees: complaints, tables, JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from craterun.core.errors import printable


def complain(message: str) -> None:
    """One line on stderr, whatever characters of an argument or a container are in it."""
    try:
        print(f"craterun: {printable(message)}", file=sys.stderr, flush=True)
    except OSError:
        return  # nobody to tell


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns padded to their widest cell, two blanks apart; cells are made safe for a terminal."""
    lines = [tuple(header), *(tuple(printable(cell) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def shorten(text: str, width: int) -> str:
    """``text``, cut with an ellipsis if it is longer than ``width``."""
    return text if len(text) <= width else text[: width - 1] + "…"
