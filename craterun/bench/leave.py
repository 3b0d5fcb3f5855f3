"""How a process with a craterun supervisor in it leaves early, and leaves nothing behind."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def cancelled_on_signals() -> AsyncIterator[None]:
    """Cancel the body on SIGTERM or SIGINT, and exit when it has unwound.

    An exception out of a signal handler would come up anywhere, also where the
    supervisor is just about to note what it has made.
    """
    received: list[int] = []

    async def listen(signals: AsyncIterator[int]) -> None:
        async for number in signals:
            received.append(number)
            nursery.cancel_scope.cancel()

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, signals)
            yield
            nursery.cancel_scope.cancel()
    if received:
        raise SystemExit(128 + received[0])
