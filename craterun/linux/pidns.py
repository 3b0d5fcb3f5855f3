"""Find the processes of a pid namespace, those of nested ones included (pid_namespaces(7))."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

from craterun.linux.fd import Fd

# _IO(0xb7, 2) of <linux/nsfs.h>; a few architectures encode "no argument" differently.
_NO_ARGUMENT = 0x20000000 if os.uname().machine.startswith(("ppc", "mips", "sparc")) else 0
_NS_GET_PARENT = _NO_ARGUMENT | 0xB702


class PidNamespace:
    """A pid namespace, held open. Close it.

    Being a namespace's member cannot be changed or escaped by a process, unlike its cgroup, which
    somebody with the right to may change; and every container has one, also without cgroups.
    """

    def __init__(self, pid: int) -> None:
        """The namespace of process ``pid``.

        :raises FileNotFoundError: it has ended
        """
        self._fd = Fd(os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC))
        self._inside = {os.fstat(self._fd.fileno()).st_ino: True}

    def members(self) -> Iterator[tuple[int, int]]:
        """Pid in our namespace and a descriptor of /proc/PID for each member that can be seen.

        The descriptor is borrowed, until the next step. It means this process and no later one of
        the same pid: reading through it says ESRCH when that has ended.
        """
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                directory = os.open(f"/proc/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue  # it has ended
            try:
                if self._holds(directory):
                    yield int(name), directory
            finally:
                os.close(directory)

    def _holds(self, directory: int) -> bool:
        try:
            number = os.stat("ns/pid", dir_fd=directory).st_ino
        except OSError:
            return False  # ended, or somebody else's
        if number not in self._inside:
            self._inside[number] = self._is_above(directory)
        return self._inside[number]

    def _is_above(self, directory: int) -> bool:
        """Whether the process of /proc directory ``directory`` is in a namespace below this one."""
        try:
            fd = os.open("ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        except OSError:
            return False
        own = os.fstat(self._fd.fileno()).st_ino
        while True:
            try:
                parent = fcntl.ioctl(fd, _NS_GET_PARENT)  # Linux 4.9
            except OSError:
                return False  # EPERM: the parent is outside of what we may see
            finally:
                os.close(fd)
            fd = parent
            if os.fstat(fd).st_ino == own:
                os.close(fd)
                return True

    def close(self) -> None:
        """Let go of the namespace."""
        self._fd.close()
