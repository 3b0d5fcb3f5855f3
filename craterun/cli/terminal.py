"""Our own terminal, while a container's is shown on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from craterun.cli.console import OWN, Console
from craterun.cli.streams import InputSource
from craterun.core.keys import KeyMatcher
from craterun.linux.fd import Fd
from craterun.linux.terminal import RawMode

_END_OF_TRANSMISSION = b"\x04"


@asynccontextmanager
async def shown(
    resize: Callable[[int, int], None],
    target: Fd | None,
    *,
    keys: bytes = b"",
    detached: trio.Event | None = None,
    console: Console = OWN,
) -> AsyncIterator[None]:
    """Connect our terminal for as long as the block runs; it is as it was afterwards.

    :param resize: called with the new size whenever our window changes
    :param target: the master side to type into; taken. None: what is typed stays with us.
    :param keys: a sequence of keys that is not passed on, but sets ``detached``
    :param console: what is ours, if it is not this process's own
    """
    with console.window_changes() as changes:
        async with trio.open_nursery() as tasks:

            async def follow_size() -> None:
                resize(*console.window())  # it may have changed since the start
                async for _ in changes:
                    resize(*console.window())

            tasks.start_soon(follow_size)
            if target is None:
                yield
            else:
                with RawMode(console.streams[0], drain=not console.shared):
                    tasks.start_soon(_type, console, target, KeyMatcher(keys), detached)
                    yield
            tasks.cancel_scope.cancel()


async def _type(
    console: Console, target: Fd, matcher: KeyMatcher, detached: trio.Event | None
) -> None:
    """Copy our stdin to a terminal. At its end, the terminal sees what Ctrl-D sends."""
    last = b"\n"
    async with (
        trio.lowlevel.FdStream(target.take()) as stream,
        InputSource(console.streams[0]) as source,
    ):
        while True:
            try:
                data = await source.read()
                if not data:
                    await stream.send_all(matcher.rest())
                    # Within a line the first one only ends the line's reading (termios(3), VEOF).
                    twice = 1 if last == b"\n" else 2
                    await stream.send_all(_END_OF_TRANSMISSION * twice)
                    break
                data, leaving = matcher.feed(data)
                await stream.send_all(data)
                last = data[-1:] or last
                if leaving and detached is not None:
                    detached.set()
                    return
            except (OSError, trio.BrokenResourceError):
                return
        await trio.sleep_forever()  # the stream stays open; the process decides when it ends
