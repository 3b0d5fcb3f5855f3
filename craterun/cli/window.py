"""What a container is to know of the terminal that we run in; asked before trio is imported."""

from __future__ import annotations

import os

DEFAULT_WINDOW = (24, 80)


def our_window() -> tuple[int, int]:
    """(rows, columns) of the terminal that we run in, or of the usual one."""
    from craterun.linux.terminal import window_size

    for fd in (0, 1, 2):
        try:
            size = window_size(fd)
        except OSError:
            continue
        if all(size):
            return size
    return DEFAULT_WINDOW


def default_term(env: dict[str, str]) -> dict[str, str]:
    """``env`` with our own TERM, unless it says another: programs inside draw on our terminal."""
    return {"TERM": os.environ.get("TERM") or "xterm", **env}
