"""The state directory's filesystem is full, before, while and after a container runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import helpers
from tests.containers.helpers import ID, SLEEP, Aside, Cli, mount_namespace, read_line, wait_exit
from tests.leaks import take_footprint

cli = helpers.cli

ROOM = 64 * 1024
MEGABYTES = 4
WRITE = f"dd if=/dev/zero bs=64k count={MEGABYTES * 16} 2>/dev/null"


class SmallDisk:
    """A state directory on a tmpfs of `ROOM` bytes, which only this test's namespace has."""

    def __init__(self, cli: Cli, aside: Aside) -> None:
        self.cli = cli.behind(*aside.enter)
        self.path = aside.path(cli.state_root)
        """The directory as this process can reach it."""

    def ids(self) -> list[str]:
        """Containers that have a folder."""
        return [name for name in os.listdir(self.path) if ID.match(name)]

    def fill(self) -> None:
        """Leave no byte free."""
        filler = os.open(self.path / "filler", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            for size in (4096, 1):
                while True:
                    try:
                        os.write(filler, b"x" * size)
                    except OSError:
                        break
        finally:
            os.close(filler)
        state = os.statvfs(self.path)
        assert state.f_bavail == 0

    def status(self) -> list[tuple[str, object]]:
        """Id and exit code of each container that ``ps`` lists."""
        listed = json.loads(self.cli.ok("ps", "--format", "json"))
        return [(entry["id"], entry["exit_code"]) for entry in listed]


@pytest.fixture
def disk(cli: Cli) -> Iterator[SmallDisk]:
    """Has room for a few records, and not for much output."""
    cli.state_root.mkdir()
    script = f'mount -t tmpfs -o size={ROOM},nr_inodes=64 none "$1"'
    before = take_footprint().processes
    with mount_namespace(script, cli.state_root) as aside:
        small = SmallDisk(cli, aside)
        yield small
        if small.ids():
            small.cli("rm", "--force", *small.ids())
    for pid in take_footprint().processes - before:
        wait_exit(pid)


def test_a_container_that_fills_the_disk_goes_on_to_its_own_end(
    disk: SmallDisk, rootfs: Path
) -> None:
    script = f"echo begin; {WRITE}; echo end >&2; echo done > /finished; exit 7"
    result = disk.cli("run", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    assert result.returncode == 7
    assert (rootfs / "finished").read_text() == "done\n"
    container_id = result.stdout.decode().strip()
    complaint = result.stderr.decode()
    assert "No space left on device" in complaint
    assert container_id in complaint
    assert complaint.count("\n") == 1
    log = (disk.path / container_id / "stdout.log").read_bytes()
    assert 0 < len(log) < ROOM
    assert log == (b"begin\n" + bytes(ROOM))[: len(log)]
    lost = MEGABYTES * 1024 * 1024 + len("begin\nend\n") - len(log)
    stderr_log = disk.path / container_id / "stderr.log"
    lost -= stderr_log.stat().st_size if stderr_log.exists() else 0
    assert str(lost) in complaint
    assert disk.status() == [(container_id, 7)]
    assert "stopped (7)" in disk.cli.ok("ps")
    assert disk.cli("logs", container_id).stdout == log
    assert disk.cli.ok("wait", container_id) == "7\n"
    assert "No space left" in json.loads(disk.cli.ok("inspect", container_id))[0]["error"]
    assert disk.cli.ok("rm", container_id) == f"{container_id}\n"
    assert disk.ids() == []


def test_an_attached_reader_gets_output_that_the_disk_cannot_take(
    disk: SmallDisk, rootfs: Path
) -> None:
    script = "head -c 200000 /dev/zero | tr '\\0' x; exit 3"
    result = disk.cli("run", "--attach", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    assert (result.returncode, result.stdout) == (3, b"x" * 200_000)
    assert "No space left on device" in result.stderr.decode()


def test_a_detached_container_keeps_its_exit_code(disk: SmallDisk, rootfs: Path) -> None:
    script = f"{WRITE}; exit 9"
    container_id = disk.cli.ok(
        "run", "-d", "--rootfs", str(rootfs), "--", "sh", "-c", script
    ).strip()
    assert disk.cli.ok("wait", container_id) == "9\n"
    assert disk.status() == [(container_id, 9)]
    entry = json.loads(disk.cli.ok("inspect", container_id))[0]
    assert "No space left" in entry["error"]
    disk.cli.ok("rm", container_id)


def test_a_container_ends_well_when_others_filled_the_disk(disk: SmallDisk, rootfs: Path) -> None:
    os.mkfifo(rootfs / "go")
    script = "read x < /go; exit 5"
    process = disk.cli.start("run", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    container_id = read_line(process)
    disk.fill()
    (rootfs / "go").write_text("go\n")
    assert process.wait() == 5
    assert disk.status() == [(container_id, 5)]
    assert disk.cli.ok("rm", container_id) == f"{container_id}\n"


@pytest.mark.parametrize("mode", [(), ("--attach",), ("--detach",), ("--name", "one")])
def test_nothing_is_started_when_its_record_cannot_be_written(
    mode: tuple[str, ...], disk: SmallDisk, rootfs: Path
) -> None:
    disk.fill()
    arguments = ("--rootfs", str(rootfs), "--", "touch", "/started")
    message = disk.cli.refused("run", *mode, *arguments)
    assert "No space left on device" in message
    assert "--root" in message
    assert disk.ids() == []
    assert not (rootfs / "started").exists()
    assert disk.cli.ok("ps", "-q") == ""


def test_nothing_is_started_when_there_are_no_inodes(disk: SmallDisk, rootfs: Path) -> None:
    number = 0
    while os.statvfs(disk.path).f_ffree:
        (disk.path / f"file-{number}").touch()
        number += 1
    for name in ((), ("--name", "one")):
        message = disk.cli.refused("run", *name, "--rootfs", str(rootfs), "--", "true")
        assert "No space left on device" in message
    # Room for the folder and for the record, but not for more: begun or not, nothing stays behind.
    for free in range(1, 6):
        (disk.path / f"file-{free}").unlink()
        before = os.statvfs(disk.path).f_ffree
        result = disk.cli("run", "--rm", "--name", "two", "--rootfs", str(rootfs), "--", "true")
        assert result.returncode in (0, 125)
        assert disk.ids() == []
        assert os.statvfs(disk.path).f_ffree >= before - 2, "names and notes of removed ones"


def test_exec_and_kill_need_no_room(disk: SmallDisk, rootfs: Path) -> None:
    process = disk.cli.start("run", "--rootfs", str(rootfs), "--", *SLEEP)
    container_id = read_line(process)
    disk.fill()
    assert disk.cli.ok("exec", container_id, "--", "echo", "still here") == "still here\n"
    assert disk.status() == [(container_id, None)]
    assert disk.cli.ok("stop", "--time", "0", container_id) == f"{container_id}\n"
    assert process.wait() == 137
    assert disk.status() == [(container_id, 137)]


def test_a_limit_on_file_sizes_is_no_different_from_a_full_disk(cli: Cli, rootfs: Path) -> None:
    limited = cli.behind("prlimit", "--fsize=32768", "--")
    script = f"{WRITE} | cat; exit 4"
    result = limited("run", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    assert result.returncode == 4
    assert "File too large" in result.stderr.decode()
    (container_id,) = cli.ids()
    assert cli.log(container_id) == bytes(32768)
    assert cli.record(container_id)["exit_code"] == 4
