"""What the tests of pausing share: a container that shows whether it runs."""

from __future__ import annotations

import select
from collections.abc import Callable
from pathlib import Path

from tests.containers.helpers import Cli, Gate, Live
from tests.containers.streams_helpers import cgroups_of, stat_fields

HOG = "while :; do if [ -e /flag ]; then rm /flag; echo seen >/gate; fi; done"
"""Never sleeps, and answers through /gate when a file appears: the sign that it runs."""


FORKS = "while :; do /bin/true & /bin/true | /bin/true; wait; done"


class Hog:
    """A container that burns CPU, with a means to find out whether it runs."""

    def __init__(self, cli: Cli, rootfs: Path, gate: Gate) -> None:
        self._rootfs = rootfs
        self.gate = gate
        self.live = cli.detach("--rootfs", str(rootfs), "--name", "hog", "--", "sh", "-c", HOG)

    def ticks(self) -> int:
        """CPU time that it has used, by the kernel."""
        fields = stat_fields(self.live.pid)
        return int(fields[11]) + int(fields[12])

    def ask(self) -> None:
        """Ask for an answer."""
        (self._rootfs / "flag").touch()

    def answered(self) -> bool:
        """Whether one is there now."""
        poll = select.poll()
        poll.register(self.gate._fd, select.POLLIN)
        return bool(poll.poll(0))


def frozen(live: Live) -> bool:
    """What the kernel says of its cgroup."""
    for directory in cgroups_of(live.id):
        path = Path(directory)
        if (path / "cgroup.freeze").exists():
            return "frozen 1" in (path / "cgroup.events").read_text().splitlines()
        if (path / "freezer.state").exists():
            return (path / "freezer.state").read_text() == "FROZEN\n"
    raise AssertionError("no freezer")


def busy_elsewhere(cli: Cli, make_rootfs: Callable[[str], Path]) -> None:
    """Another container does a piece of work, from its start to its end."""
    script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
    cli.ok("run", "--rm", "--rootfs", str(make_rootfs("other")), "--", "sh", "-c", script)
