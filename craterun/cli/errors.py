"""What is said of an error that is not the program's own."""

from __future__ import annotations

import os

from craterun.core.errors import CraterunError, printable


def explained(error: BaseException) -> tuple[str, int] | None:
    """The line for stderr, and the exit code; None for what nobody has foreseen."""
    if isinstance(error, CraterunError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        if error.errno is None:  # ours or a library's, not the kernel's: it has a text only
            return printable(str(error)) or type(error).__name__, 125
        where = f"{printable(str(error.filename))}: " if error.filename else ""
        from craterun.linux.shortage import cause

        why = cause(error.errno)
        return f"{where}{os.strerror(error.errno)}{why and '; '}{why}", 125
    return None


def single_cause(error: BaseException) -> BaseException:
    """What is at the bottom of groups of exceptions that have one cause; else ``error``."""
    inner = error
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    return inner
