"""Threads beside a test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def again_and_again(
    act: Callable[[], object], pause: Callable[[], float] = lambda: 0.0
) -> Iterator[None]:
    """A thread calls ``act`` as long as the block runs, ``pause()`` seconds before each time."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(pause()):
            act()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
