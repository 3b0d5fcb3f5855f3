"""Imports that nothing breaks or holds up."""

from __future__ import annotations

import ctypes.util
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
    what trio needs for other programs only is left for later. And where pthread_setname_np(3) is,
    it would have another program find out (ldconfig), to give its threads names.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    collects = gc.isenabled()
    gc.disable()
    later = LaterFinder()
    sys.meta_path.insert(0, later)
    find_library, ctypes.util.find_library = ctypes.util.find_library, _in_libc
    try:
        yield
    finally:
        ctypes.util.find_library = find_library
        sys.meta_path.remove(later)
        if collects:
            gc.freeze()  # or the first collection would look at all that was imported
            gc.enable()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_libc(name: str) -> str:
    """In place of ``ctypes.util.find_library``: glibc has its threads in there since 2.34; without,
    trio does without names.
    """
    del name
    return "libc.so.6"
