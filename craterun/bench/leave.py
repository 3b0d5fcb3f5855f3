"""How a process with a craterun supervisor in it leaves early, and leaves nothing behind."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from craterun.core.errors import CraterunError


@asynccontextmanager
async def cancelled_on_signals() -> AsyncIterator[None]:
    """Cancel the body on SIGTERM, SIGHUP or SIGINT, and exit when it has unwound.

    An exception out of a signal handler would come up anywhere, also where the
    supervisor is just about to note what it has made.  One of the body's comes
    up as it is, and of several that are all errors of craterun's the first one.
    """
    received: list[int] = []

    async def listen(signals: AsyncIterator[int]) -> None:
        async for number in signals:
            received.append(number)
            nursery.cancel_scope.cancel()

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP, signal.SIGINT) as signals:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen, signals)
                yield
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            if received:
                raise SystemExit(128 + received[0]) from group
            ours, others = group.split(CraterunError)
            if others is None and ours is not None:
                raise _first(ours) from None
            raise
    if received:
        raise SystemExit(128 + received[0])


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
