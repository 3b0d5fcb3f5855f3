"""Stop and continue all processes of a cgroup: the version 2 freezer, or version 1's.

Version 2 (Linux 5.2, Documentation/admin-guide/cgroup-v2.rst): ``cgroup.freeze`` asks, and
``frozen`` in ``cgroup.events`` tells when the last process has stopped. The file signals changes to
poll(2) with POLLPRI, relative to what the same descriptor has read last, so that no change between
reading and polling is missed. It needs no controller, and SIGKILL ends a frozen process.

Version 1 (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst): ``freezer.state`` takes
FROZEN, and reads FREEZING until all have stopped; it notifies nobody, and freezing that got stuck
goes on when FROZEN is written again. A frozen process does not even die before it is thawed.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterable
from typing import NamedTuple

from craterun.linux.placement import Placement

_FIRST_NAP_SECONDS = 0.0005
_LONGEST_NAP_SECONDS = 0.02
_READ_BYTES = 4096


class Frost(NamedTuple):
    """Whether a cgroup is frozen.

    :ivar asked: it was asked for this very cgroup
    :ivar complete: all of its processes are stopped, on its own account or an ancestor's
    """

    asked: bool
    complete: bool


class Freezer:
    """The freezer of one cgroup directory. Every method raises `FileNotFoundError` if it is gone.

    :ivar version: of the hierarchy
    """

    def __init__(self, path: str, version: int) -> None:
        self.path = path
        self.version = version

    def state(self) -> Frost:
        """What holds now."""
        if self.version == 2:
            asked = _read(f"{self.path}/cgroup.freeze").strip() == b"1"
            return Frost(asked, self.is_frozen())
        asked = _read(f"{self.path}/freezer.self_freezing").strip() == b"1"
        return Frost(asked, self.is_frozen())

    def is_frozen(self) -> bool:
        """Whether all processes are stopped, for whatever reason: one read."""
        if self.version == 2:
            return _says_frozen(_read(f"{self.path}/cgroup.events"))
        return _read(f"{self.path}/freezer.state").strip() == b"FROZEN"

    def frozen_from_above(self) -> bool:
        """Whether an ancestor keeps the processes stopped."""
        if self.version == 1:
            return _read(f"{self.path}/freezer.parent_freezing").strip() == b"1"
        try:
            return _says_frozen(_read(f"{os.path.dirname(self.path)}/cgroup.events"))
        except FileNotFoundError:
            return False  # the root of the hierarchy, which cannot be frozen

    def freeze(self, seconds: float) -> None:
        """Stop all processes; return when the last one has stopped.

        :raises TimeoutError: one would not within ``seconds``; all are running again
        """
        try:
            if self.version == 2:
                _write(f"{self.path}/cgroup.freeze", b"1")
                self._wait(frozen=True, seconds=seconds)
            else:
                self._freeze_v1(seconds)
        except BaseException:
            self._ask_thaw()  # half a container stopped is worse than none
            raise

    def thaw(self, seconds: float) -> None:
        """Let all processes go on. If an ancestor is frozen, they do when that is thawed. A cgroup
        that was removed has no process left that would be stopped.

        :raises TimeoutError: they are still stopped after ``seconds``
        """
        try:
            self._ask_thaw()
            if self.version == 1:
                return
            if not self.frozen_from_above():
                self._wait(frozen=False, seconds=seconds)
        except FileNotFoundError:
            return  # they went on, and to their end: a signal may have waited for that

    def _ask_thaw(self) -> None:
        if self.version == 2:
            _write(f"{self.path}/cgroup.freeze", b"0")
        else:
            _write(f"{self.path}/freezer.state", b"THAWED")

    def _wait(self, *, frozen: bool, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        events = _open(f"{self.path}/cgroup.events", os.O_RDONLY)
        try:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while _says_frozen(_pread(events)) != frozen:
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    raise TimeoutError
        finally:
            os.close(events)

    def _freeze_v1(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        nap = _FIRST_NAP_SECONDS
        while True:
            try:
                _write(f"{self.path}/freezer.state", b"FROZEN")
            except OSError as error:
                if error.errno != errno.EBUSY:  # some could not be stopped yet: try again
                    raise
            if self.is_frozen():
                return
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(nap)  # this hierarchy tells nobody of the change: there is nothing to poll
            nap = min(2 * nap, _LONGEST_NAP_SECONDS)


def find(placement: Placement) -> Freezer | None:
    """How to freeze a container; None if its host offers no way."""
    unified = placement.unified
    if unified is not None and os.path.exists(f"{unified}/cgroup.freeze"):
        return Freezer(unified, 2)
    legacy = placement.legacy.get("freezer")
    return Freezer(legacy, 1) if legacy is not None else None


def is_frozen(placement: Placement) -> bool:
    """Whether all processes there are stopped; False where that cannot be known."""
    try:
        freezer = find(placement)
        return freezer is not None and freezer.is_frozen()
    except OSError:
        return False


def release_killed(paths: Iterable[str]) -> None:
    """Thaw the version 1 freezers among the cgroups ``paths``, whose processes got SIGKILL.

    Nothing happens elsewhere: a process that version 2 froze dies of SIGKILL as it is.
    """
    for path in paths:
        try:
            _write(f"{path}/freezer.state", b"THAWED")
        except OSError:
            continue  # another controller's, or gone


def _says_frozen(events: bytes) -> bool:
    return b"frozen 1" in events.split(b"\n")


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC)


def _pread(fd: int) -> bytes:
    try:
        return os.pread(fd, _READ_BYTES, 0)
    except OSError as error:
        raise _gone(error) from None


def _read(path: str) -> bytes:
    fd = _open(path, os.O_RDONLY)
    try:
        return _pread(fd)
    finally:
        os.close(fd)


def _write(path: str, value: bytes) -> None:
    # Without O_CREAT, which a version 1 hierarchy answers with EPERM instead of ENOENT.
    fd = _open(path, os.O_WRONLY)
    try:
        os.write(fd, value)
    except OSError as error:
        raise _gone(error) from None
    finally:
        os.close(fd)


def _gone(error: OSError) -> OSError:
    """ENODEV from a file of a cgroup that was removed after opening is "not found", too."""
    if error.errno == errno.ENODEV:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return error
