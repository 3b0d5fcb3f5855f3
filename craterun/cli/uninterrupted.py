"""Imports that Ctrl-C cannot break."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold SIGINT back while the block runs; it is handled right after.

    KeyboardInterrupt in the middle of an import does not always come out as such: an extension
    module may turn it into any other error (``_ssl``, which trio imports, into a TypeError).
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
