"""Files that a command through a server is told to read and write: they are the client's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import Cli
from tests.serving import Server

pytestmark = pytest.mark.no_server  # each has one of its own
cli = helpers.cli
LINE_BYTES = 100_000


@contextmanager
def pipe_with(data: bytes) -> Iterator[int]:
    """A descriptor that only who inherits it can open by its name."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    try:
        yield reader
    finally:
        os.close(reader)


def test_an_env_file_that_only_the_client_can_open_is_read_by_it(
    server: Server, cli: Cli, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    for folder in ("/dev/fd", "/proc/self/fd", str(link)):
        with pipe_with(b"A=b\n") as reader:
            link.unlink(missing_ok=True)
            link.symlink_to(f"/dev/fd/{reader}")
            name = str(link) if folder == str(link) else f"{folder}/{reader}"
            words = ("run", "--attach", "--env-file", name, "--", "sh", "-c", "echo $A")
            finished = cli(*words, pass_fds=[reader])
        assert (finished.returncode, finished.stdout, finished.stderr) == (0, b"b\n", b"")
    finished = cli("run", "-a", "--env-file", "/dev/stdin", "--", "env", stdin=b"A=from stdin\n")
    assert finished.returncode == 0
    assert b"A=from stdin\n" in finished.stdout


def test_a_pipe_is_read_once_though_the_server_declines_what_was_in_it(
    server: Server, cli: Cli, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = cli.start("run", "--attach", "--env-file", str(fifo), "--", "true")
    with open(fifo, "wb") as file:
        for number in range(60):
            file.write(b"V%d=%s\n" % (number, b"\xff" * LINE_BYTES))
    _, err = process.communicate(timeout=helpers.PATIENCE_SECONDS)
    assert process.returncode == 126
    assert b"too long" in err


def test_a_batch_reads_and_writes_what_only_the_client_can_open(
    server: Server, cli: Cli, tmp_path: Path
) -> None:
    line = json.dumps({"command": ["sh", "-c", "echo $A"]}).encode() + b"\n"
    with pipe_with(line) as jobs, pipe_with(b"A=b\n") as variables:
        finished = cli(
            "batch", f"/dev/fd/{jobs}", "--env-file", f"/dev/fd/{variables}", "--quiet",
            "--output", "/proc/self/cwd/results", "--capture", "1k",
            pass_fds=[jobs, variables], cwd=tmp_path,
        )  # fmt: skip
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert json.loads((tmp_path / "results").read_text())["stdout"] == "b\n"


@pytest.mark.parametrize("how", ["--attach", "--detach"])
def test_a_cidfile_in_the_clients_directory_by_whatever_name(
    server: Server, cli: Cli, tmp_path: Path, how: str
) -> None:
    finished = cli("run", how, "--cidfile", "/proc/self/cwd/id", "--", "true", cwd=tmp_path)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert {(tmp_path / "id").read_text()} == cli.ids()


def test_a_cidfile_that_is_no_file_is_refused_as_without(server: Server, cli: Cli) -> None:
    for name in ("/dev/stdout", "/dev/null"):
        complaint = cli.refused("run", "--cidfile", name, "--", "true")
        assert complaint == cli.refused("--no-serve", "run", "--cidfile", name, "--", "true")


def test_a_root_directory_by_way_of_the_clients_own(server: Server, cli: Cli, rootfs: Path) -> None:
    (rootfs / "mark").write_text("here\n")
    words = ("run", "--attach", "--rootfs", "/proc/self/cwd", "--", "cat", "/mark")
    expected = cli("--no-serve", *words, cwd=rootfs)
    finished = cli(*words, cwd=rootfs)
    assert finished.returncode == expected.returncode
    assert (finished.stdout, finished.stderr) == (expected.stdout, expected.stderr)


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
