"""Which of our signals a container gets."""

from __future__ import annotations

import signal

FORWARDED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip


def heeded() -> list[signal.Signals]:
    """What to forward: not what we were told to ignore, as by nohup or a shell's ``&``."""
    return [number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
