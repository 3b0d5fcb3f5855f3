"""Whether this process is a server's worker. Imports nothing, since most processes are none."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing is an import that many do without
if TYPE_CHECKING:
    from craterun.serve.jobs import Desk

current: Desk | None = None
"""In a worker: where the command finds its server."""


class DeclinedError(Exception):
    """The command has done nothing yet, and has to be run by the client itself."""


def leave_terminal_alone() -> None:
    """For commands that read stdin in lines: the kernel stops a background process that reads from
    its terminal, but only if it belongs to that terminal's session. A worker does not.

    :raises DeclinedError: this is a worker, and stdin is a terminal
    """
    if current is not None and os.isatty(0):
        raise DeclinedError
