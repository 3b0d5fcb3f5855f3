"""Calls that may block, in a thread; and what becomes of them when there is no thread to be had."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

from craterun.linux.shortage import is_no_thread

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Call ``function`` in a thread, or in place at the limit on processes: better the event loop
    waits for a disk than something fails that others' limits have nothing to do with.
    """
    try:
        return await trio.to_thread.run_sync(function, *arguments)
    except RuntimeError as error:
        if not is_no_thread(error):
            raise
    return function(*arguments)
