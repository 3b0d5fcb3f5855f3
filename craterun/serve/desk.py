"""Whether this process is a server's worker. Imports nothing, since most processes are none."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False  # typing is an import that many do without
if TYPE_CHECKING:
    from craterun.serve.jobs import Desk

_OF_EACH = ("/dev/", "/proc/")
_OF_ALL = "/dev/shm/"

current: Desk | None = None
"""In a worker: where the command finds its server."""


class DeclinedError(Exception):
    """The command has done nothing yet, and has to be run by the client itself."""


def leave_to_client(*paths: str | None, once: bool = False) -> None:
    """For files that the user has named, before they are opened. Below /dev and /proc, a path may
    be another file for each process: one of its descriptors, as of ``<(…)``, its terminal, its
    working directory.

    :param once: they may be read here and, should the command be declined later, by the client once
        more, which would find nothing left in a pipe
    :raises DeclinedError: this is a worker, and one of them is for the client to open
    """
    if current is None:
        return
    for path in paths:
        if path is not None and (_is_the_clients(path) or (once and not _can_be_read_again(path))):
            raise DeclinedError


def _is_the_clients(path: str) -> bool:
    ways = (os.path.abspath(path), os.path.realpath(path))
    return any(way.startswith(_OF_EACH) and not way.startswith(_OF_ALL) for way in ways)


def _can_be_read_again(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True  # it will be refused, here as there


def leave_terminal_alone() -> None:
    """For commands that read stdin in lines: the kernel stops a background process that reads from
    its terminal, but only if it belongs to that terminal's session. A worker does not.

    :raises DeclinedError: this is a worker, and stdin is a terminal
    """
    if current is not None and os.isatty(0):
        raise DeclinedError
