"""Hands the master side of a container's terminal to whoever attaches to it.

What they get is a descriptor of the terminal itself; from then on their keys and window sizes are
not our business, and however slow or dead they are, it is theirs. Output they read from the log,
which has all of it.
"""

from __future__ import annotations

import errno

import trio

from craterun.linux.doorway import give_terminal, open_doorway
from craterun.linux.fd import Fd

_SHORTAGE_SECONDS = 0.1


async def keep_doorway(container_id: str, master: Fd) -> None:
    """Until cancelled: give a descriptor of ``master``, which is borrowed, to all who may have it.

    :raises OSError: there cannot be such a socket
    """
    with open_doorway(container_id) as sock:
        while True:
            await trio.lowlevel.wait_readable(sock.fileno())
            try:
                give_terminal(sock, master)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    raise
                # Whoever waits goes on waiting, and so the socket stays readable: not at once.
                await trio.sleep(_SHORTAGE_SECONDS)
