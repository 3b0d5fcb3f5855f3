"""Containers that run out of memory: limits set from outside, through the kernel's own files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from craterun.core.spec import Hierarchy
from craterun.linux.host import hierarchies
from craterun.linux.proc import parse_mountinfo
from tests.containers.helpers import Cli, cgroup_directories, read_some

LIMIT = 24 << 20
HOG = "dd if=/dev/zero of=/dev/null bs=200M count=1"
"""Allocates and writes 200 MiB."""


def memory_hierarchy() -> Hierarchy:
    """The one with the memory controller."""
    mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_text())
    return next(h for h in hierarchies(mounts) if "memory" in h.controllers)


@contextmanager
def memory_cgroups() -> Iterator[None]:
    """Version 2: the memory controller is there for containers while the block runs."""
    hierarchy = memory_hierarchy()
    if hierarchy.version == 1:
        yield
        return
    parent = Path(hierarchy.mountpoint, "craterun")
    held = parent / "held-by-a-test"  # so that the last container does not remove the parent
    held.mkdir(parents=True)
    try:
        for directory in (parent.parent, parent):
            (directory / "cgroup.subtree_control").write_text("+memory")
        yield
    finally:
        held.rmdir()
        if not any(path.is_dir() for path in parent.iterdir()):
            parent.rmdir()


def memory_directory(pid: int, container_id: str) -> Path:
    """Where the memory of ``pid``, a container's process, is accounted."""
    names = ("memory.limit_in_bytes", "memory.max")
    found = [
        directory
        for directory in cgroup_directories(pid, container_id)
        if any((directory / name).exists() for name in names)
    ]
    assert len(found) == 1, found
    return found[0]


def limit_memory(pid: int, container_id: str, size: int = LIMIT) -> Path:
    """Set a limit, and return the cgroup."""
    directory = memory_directory(pid, container_id)
    name = "memory.limit_in_bytes" if memory_hierarchy().version == 1 else "memory.max"
    fd = os.open(directory / name, os.O_WRONLY)
    try:
        os.write(fd, str(size).encode())
    finally:
        os.close(fd)
    assert (directory / name).read_text() == f"{size}\n"
    return directory


class Feed:
    """``craterun events --follow --json``, event by event, from the first that is known."""

    def __init__(self, cli: Cli, *options: str) -> None:
        self.process = cli.start("events", "--follow", "--json", "--since", "1h", *options)
        self._rest = b""

    def next(self) -> dict[str, Any]:
        """The next event, whenever it comes."""
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            data = read_some(self.process.stdout.fileno())
            assert data, f"the feed ended after {self._rest!r}"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        event = json.loads(line)
        assert isinstance(event, dict)
        return event

    def until(self, kind: str, **attributes: object) -> list[dict[str, Any]]:
        """All up to the first of type ``kind`` with these ``attributes``."""
        events = [self.next()]
        while (
            events[-1]["type"] != kind or not attributes.items() <= events[-1]["attributes"].items()
        ):
            events.append(self.next())
        return events
