"""What the command line says of errors that are not its own."""

from __future__ import annotations

import errno
import socket

import pytest

from craterun.cli.errors import explained
from craterun.core.errors import UsageError
from craterun.serve.jobs import Desk


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UsageError("no"), ("no", 125)),
        (OSError(errno.EACCES, "x", "/a\n"), ("/a\\n: Permission denied", 125)),
        (OSError(errno.EIO, "x"), ("Input/output error", 125)),
        (ConnectionResetError("the server\n has gone"), ("the server\\n has gone", 125)),
        (BrokenPipeError(), ("BrokenPipeError", 125)),
        (ValueError("unforeseen"), None),
    ],
)
def test_every_error_is_told_by_what_it_says(
    error: Exception, told: tuple[str, int] | None
) -> None:
    assert explained(error) == told


def test_a_worker_whose_server_has_gone_says_so() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionResetError) as caught:
            Desk(ours).start(b"")
    assert explained(caught.value) == ("the server has gone", 125)
