"""How a benchmark is ended by signals: the first one ends it, and no further one its clean-up."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SWALLOWED_SECONDS = 1.0


@dataclass
class _State:
    """Of this process.

    :ivar received: signals that were to end it
    :ivar held: how many blocks are entered that no signal may come up in
    :ivar cleaning: the clean-up after a signal has begun
    :ivar quiet_until: no further signal raises before this time
    :ivar instead: what a signal does instead of raising
    """

    received: list[int] = field(default_factory=list)
    held: int = 0
    cleaning: bool = False
    quiet_until: float = 0.0
    instead: Callable[[], None] | None = None


_state = _State()


def exit_on_signals() -> None:
    """Turn SIGINT, SIGTERM and SIGHUP into SystemExit, so that clean-up code runs.

    Only the first one comes up: a second one would end what cleans up after the first.
    """
    for number in ENDING:
        signal.signal(number, _leave)


def _leave(number: int, _frame: FrameType | None) -> None:
    _state.received.append(number)
    if _state.instead is not None:
        _state.instead()
    elif not _state.held and not _state.cleaning and time.monotonic() >= _state.quiet_until:
        # Where this comes up in what may not fail, as in a finalizer, Python only prints it. Then
        # no clean-up begins, and a later signal has to have another try.
        _state.quiet_until = time.monotonic() + _SWALLOWED_SECONDS
        raise _exit()


def _exit() -> SystemExit:
    return SystemExit(128 + _state.received[0])


def received() -> bool:
    """Whether there was a signal that is to end this process."""
    return bool(_state.received)


def leave_if_told() -> None:
    """Raise SystemExit if there was a signal, with 128 and the number of the first one."""
    if _state.received:
        raise _exit()


@contextmanager
def held() -> Iterator[None]:
    """No signal comes up in the block, but right after it.

    For what is either done or not: whoever made something has to know of it.
    """
    _state.held += 1
    try:
        yield
    finally:
        _state.held -= 1
    if not _state.held:
        leave_if_told()


@contextmanager
def cleaning_up() -> Iterator[None]:
    """The same for a block that cleans up, which has to end by itself in a bounded time. After a
    signal, further ones are ignored from here until this process ends.
    """
    with held():
        if _state.received:
            _state.cleaning = True
        yield


@contextmanager
def instead(act: Callable[[], None]) -> Iterator[None]:
    """Signals call ``act`` while the block runs, and come up neither in it nor after it."""
    exit_on_signals()
    _state.instead = act
    try:
        if _state.received:  # held back until now
            act()
        yield
    finally:
        _state.cleaning = _state.cleaning or bool(_state.received)
        _state.instead = None
