"""Empty cgroups and remove them: kill what is inside, or move it out.

A file of few imports: a keeper whose supervisor has died has this done by an interpreter that is
started for it, without site-packages (`main`).
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import suppress

KILL_SECONDS = 2.0
PATIENT_SECONDS = 30.0
"""Where nobody waits for it, or only those who asked for it."""
_END_ATTEMPTS = 50
_MOVE_ATTEMPTS = 5
_GONE = (errno.ENOENT, errno.ENODEV)
"""Of a cgroup that was removed before its file was opened, or while it was open."""
_BRAKES = (
    ("freezer.state", b"FROZEN", b"THAWED"),
    ("cgroup.freeze", b"1", b"0"),
    ("pids.max", b"0", b""),
)
"""What keeps processes from forking while they are looked for: file, on, off."""


def processes(path: str) -> list[int]:
    """Pids of the processes directly in the cgroup ``path``."""
    try:
        with open(f"{path}/cgroup.procs") as file:
            return [int(line) for line in file]
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return []


def kill_at_once(path: str) -> None:
    """SIGKILL what is in ``path`` where one write does that (Linux 5.14, version 2)."""
    _put(f"{path}/cgroup.kill", b"1")


def kill(paths: Iterable[str], seconds: float = KILL_SECONDS) -> None:
    """SIGKILL every process in the cgroups ``paths`` and below, and wait until they have ended.

    Returns after ``seconds`` all the same; `remove` then tells which cgroups are still in use.
    ``cgroup.kill`` kills without a race (Linux 5.14, version 2), and ``cgroup.events`` tells when
    it is empty. Elsewhere, the processes are kept from forking, by a freezer or a limit, and get
    the signal one by one until there is no new one.
    """
    deadline = time.monotonic() + seconds
    paths = list(paths)
    while time.monotonic() < deadline:
        braked = [path for path in paths if not _put(f"{path}/cgroup.kill", b"1")]
        brakes = [brake for path in braked if (brake := _brake(path)) is not None]
        killed: dict[int, int] = {}
        try:
            while _signal_others(braked, killed) and time.monotonic() < deadline:
                pass
            for file, release in brakes:
                _put(file, release)
            _wait_all(killed.values(), deadline)
            for path in paths:
                if path not in braked:
                    _wait_unpopulated(path, deadline)
        finally:
            for pidfd in killed.values():
                os.close(pidfd)
        if not killed and not any(processes(path) for path in _trees(paths)):
            return


def _signal_others(paths: list[str], killed: dict[int, int]) -> bool:
    """SIGKILL those that are not ``killed``, and add their pidfds there; whether there were any."""
    before = len(killed)
    for path in _trees(paths):
        for pid in processes(path):
            if pid in killed:
                continue
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue  # it has ended
            # Still there? The number may have been reused before it was opened.
            if pid not in processes(path):
                os.close(pidfd)
                continue
            killed[pid] = pidfd
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    return len(killed) > before


def _wait_all(pidfds: Iterable[int], deadline: float) -> None:
    for pidfd in pidfds:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)


def _wait_unpopulated(path: str, deadline: float) -> None:
    """Until no process lives in ``path`` or below: ``populated`` in cgroup.events (cgroups(7)),
    whose changes poll(2) reports.
    """
    try:
        events = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return
    try:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while b"populated 1" in os.pread(events, 4096, 0).splitlines():
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not poll.poll(remaining * 1000):
                return
    except OSError as error:
        if error.errno not in _GONE:
            raise
    finally:
        os.close(events)


def _brake(path: str) -> tuple[str, bytes] | None:
    """Keep what is in ``path`` from forking. The file and what to write there to let it die.

    Stopping need not be complete: each process can be in the middle of one fork at most.
    """
    for name, on, off in _BRAKES:
        if _put(f"{path}/{name}", on):
            return f"{path}/{name}", off
    return None


def remove(paths: Iterable[str]) -> list[str]:
    """Remove empty cgroups. Returns those that could not be, being in use.

    A cgroup that is already gone counts as removed.
    """
    left = []
    for path in paths:
        try:
            _remove_tree(path)
        except OSError:
            left.append(path)
    return left


def _remove_tree(path: str) -> None:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError:
        # An exec's, or something inside made cgroups of its own: they go before their parent.
        children = _children(path)
        if not children:
            raise
        for child in children:
            _remove_tree(child)
        with suppress(FileNotFoundError):
            os.rmdir(path)


def end(paths: Iterable[str], seconds: float = KILL_SECONDS) -> list[str]:
    """Remove cgroups whose time is over, and kill what is still in there. Returns those that are
    still in use all the same.

    Anew if an exec that has just been asked for makes a cgroup there meanwhile: it will find that
    the container has ended, and each can do so only once.
    """
    deadline = time.monotonic() + seconds
    left = remove(paths)
    for _ in range(_END_ATTEMPTS):
        remaining = deadline - time.monotonic()
        if not left or remaining <= 0:
            break
        kill(left, remaining)
        left = remove(left)
    return left


def dissolve(path: str) -> bool:
    """Move what lives in ``path`` to the cgroup above, and remove it; whether that is done."""
    parent = os.path.dirname(path)
    for _ in range(_MOVE_ATTEMPTS):
        if not remove([path]):
            return True
        for pid in processes(path):
            _put(f"{parent}/cgroup.procs", str(pid).encode())
    return not remove([path])


def _trees(paths: Iterable[str]) -> list[str]:
    """``paths``, and every cgroup below them."""
    found = list(paths)
    for path in found:
        found += _children(path)
    return found


def _children(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _put(file: str, value: bytes) -> bool:
    """Write if that can be; whether it could."""
    # Without O_CREAT: a version 1 hierarchy would say EPERM instead of ENOENT.
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, value)
    except OSError as error:
        return error.errno == errno.EBUSY  # version 1's freezer: it has begun, and goes on
    finally:
        os.close(fd)
    return True


def main(how: str, path: str) -> None:
    """Entry of the process that a keeper starts.

    :param how: ``kill`` or ``dissolve``
    """
    if how == "kill":
        end([path], PATIENT_SECONDS)
    else:
        dissolve(path)
