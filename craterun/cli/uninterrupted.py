"""Imports that nothing breaks or holds up."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from craterun.cli.later import LaterFinder


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold SIGINT back while the block runs; it is handled right after.

    KeyboardInterrupt in the middle of an import does not always come out as such: an extension
    module may turn it into any other error (``_ssl``, which trio imports, into a TypeError).
    Nor is garbage collected meanwhile, of which imports leave little among much that stays, and
    what trio needs for other programs only is left for later.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    collects = gc.isenabled()
    gc.disable()
    later = LaterFinder()
    sys.meta_path.insert(0, later)
    try:
        yield
    finally:
        sys.meta_path.remove(later)
        if collects:
            gc.freeze()  # or the first collection would look at all that was imported
            gc.enable()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
