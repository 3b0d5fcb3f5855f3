"""Containers that take all they can get are held, and nobody else is held up by them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from craterun.linux.host import hierarchies, is_in_memory, mount_table
from tests.containers import helpers
from tests.containers.helpers import Cli, Live

cli = helpers.cli

MB = 1 << 20
HIERARCHIES = hierarchies(mount_table())

# Each says "up" when it is at work.
HOGS = {
    "fork bomb": (
        ("--pids", "40"),
        "echo up; (while :; do sleep 1000000 & done) 2>/dev/null; exec sleep 1000000",
    ),
    "memory": (
        ("--memory", "16m"),
        "echo up; while :; do dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null; done",
    ),
    "files in memory": (
        ("--memory", "16m"),
        "echo up; while :; do dd if=/dev/zero of=/dev/shm/f bs=1M count=60 2>/dev/null; done",
    ),
    "page cache": (
        ("--memory", "16m"),
        "dd if=/dev/zero of=/big bs=1M count=48 2>/dev/null; echo up; while :; do cat /big; done "
        ">/dev/null",
    ),
    "processor": (("--cpus", "0.5"), "echo up; while :; do :; done"),
    "output": ((), "echo up; yes x | head -c 3000000; sleep 1000000"),
}


def figure(live: Live, name_2: str, name_1: str) -> int:
    """A number in whichever of the container's cgroups there is such a file."""
    controller = name_2.partition(".")[0]
    for hierarchy in HIERARCHIES:
        if controller in hierarchy.controllers:
            (directory,) = Path(hierarchy.mountpoint).glob(f"**/{live.id}")
            return int((directory / (name_2 if hierarchy.version == 2 else name_1)).read_text())
    raise AssertionError(controller)


def start(cli: Cli, rootfs: Path, what: str) -> Live:
    """A hog at work."""
    options, script = HOGS[what]
    live = cli.detach(*options, "--rootfs", str(rootfs), "--", "sh", "-c", script)
    until_logged(cli, live, b"up\n")
    return live


def until_logged(cli: Cli, live: Live, text: bytes) -> None:
    """Wait for the first bytes of a log, which is made with them."""
    while text not in cli("logs", live.id).stdout:
        pass


def nobody_is_held_up(cli: Cli, rootfs: Path, quiet: Live, live: Live, turn: int) -> None:
    """Start, look, talk and list as if nothing was the matter."""
    finished = cli("run", "--attach", "--rootfs", str(rootfs), "--", "echo", f"round {turn}")
    assert (finished.returncode, finished.stdout) == (0, f"round {turn}\n".encode())
    assert cli.ok("exec", quiet.id, "--", "sh", "-c", f"echo {turn} >/dev/pts/0; echo heard") == (
        "heard\n"
    )
    running = cli.ok("ps", "-q", "--running").split()
    assert {quiet.id, live.id} <= set(running)


@pytest.mark.parametrize(
    "what",
    # In the slow guest of the version 2 tier, hogs make everything slower still: two will do.
    [pytest.param(w, marks=pytest.mark.cgroup_v2 if w in ("fork bomb", "memory") else ())
     for w in HOGS],
)  # fmt: skip
def test_a_hog_is_held_and_nobody_else_is_held_up(what: str, cli: Cli, rootfs: Path) -> None:
    quiet = cli.detach("-t", "--rootfs", str(rootfs), "--", *helpers.SLEEP)
    live = start(cli, rootfs, what)
    for turn in range(2):
        nobody_is_held_up(cli, rootfs, quiet, live, turn)
        if what == "fork bomb":
            assert figure(live, "pids.current", "pids.current") <= 40
        elif what in ("memory", "files in memory", "page cache"):
            usage = figure(live, "memory.current", "memory.usage_in_bytes")
            assert usage <= 16 * MB
    if what == "page cache" and not is_in_memory(str(rootfs)):
        # What the kernel can give back is no reason to kill.
        assert cli.record(live.id)["oom_kills"] == 0
    # It is still at work, and ends when it is told to, with all that it has started.
    assert live.proc.exists()
    others = live.siblings()
    cli.ok("rm", "--force", live.id)
    assert not any(other.proc.exists() for other in others)
    until_logged(cli, quiet, b"0\r\n1\r\n")
    cli.ok("kill", "--signal", str(int(signal.SIGKILL)), quiet.id)
    assert cli.ok("wait", quiet.id) == "137\n"
