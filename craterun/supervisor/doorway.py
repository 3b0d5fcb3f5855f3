"""Hands the way into a container to whoever attaches to it: its terminal, or its input pipe.

What they get is a descriptor of the terminal or pipe itself; from then on what they type and their
window sizes are not our business, and however slow or dead they are, it is theirs. Output they read
from the log, which has all of it.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from craterun.linux.doorway import give_entrance, open_doorway
from craterun.linux.fd import Fd

logger = logging.getLogger("craterun")

_SHORTAGE_SECONDS = 0.1


async def keep_doorway(
    container_id: str, entrance: Fd, on_visit: Callable[[], None] = lambda: None
) -> None:
    """Until cancelled: give a descriptor of ``entrance``, which is borrowed, to all who may come.

    :param on_visit: called after somebody was there

    Where there cannot be such a socket, nobody can attach; that is no reason to end the container.
    """
    try:
        await _let_in(container_id, entrance, on_visit)
    except OSError as error:
        logger.warning("%s: nobody can attach to it: %s", container_id, error)


@asynccontextmanager
async def input_shared(container_id: str, pipe: Fd) -> AsyncIterator[None]:
    """While the block runs, others may write to an input pipe, too. Borrows ``pipe``, which may be
    closed or given away meanwhile.

    The block is what its owner writes. After that nobody is let in any more, and the container sees
    the end of its input when the last of those who were has closed it, too.
    """
    entrance = Fd(os.dup(pipe.fileno()))
    try:
        async with trio.open_nursery() as tasks:
            tasks.start_soon(keep_doorway, container_id, entrance)
            yield
            tasks.cancel_scope.cancel()
    finally:
        entrance.close()


async def _let_in(container_id: str, entrance: Fd, on_visit: Callable[[], None]) -> None:
    with open_doorway(container_id) as sock:
        while True:
            await trio.lowlevel.wait_readable(sock.fileno())
            try:
                if give_entrance(sock, entrance):
                    on_visit()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    raise
                # Whoever waits goes on waiting, and so the socket stays readable: not at once.
                await trio.sleep(_SHORTAGE_SECONDS)
