"""Files that a command through a server is told to read and write: they are the client's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import Cli
from tests.serving import Server

pytestmark = pytest.mark.no_server  # each has one of its own
cli = helpers.cli
LINE_BYTES = 100_000


@pytest.mark.parametrize("detach", [False, True], ids=["attached", "detached"])
@pytest.mark.parametrize(
    ("letter", "lines"),
    [(b"\xff", 30), (b"\x01", 30), (b"x", 30), (b"\xff", 100)],
    ids=["no-utf8", "control", "plain", "larger"],
)
def test_an_environment_that_is_too_large_for_the_server_is_refused_as_without(
    server: Server, cli: Cli, tmp_path: Path, letter: bytes, lines: int, *, detach: bool
) -> None:
    """What an argument of execve(2) may be, or the message to the server: all end with an answer.

    As JSON, such characters are up to six times as long.
    """
    file, cidfile = tmp_path / "big.env", tmp_path / "id"
    file.write_bytes(b"".join(b"V%d=%s\n" % (n, letter * LINE_BYTES) for n in range(lines)))
    words = ("run", "--env-file", str(file), "--cidfile", str(cidfile))
    how = "--detach" if detach else "--attach"
    complaint = cli.refused(*words, how, "--", "true", code=126)
    assert "too long" in complaint
    assert complaint == cli.refused("--no-serve", *words, how, "--", "true", code=126)
    assert not cidfile.exists()
    assert cli.ids() == set()
    assert len(server.workers()) >= 1


def test_an_environment_as_large_as_the_kernel_takes_arrives(
    server: Server, cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "big.env"
    file.write_bytes(b"".join(b"V%d=%s\n" % (n, b"\xff" * LINE_BYTES) for n in range(15)))
    arguments = ("run", "--attach", "--env-file", str(file), "--", "sh", "-c", "printf %s $V14")
    finished = cli(*arguments)
    assert (finished.returncode, finished.stdout) == (0, b"\xff" * LINE_BYTES)
