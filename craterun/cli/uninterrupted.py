"""Imports that nothing breaks or holds up."""

from __future__ import annotations

import ctypes
import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

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
    try:
        with _threads_in_libc():
            yield
    finally:
        sys.meta_path.remove(later)
        if collects:
            gc.freeze()  # or the first collection would look at all that was imported
            gc.enable()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Libraries(ModuleType):
    """In place of ``ctypes.util``, which takes other programs and slow imports to find a library.

    The C library has the threads in it since glibc 2.34; with others trio does without names.
    """

    def __init__(self) -> None:
        super().__init__("ctypes.util")

    @staticmethod
    def find_library(name: str) -> str:
        """A file name for ``ctypes.CDLL``."""
        del name
        return "libc.so.6"


@contextmanager
def _threads_in_libc() -> Iterator[None]:
    # The import system sets the attribute as well, where it finds the module itself.
    modules, package = sys.modules, vars(ctypes)
    before = modules.get("ctypes.util")
    modules["ctypes.util"] = package["util"] = _Libraries()
    try:
        yield
    finally:
        if before is None:
            del modules["ctypes.util"], package["util"]
        else:
            modules["ctypes.util"] = package["util"] = before
