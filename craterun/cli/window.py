"""What a container is to know of the terminal that we run in; asked before trio is imported."""

from __future__ import annotations

import os

DEFAULT_WINDOW = (24, 80)


def our_window(streams: tuple[int, int, int] = (0, 1, 2)) -> tuple[int, int]:
    """(rows, columns) of the terminal that we run in, or of the usual one.

    :param streams: descriptors, one of which may be that terminal
    """
    from craterun.linux.terminal import window_size

    for fd in streams:
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
