"""Whether what `host.probe` has found out may have changed, for programs that live long."""

from __future__ import annotations

import os
import select

from craterun.linux.fd import Fd

_DIRECTORIES = ("/", "/etc")


class HostWatch:
    """Notices new mounts (proc_pid_mountinfo(5)) and new names in the directories looked at."""

    def __init__(self) -> None:
        self._mounts = Fd(os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC))
        self._poll = select.poll()
        self._poll.register(self._mounts, select.POLLPRI)
        self._times = _times()

    def has_changed(self) -> bool:
        """Since the last call, or since the beginning."""
        before, self._times = self._times, _times()
        # An error is what the kernel reports, once, when there was any mount or unmount.
        return bool(self._poll.poll(0)) or self._times != before

    def close(self) -> None:
        """Close it."""
        self._mounts.close()


def _times() -> tuple[int, ...]:
    return tuple(os.stat(path).st_mtime_ns for path in _DIRECTORIES)
