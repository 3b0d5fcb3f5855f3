"""run --merge-output: one pipe for both streams, and so one certain order."""

from __future__ import annotations

import os
from pathlib import Path

from tests.containers import helpers
from tests.containers.helpers import Cli, wait_exit

cli = helpers.cli

TURNS = "i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i + 1)); done"
EXPECTED = b"".join(b"out %d\nerr %d\n" % (i, i) for i in range(500))


def test_the_order_of_writing_is_kept_everywhere(cli: Cli, rootfs: Path) -> None:
    options = ("--merge-output", "--attach", "--rootfs", str(rootfs))
    finished = cli("run", *options, "--", "sh", "-c", TURNS)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, EXPECTED, b"")
    (container_id,) = cli.ids()
    assert cli.log(container_id) == EXPECTED
    assert cli.log(container_id, "stderr") == b""
    assert cli("logs", container_id).stdout == EXPECTED


def test_both_streams_are_one_pipe_inside(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--merge-output", "--rootfs", str(rootfs), "--", *helpers.SLEEP)
    ends = live.descriptors()
    assert ends[1] == ends[2]
    assert ends[1].startswith("pipe:")
    assert ends[0] == "/dev/null"


def test_input_still_arrives(cli: Cli, rootfs: Path) -> None:
    options = ("--merge-output", "-i", "--attach", "--rootfs", str(rootfs))
    finished = cli("run", *options, "--", "sh", "-c", "cat >&2", stdin=b"hello")
    assert (finished.returncode, finished.stdout) == (0, b"hello")


def test_a_successor_goes_on_with_the_one_pipe(cli: Cli, rootfs: Path) -> None:
    os.mkfifo(rootfs / "go")
    script = "echo one; cat /go >&2; echo two"
    command = ("run", "--merge-output", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    process = cli.start(*command)
    container_id = helpers.read_line(process)
    live = cli.live(container_id)
    process.kill()
    process.wait()
    (rootfs / "go").write_bytes(b"middle\n")
    wait_exit(live.pid)
    cli.ok("wait", container_id)
    assert cli.log(container_id) == b"one\nmiddle\ntwo\n"
