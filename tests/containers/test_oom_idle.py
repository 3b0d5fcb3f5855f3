"""A supervisor that watches for OOM kills sleeps in the kernel, without a timer."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.containers import helpers
from tests.containers.helpers import PATIENCE_SECONDS, SLEEP, Cli
from tests.containers.streams_helpers import parent_of

cli = helpers.cli
_HOUR_MS = 3600 * 1000
_EPOLL_WAIT = ("232", "281")


def test_a_supervisor_of_a_watched_container_sets_no_timer(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    supervisor = parent_of(parent_of(live.pid))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not _sleeps(supervisor):  # nothing tells when a process has gone to sleep
        assert time.monotonic() < deadline, "it never sleeps without a timer"
        os.sched_yield()
    assert _watches(supervisor)
    assert _sleeps(supervisor)


def _sleeps(pid: int) -> bool:
    """In epoll_wait(2), with a timeout of hours: trio's longest."""
    number, *arguments = Path(f"/proc/{pid}/syscall").read_text().split()
    return number in _EPOLL_WAIT and int(arguments[3], 16) > _HOUR_MS


def _watches(pid: int) -> bool:
    """Whether there is a descriptor that tells of OOM kills."""
    targets = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    return any("eventfd" in to or to.endswith("/memory.events") for to in targets)
