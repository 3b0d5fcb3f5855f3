"""Counters of the kernel's OOM killer, and how to be told that they have moved.

Version 2: ``memory.events`` signals a change with POLLPRI. Like every kernfs file it is always
readable, too, so an event loop must wait for an epoll set that asks for POLLPRI alone. (inotify
would do as well, but a user may have only 128 instances of it, and each supervisor would take one.)

Version 1: an eventfd registered with ``memory.oom_control`` through ``cgroup.event_control``. The
kernel signals it *before* it kills, so that the counter may move a moment later.
"""

from __future__ import annotations

import os
import select

from craterun.core.oom import is_doomed, parse_limit, parse_oom_kills
from craterun.core.spec import HostFacts
from craterun.linux.fd import Fd

_COUNTERS = {1: "memory.oom_control", 2: "memory.events"}
_LIMITS = {1: "memory.limit_in_bytes", 2: "memory.max"}
_MAX_BYTES = 4096


class MemoryCgroup:
    """The cgroup that counts a container's OOM kills.

    Version 2 counts hierarchically: kills in cgroups that the container has made are among them.

    :ivar announces_before: news come before the kill, not after it
    """

    def __init__(self, path: str, version: int) -> None:
        self.announces_before = version == 1
        self._path = path
        self._version = version
        self._news = Fd(-1)
        self._place = Fd(-1)

    @classmethod
    def of(cls, paths: tuple[str, ...], facts: HostFacts) -> MemoryCgroup | None:
        """The one among a container's cgroups ``paths``; None if there is none."""
        for hierarchy in facts.hierarchies:
            if "memory" in hierarchy.controllers:
                for path in paths:
                    if path.startswith(f"{hierarchy.mountpoint}/"):
                        return cls(path, hierarchy.version)
        return None

    def kills(self) -> int:
        """Processes of this cgroup killed since it was made.

        :raises OSError: the cgroup is gone (ENOENT, ENODEV), or has no memory controller (ENOENT)
        """
        if self._version == 2 and not self._news.closed:
            # By this descriptor: reading is what takes the news back.
            return parse_oom_kills(os.pread(self._news.fileno(), _MAX_BYTES, 0))
        return parse_oom_kills(_read(f"{self._path}/{_COUNTERS[self._version]}"))

    def limit(self) -> int | None:
        """Its own limit in bytes; None if it has none, or is gone."""
        try:
            return parse_limit(_read(f"{self._path}/{_LIMITS[self._version]}"))
        except (OSError, ValueError):
            return None

    def reserve(self) -> None:
        """Take the descriptor that `open_news` will need, while there is one; a system call."""
        try:
            self._place = Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except OSError:
            return  # perhaps there is one later

    def open_news(self, epoll: select.epoll) -> int:
        """Have ``epoll`` report changes of the counter. Returns the number it reports them by.

        Only what happens from now on is sure to be reported: read `kills` afterwards.

        :raises OSError: the cgroup is gone, or the kernel has no such events
        """
        counter = f"{self._path}/{_COUNTERS[self._version]}"
        if self._version == 2:
            self._place.close()
            self._news = Fd(os.open(counter, os.O_RDONLY | os.O_CLOEXEC))
            epoll.register(self._news.fileno(), select.EPOLLPRI)
            return self._news.fileno()
        if self._place.closed:
            self._place = Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        event, self._place = self._place, Fd(-1)
        try:
            control = os.open(counter, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _write(f"{self._path}/cgroup.event_control", b"%d %d" % (event.fileno(), control))
            finally:
                os.close(control)
            epoll.register(event.fileno(), select.EPOLLIN)
        except BaseException:
            event.close()
            raise
        self._news = event
        return event.fileno()

    def take_news(self) -> None:
        """Reset what made the epoll set report; version 2 does so by `kills`."""
        if self._version == 1:
            try:
                os.eventfd_read(self._news.fileno())
            except BlockingIOError:
                return

    def close_news(self) -> None:
        """No more reports; nothing if there were none. The set forgets a closed descriptor."""
        self._place.close()
        self._news.close()


def is_process_doomed(pid: int, start_time: int) -> bool:
    """Whether this process has ended, is ending, or was sent SIGKILL (`core.oom.is_doomed`)."""
    try:
        return is_doomed(_read(f"/proc/{pid}/stat"), start_time)
    except (FileNotFoundError, ProcessLookupError):
        return True


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _MAX_BYTES)
    finally:
        os.close(fd)


def _write(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)
