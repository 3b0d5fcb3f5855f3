"""What the tests of exec's end share: commands that leave others behind, in every layout."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.containers.helpers import (
    PATIENCE_SECONDS,
    Cli,
    Live,
    cgroup_directories,
    mount_namespace,
    read_line,
    wait_exit,
)

SPAWN = (
    "mkfifo /tmp/up; "
    "busybox setsid sh -c '(sleep 1000000 & echo >/tmp/up; exec sleep 1000000) &'; "
    "read x </tmp/up; rm /tmp/up"
)
"""Starts two that have neither this process as parent nor its session, and waits for them."""

COVER = 'for point; do mount -t tmpfs none "$point"; done'
LAYOUTS = {"host": (), "v1": ("cgroup2",), "v1 without freezer": ("cgroup2", "freezer")}
on_host = pytest.param("host", marks=pytest.mark.cgroup_v2)
"""The host's own layout; in the second tier that is version 2 alone, where nothing is to cover."""


@contextmanager
def in_layout(cli: Cli, layout: str) -> Iterator[Cli]:
    """The command line where some of this host's hierarchies are covered up."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    covered = [
        fields[1]
        for fields in lines
        for what in LAYOUTS[layout]
        if what in (fields[2], *fields[3].split(","))
    ]
    if not covered:
        yield cli
        return
    with mount_namespace(COVER, *covered) as aside:
        yield cli.behind(*aside.enter)


def spawn(
    cli: Cli, live: Live, *options: str, then: str = "exec sleep 1000000", more: int = 3
) -> Exec:
    """``exec`` of a command that has started others, and says so on its stdout.

    :param then: what it does afterwards
    :param more: how many processes there are then, its own included
    """
    process = cli.start("exec", *options, live.id, "--", "sh", "-c", f"{SPAWN}; echo up; {then}")
    assert read_line(process) == "up"
    deadline = time.monotonic() + PATIENCE_SECONDS
    inside = live.siblings()
    while len(inside) != more + 1:  # the last one is still being started
        assert time.monotonic() < deadline, [one.status()["Name"] for one in inside]
        inside = live.siblings()
    return Exec(process, live, [one.pid for one in inside if one.pid != live.pid])


class Exec:
    """A running ``exec`` and all that it has started.

    :ivar pids: of its command, first, and of what that has started
    """

    def __init__(self, process: subprocess.Popen[bytes], live: Live, pids: list[int]) -> None:
        self.process = process
        self.live = live
        self.pids = pids
        self.keeper = int(Live(pids[0]).status()["PPid"])
        # A server's goes on.
        self.own_keeper = () if os.environ.get("CRATERUN_TESTS_SERVE") else (self.keeper,)

    def check_over(self) -> None:
        """All of it ends, and nothing is left but the container."""
        for pid in (*self.pids, *self.own_keeper):
            wait_exit(pid)
        assert alive(self.live) == [self.live.pid]
        assert groups(self.live) == []


def alive(live: Live) -> list[int]:
    """The processes of a container, by their pid inside, but for zombies: who had a parent of its
    own inside is for that to reap, or for a PID 1 that does so.
    """
    return [one.pid for one in live.siblings() if not one.status()["State"].startswith("Z")]


def groups(live: Live) -> list[Path]:
    """The cgroups that execs have in a container now."""
    return [group for own in live.cgroups() for group in own.glob("exec-*")]


def group_of(live: Live, pid: int) -> Path:
    """The cgroup of one exec, which is the only one that ``pid`` does not share with the others."""
    (group,) = set(cgroup_directories(pid, live.id)) - set(live.cgroups())
    assert group.name.startswith("exec-")
    return group
