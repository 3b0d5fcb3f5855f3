"""Logs with bounds, and no log: rotation under readers, what is kept, what is told."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import Cli, Gate
from tests.containers.logs_helpers import MUCH, ended, err, out, sh, stopped
from tests.containers.streams_helpers import (
    digest,
    drain,
    noise,
    read_until,
    until,
)

cli = helpers.cli
make_gate = helpers.make_gate
MakeGate = Callable[[Path], Gate]


# --- rotation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["logs -f", "run --attach"])
def test_nothing_is_lost_when_files_rotate_under_a_reader(
    cli: Cli, rootfs: Path, how: str, make_gate: MakeGate
) -> None:
    (rootfs / "noise").write_bytes(noise(3, MUCH))
    go = make_gate(rootfs / "go")
    script = (
        "read x </go; for bs in 1000 7777 70000 300000; do dd if=/noise bs=$bs 2>/dev/null; "
        "dd if=/noise bs=$bs count=9 >&2 2>/dev/null; done"
    )
    options = ("--log-max-size", "50000", "--log-max-files", "100000")
    if how == "logs -f":
        live = cli.detach(*sh(rootfs, script, *options))
        process = cli.start("logs", "-f", live.id)
    else:
        process = cli.start("run", "--attach", *sh(rootfs, script, *options))
    go.open()
    errors = b"".join(noise(3, MUCH)[: bs * 9] for bs in (1000, 7777, 70000, 300000))
    expected = [digest(noise(3, MUCH) * 4), digest(errors)]
    assert drain(out(process), err(process)) == expected
    assert process.wait() == 0
    (found,) = cli.ids()
    directory = cli.state_root / found
    assert max(path.stat().st_size for path in directory.iterdir()) <= 50000
    result = cli("logs", found)
    assert [digest(result.stdout), digest(result.stderr)] == expected


def test_a_log_is_bounded_and_its_last_bytes_are_kept(cli: Cli, rootfs: Path) -> None:
    (rootfs / "noise").write_bytes(noise(4, MUCH))
    options = ("--log-max-size", "64k", "--log-max-files", "2")
    found = cli.ok("run", *sh(rootfs, "cat /noise; echo end", *options)).strip()
    sizes = [path.stat().st_size for path in (cli.state_root / found).glob("stdout.log*")]
    assert sum(sizes) <= 2 * 64 * 1024
    result = cli("logs", found)
    assert len(result.stdout) == sum(sizes)
    assert (noise(4, MUCH) + b"end\n").endswith(result.stdout)
    assert cli.record(found)["log"] == {"driver": "file", "max_bytes": 65536, "max_files": 2}


@pytest.mark.parametrize("how", ["logs -f", "run --attach"])
def test_a_reader_that_is_overtaken_is_told_how_much_it_missed(
    cli: Cli, rootfs: Path, how: str, make_gate: MakeGate
) -> None:
    (rootfs / "noise").write_bytes(noise(5, MUCH))
    go = make_gate(rootfs / "go")
    script = "echo first; read x </go; cat /noise; echo last"
    options = ("--log-max-size", "64k", "--log-max-files", "1")
    if how == "logs -f":
        live = cli.detach(*sh(rootfs, script, *options))
        process = cli.start("logs", "-f", live.id)
        read_until(out(process), b"first\n")
        stopped(process)
        go.open()
        cli.ok("wait", live.id)
        process.send_signal(signal.SIGCONT)
    else:
        process = cli.start("run", "--attach", *sh(rootfs, script, *options))
        read_until(out(process), b"first\n")
        go.open()
        (found,) = cli.ids()
        # Nobody reads, and the container writes all it has, all the same.
        until(cli.state_root / found, lambda: ends_with_last(cli.state_root / found))
    code, rest, complaint = ended(process)
    (missed,) = re.findall(rb"(\d+) bytes", complaint)
    assert code == 0
    assert len(rest) + int(missed) == MUCH + len(b"last\n")
    assert rest.endswith(b"last\n")


def ends_with_last(directory: Path) -> bool:
    """Whether the log, which may be amid a rotation, has come to its last line."""
    try:
        return (directory / "stdout.log").read_bytes().endswith(b"last\n")
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "options",
    [
        ("--log-max-size", "1k"), ("--log-max-size", "-1"), ("--log-max-size", "much"),
        ("--log-max-files", "0"), ("--log-driver", "none", "--log-max-files", "3"),
        ("--log-driver", "syslog"),
    ],
)  # fmt: skip
def test_malformed_bounds_are_refused(cli: Cli, rootfs: Path, options: tuple[str, ...]) -> None:
    message = cli.refused("run", *options, "--rootfs", str(rootfs), "--", "true")
    assert options[0] in message or "bytes" in message or "log files" in message
    assert not cli.ids()


@pytest.mark.parametrize("size", ["0", "max", "unlimited"])
def test_a_log_without_bound_is_one_file(cli: Cli, rootfs: Path, size: str) -> None:
    script = "head -c 300000 /dev/zero"
    found = cli.ok("run", *sh(rootfs, script, "--log-max-size", size)).strip()
    assert sorted(os.listdir(cli.state_root / found)) == [
        "log.index", "metadata.json", "stderr.log", "stdout.log"
    ]  # fmt: skip


# --- no log ---------------------------------------------------------------------------------------


def test_without_a_log_attached_readers_still_get_everything(cli: Cli, rootfs: Path) -> None:
    (rootfs / "noise").write_bytes(noise(6, MUCH))
    script = "cat /noise; cat /noise >&2; printf end"
    process = cli.start("run", "--attach", *sh(rootfs, script, "--log-driver", "none"))
    assert drain(out(process), err(process), read_bytes=5000) == [
        digest(noise(6, MUCH) + b"end"), digest(noise(6, MUCH))
    ]  # fmt: skip
    assert process.wait() == 0
    (found,) = cli.ids()
    assert os.listdir(cli.state_root / found) == ["metadata.json"]
    assert "keeps no log" in cli.refused("logs", found)


def test_without_log_and_reader_a_container_writes_into_the_void(cli: Cli, rootfs: Path) -> None:
    script = "head -c 3000000 /dev/zero; exit 4"
    result = cli("run", *sh(rootfs, script, "--log-driver", "none"))
    assert (result.returncode, result.stderr) == (4, b"")
