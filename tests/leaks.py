"""What a test could leave behind on the host, and how to see it."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from craterun.linux.host import hierarchies
from craterun.linux.proc import parse_mountinfo

_SETTLE_SECONDS = 10.0
SHARED = os.environ.get("CRATERUN_TESTS_SHARED") == "1"
"""Other containers may run on this host meanwhile: look only at what is certainly ours."""


@dataclass(frozen=True)
class Footprint:
    """Everything on the host that containers are made of."""

    processes: frozenset[int]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    net_namespaces: frozenset[str]
    descriptors: frozenset[str]
    temporary: frozenset[str]

    def beyond(self, before: Footprint) -> list[str]:
        """What is here and was not there ``before``, one line each."""
        lines = []
        for pid in self.processes - before.processes:
            lines.append(f"process {pid}: {_command_line(pid)}")
        for kind in ("mounts", "cgroups", "net_namespaces", "descriptors", "temporary"):
            for item in getattr(self, kind) - getattr(before, kind):
                lines.append(f"{kind}: {item}")
        return lines


def take_footprint() -> Footprint:
    """Look around. Descendants are ours, since this process is a subreaper."""
    mounts = Path("/proc/self/mountinfo").read_text()
    descendants = _descendants(os.getpid())
    return Footprint(
        processes=frozenset(descendants),
        mounts=frozenset() if SHARED else frozenset(mounts.splitlines()),
        cgroups=frozenset() if SHARED else frozenset(_cgroups(mounts)),
        net_namespaces=frozenset(_net_namespaces(descendants if SHARED else _all_pids())),
        descriptors=frozenset((f"{number} -> {to}" for number, to in open_descriptors().items())),
        temporary=frozenset() if SHARED else frozenset(map(str, Path("/tmp").glob("*craterun*"))),
    )


def reap_orphans() -> None:
    """Reap what was reparented to us and has ended; give the rest a moment to end.

    The one place in the tests that waits by time: a detached supervisor ends on its own after the
    test has seen its container's end, and nothing but its exit tells of that.
    """
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)


def _descendants(root: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid in _all_pids():
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            continue
        parent = int(stat[stat.rindex(b")") + 2 :].split()[1])
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    queue = [root]
    while queue:
        for child in children.get(queue.pop(), []):
            found.add(child)
            queue.append(child)
    return found


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _command_line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        return words.decode(errors="replace")
    except OSError:
        return "(gone)"


def _cgroups(mounts: str) -> set[str]:
    found = set()
    for hierarchy in hierarchies(parse_mountinfo(mounts)):
        # os.walk passes over what vanishes while it looks.
        found |= {path for path, _, _ in os.walk(f"{hierarchy.mountpoint}/craterun")}
    return found


def _net_namespaces(pids: list[int] | set[int]) -> set[str]:
    found = set()
    for pid in pids:
        try:
            found.add(os.readlink(f"/proc/{pid}/ns/net"))
        except OSError:
            continue
    return found


def open_descriptors(pid: int | None = None) -> dict[int, str]:
    """A process's descriptors, ours by default, and what they refer to; less what it closes while
    we look, as we do the one that lists them.
    """
    base = f"/proc/{pid or 'self'}/fd"
    found = {}
    for name in os.listdir(base):
        with suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"{base}/{name}")
    return found


def cgroups_named(name: str) -> list[str]:
    """Every cgroup directory of this host that has ``name``, in any hierarchy."""
    found = []
    for hierarchy in hierarchies(parse_mountinfo(Path("/proc/self/mountinfo").read_text())):
        found += [path for path, _, _ in os.walk(hierarchy.mountpoint) if path.endswith(f"/{name}")]
    return found
