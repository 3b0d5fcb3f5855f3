"""What `craterun logs` prints of what it has: streams, times, tails, several containers."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from craterun.core.instants import parse_instant
from craterun.state.logindex import read_index
from tests.conftest import cli_environment
from tests.containers import helpers
from tests.containers.helpers import Cli, Gate
from tests.containers.logs_helpers import ended, out, sh
from tests.containers.streams_helpers import (
    read_until,
    until,
)

cli = helpers.cli
make_gate = helpers.make_gate
MakeGate = Callable[[Path], Gate]


@pytest.fixture
def mixed(cli: Cli, rootfs: Path, make_gate: MakeGate) -> str:
    """Lines in a known order: each is in the log before the next one is written."""
    said = make_gate(rootfs / "said")
    step = "sync() { read x </go; }; "
    go = make_gate(rootfs / "go")
    script = step + "echo o1; sync; echo e1 >&2; sync; echo o2; sync; echo e2 >&2; sync; printf o3"
    live = cli.detach(*sh(rootfs, script))
    directory = cli.state_root / live.id

    def entries() -> int:
        index = directory / "log.index"
        return len(list(read_index(str(index)))) if index.exists() else 0

    for number in range(1, 5):
        until(directory, lambda number=number: entries() == number)  # type: ignore[misc]
        go.open()
    cli.ok("wait", live.id)
    del said
    return live.id


@pytest.mark.parametrize(
    ("options", "stdout", "stderr"),
    [
        ((), "o1\no2\no3", "e1\ne2\n"),
        (("--merge",), "o1\ne1\no2\ne2\no3", ""),
        (("--tail", "2", "--merge"), "e2\no3", ""),
        (("--tail", "3"), "o2\no3", "e2\n"),
        (("-n", "0"), "", ""),
        (("-n", "all", "--stream", "stderr"), "", "e1\ne2\n"),
        (("-n", "1", "--stream", "stdout"), "o3", ""),
        (("--stream", "stderr", "--merge"), "e1\ne2\n", ""),
        (("--since", "1h",), "o1\no2\no3", "e1\ne2\n"),
        (("--until", "1h",), "", ""),
        (("--since", "2100-01-01",), "", ""),
        (("--since", "1h", "--tail", "1"), "o3", ""),
    ],
)  # fmt: skip
def test_options_choose(
    cli: Cli, mixed: str, options: tuple[str, ...], stdout: str, stderr: str
) -> None:
    result = cli("logs", *options, mixed)
    assert (result.returncode, result.stdout.decode(), result.stderr.decode()) == (
        0, stdout, stderr
    )  # fmt: skip


def test_times_are_those_of_the_index_and_since_takes_them_back(cli: Cli, mixed: str) -> None:
    index = list(read_index(str(cli.state_root / mixed / "log.index")))
    lines = cli.ok("logs", "-t", "--merge", mixed).split("\n")
    assert [line.split()[1] for line in lines] == ["o1", "e1", "o2", "e2", "o3"]
    stamps = [line.split()[0] for line in lines]
    assert [parse_instant(stamp, 0) for stamp in stamps] == [entry.time_ns for entry in index]
    assert cli.ok("logs", "--merge", "--since", stamps[2], mixed) == "o2\ne2\no3"
    assert cli.ok("logs", "--merge", "--until", stamps[2], mixed) == "o1\ne1\n"
    between = ("--since", stamps[1], "--until", stamps[3])
    assert cli.ok("logs", "--merge", *between, mixed) == "e1\no2\n"
    assert cli.ok("logs", "--merge", *between, "--tail", "1", mixed) == "o2\n"
    assert cli.ok("logs", "-f", "--merge", *between, mixed) == "e1\no2\n"


def test_follow_until_a_time_returns_then(cli: Cli, rootfs: Path) -> None:
    live = cli.detach(*sh(rootfs, "echo first; exec sleep 1000000"))
    process = cli.start("logs", "-f", live.id)
    read_until(out(process), b"first\n")
    (entry,) = read_index(str(cli.state_root / live.id / "log.index"))
    seconds = entry.time_ns // 10**9 + 1
    assert cli.ok("logs", "-f", "--until", str(seconds), live.id) == "first\n"


def test_several_containers_have_a_prefix_and_whole_lines(cli: Cli, rootfs: Path) -> None:
    cli.ok("run", *sh(rootfs, "echo a1; printf a2", "--name", "a"))
    cli.ok("run", *sh(rootfs, "echo b1; echo b2 >&2", "--name", "long"))
    result = cli("logs", "a", "long")
    assert result.stdout == b"a    | a1\na    | a2\nlong | b1\n"
    assert result.stderr == b"long | b2\n"
    result = cli("logs", "a", "nobody")
    assert (result.returncode, result.stdout) == (125, b"a      | a1\na      | a2")
    assert b"no container 'nobody'" in result.stderr


@pytest.mark.parametrize("colour", [True, False])
def test_prefixes_are_coloured_on_a_terminal_unless_unwanted(
    cli: Cli, rootfs: Path, colour: bool
) -> None:
    for name in ("a", "b"):
        cli.ok("run", *sh(rootfs, f"echo {name}1", "--name", name))
    master, slave = pty.openpty()
    env = cli_environment(cli.state_root, {"TERM": "xterm", "NO_COLOR": "" if colour else "1"})
    subprocess.run(cli.command("logs", "a", "b"), stdout=slave, env=env, check=True)
    os.close(slave)
    shown = os.read(master, 1000)
    os.close(master)
    plain = b"a | a1\r\nb | b1\r\n"
    assert re.sub(rb"\x1b\[\d*m", b"", shown) == plain
    assert (shown != plain) == colour


def test_following_several_ends_with_the_last(cli: Cli, rootfs: Path, make_gate: MakeGate) -> None:
    gates = {name: make_gate(rootfs / name) for name in ("a", "b")}
    for name in gates:
        cli.detach(*sh(rootfs, f"echo {name}1; read x </{name}; printf {name}2", "--name", name))
    process = cli.start("logs", "-f", "a", "b")
    seen = read_until(out(process), b"1\n")
    if seen.count(b"\n") < 2:
        seen += read_until(out(process), b"1\n")
    assert sorted(seen.splitlines()) == [b"a | a1", b"b | b1"]
    gates["b"].open()
    read_until(out(process), b"b | b2")
    gates["a"].open()
    assert ended(process) == (0, b"\na | a2", b"")


@pytest.mark.parametrize("options", [("--tail", "-1"), ("--tail", "x"), ("--since", "yesterday")])
def test_malformed_choices_are_refused(cli: Cli, mixed: str, options: tuple[str, ...]) -> None:
    assert options[1] in cli.refused("logs", *options, mixed)


def test_the_tail_of_a_huge_log_reads_little(cli: Cli, rootfs: Path) -> None:
    found = cli.ok("run", *sh(rootfs, "echo x")).strip()
    with (cli.state_root / found / "stdout.log").open("r+b") as file:
        file.seek(5 * 1024**3)
        file.write(b"\nlast but one\nlast\n")
    code = (
        "import sys, craterun.cli.logs as logs; io = lambda: int(open('/proc/self/io').read()"
        ".split()[1]); before = io(); logs.logs(sys.argv[1], tail='2'); "
        "print(io() - before, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, found],
        env=cli_environment(cli.state_root),
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"last but one\nlast\n"
    assert int(done.stderr) < 3_000_000
