"""What attach does while it is attached."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress

import trio

from craterun.cli.logs import WholeLog
from craterun.cli.signals import heeded
from craterun.cli.streams import feed_input
from craterun.cli.terminal import shown
from craterun.cli.window import our_window
from craterun.client import local
from craterun.core.errors import ContainerNotRunningError, NoSuchContainerError
from craterun.core.life import Record
from craterun.linux.fd import Fd
from craterun.linux.terminal import set_window_size
from craterun.state.openlog import OpenLog
from craterun.state.store import Store


async def show_container(
    store: Store, record: Record, entrance: Fd | None, from_start: bool, proxy: bool, keys: bytes
) -> bool:
    """Until the container has ended, or the user has left. Whether that was it.

    :param entrance: the master side of its terminal, or its input pipe, to type into; taken
    """
    # Before anything that makes the container write for us.
    log = OpenLog(store, record.id)
    output = WholeLog(log, from_start=from_start, terminal=record.terminal)
    master = entrance if record.terminal else None
    control = Fd(-1 if master is None else os.dup(master.fileno()))
    try:
        async with _forwarding(store, record, proxy), trio.open_nursery() as tasks:
            detached = trio.Event()

            async def leave() -> None:
                await detached.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(leave)
            if entrance is not None and master is None:
                tasks.start_soon(feed_input, entrance)
            async with _shown(control, master, keys, detached):
                # In a thread, which is left behind if the user leaves: it waits for the kernel.
                await trio.to_thread.run_sync(
                    output.copy,
                    abandon_on_cancel=True,  # type: ignore[call-arg]  # newer than the stubs
                )
            tasks.cancel_scope.cancel()
        return detached.is_set()
    finally:
        control.close()
        if entrance is not None:
            entrance.close()


def _shown(
    control: Fd, master: Fd | None, keys: bytes, detached: trio.Event
) -> AbstractAsyncContextManager[None]:
    if control.closed:
        return nullcontext()

    def resize(rows: int, columns: int) -> None:
        set_window_size(control.fileno(), rows, columns)

    # A full-screen program draws itself anew when its window changes, and only then: so that the
    # newcomer sees it, the window is another one for a moment.
    rows, columns = our_window()
    with suppress(OSError):
        resize(max(1, rows - 1), columns)
    return shown(resize, master, keys=keys, detached=detached)


@asynccontextmanager
async def _forwarding(store: Store, record: Record, proxy: bool) -> AsyncIterator[None]:
    """Forward signals for as long as the block runs, unless the user wants them for us."""
    if not proxy:
        yield
        return
    with trio.open_signal_receiver(*heeded()) as signals:
        async with trio.open_nursery() as nursery:

            async def forward() -> None:
                async for number in signals:
                    with suppress(ContainerNotRunningError, NoSuchContainerError):
                        local.send_signal(store, record.id, number)

            nursery.start_soon(forward)
            yield
            nursery.cancel_scope.cancel()
