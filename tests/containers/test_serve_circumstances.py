"""What a container inherits from who starts it: the server's would come out differently."""

from __future__ import annotations

import pytest

from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli
from tests.containers.streams_helpers import parent_of
from tests.serving import Server

pytestmark = pytest.mark.no_server  # each has one of its own
cli = helpers.cli


@pytest.mark.parametrize(
    "prefix",
    [
        ("linux32",),
        ("setarch", "--addr-no-randomize"),
        ("chrt", "--batch", "0"),
        ("chrt", "--idle", "0"),
        ("ionice", "-c", "3"),
        ("sh", "-c", 'echo 0x7f >/proc/self/coredump_filter; exec "$@"', "sh"),
        ("sh", "-c", 'echo 123456 >/proc/self/timerslack_ns; exec "$@"', "sh"),
    ],
    ids=["personality", "layout", "batch", "idle", "io", "coredump", "timerslack"],
)
def test_what_a_container_would_inherit_is_respected(
    server: Server, cli: Cli, prefix: tuple[str, ...]
) -> None:
    """The server cannot give it to its containers, so it leaves them to the client."""
    keeper = server.children()["craterun-keeper"]
    assert parent_of(cli.behind("env").detach("--", *SLEEP).pid) == keeper
    assert parent_of(cli.behind(*prefix).detach("--", *SLEEP).pid) != keeper


def test_the_machine_is_the_one_that_was_asked_for(server: Server, cli: Cli) -> None:
    finished = cli.behind("linux32")("run", "--attach", "--", "uname", "-m")
    assert (finished.returncode, finished.stdout) == (0, b"i686\n")
