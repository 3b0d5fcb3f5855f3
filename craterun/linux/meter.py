"""Read the cgroup files of one container again and again, keeping them open in between."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator

from craterun.core.spec import HostFacts
from craterun.core.stats import SOURCES, Source, cpu_nanoseconds
from craterun.linux.fd import Fd
from craterun.linux.placement import Placement

_READ_BYTES = 64 * 1024
_PEAKS = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}


class Meter:
    """The files of one container that tell what it uses. Close it.

    A file of a cgroup is generated anew by each pread(2) at offset 0. Descriptors do not keep the
    cgroup from being removed; after that, reading says ENODEV.
    """

    def __init__(self, placement: Placement) -> None:
        self._paths = dict(sources(placement))
        self._files: dict[Source, Fd] = {}

    def read(self) -> tuple[int, dict[Source, bytes]]:
        """The monotonic clock in nanoseconds, and the content of every file that exists.

        :raises ProcessLookupError: the cgroups were removed: the container has ended
        """
        contents = {}
        clock = time.monotonic_ns()
        for source, path in self._paths.items():
            file = self._files.get(source)
            try:
                if file is None:
                    # Missing ones are looked for each time: a controller may be enabled later.
                    file = self._files[source] = Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                contents[source] = os.pread(file.fileno(), _READ_BYTES, 0)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), path) from None
                if error.errno not in (errno.ENOENT, errno.EACCES, errno.EOPNOTSUPP):
                    raise
        return clock, contents

    def close(self) -> None:
        """Close all files."""
        while self._files:
            self._files.popitem()[1].close()


def sources(placement: Placement) -> Iterator[tuple[Source, str]]:
    """The files to read: for each controller, in the hierarchy that accounts this container."""
    for controller, (v1, v2) in SOURCES.items():
        legacy = placement.legacy.get(controller)
        if legacy is not None:
            yield from (((1, name), f"{legacy}/{name}") for name in v1)
        elif placement.unified is not None:
            yield from (((2, name), f"{placement.unified}/{name}") for name in v2)


def final_figures(paths: Iterable[str], facts: HostFacts) -> tuple[int | None, float | None]:
    """The peak of memory in bytes and the processor time in seconds of a container that has ended.

    Two files, read before its cgroups ``paths`` are removed; None for what this host does not tell.
    """
    contents: dict[Source, bytes] = {}
    peak = None
    for path in paths:
        for hierarchy in facts.hierarchies:
            if not path.startswith(f"{hierarchy.mountpoint}/"):
                continue
            version = hierarchy.version
            if "memory" in hierarchy.controllers:
                text = _read_once(f"{path}/{_PEAKS[version]}").strip()
                peak = int(text) if text.isdigit() else None
            if "cpuacct" in hierarchy.controllers:
                contents[1, "cpuacct.usage"] = _read_once(f"{path}/cpuacct.usage")
            elif version == 2 and not contents:
                contents[2, "cpu.stat"] = _read_once(f"{path}/cpu.stat")
    used = cpu_nanoseconds(contents)
    return peak, None if used is None else used / 1e9


def _read_once(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, _READ_BYTES)
        finally:
            os.close(fd)
    except OSError:
        return b""  # an older kernel, or the cgroup was removed by somebody
