"""Read the cgroup files of one container again and again, keeping them open in between."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator

from craterun.core.stats import SOURCES, Source
from craterun.linux.fd import Fd
from craterun.linux.placement import Placement

_READ_BYTES = 64 * 1024


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
