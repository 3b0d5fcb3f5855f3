"""The processes in a container, as ``top`` lists them."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

from craterun.client.local import running_process
from craterun.core.errors import ContainerNotRunningError, KernelRefusedError
from craterun.core.life import Process
from craterun.core.processes import (
    ProcessInfo,
    describe,
    parse_arguments,
    parse_stat,
    parse_status,
)
from craterun.core.users import user_names
from craterun.linux.fd import Fd
from craterun.linux.pidns import PidNamespace
from craterun.linux.proc import open_process
from craterun.linux.rootfs import read_inside
from craterun.state.store import Store

_MAX_BYTES = 1024 * 1024


def top(store: Store, text: str) -> list[ProcessInfo]:
    """All processes in a container, by their start. Those that end meanwhile are left out.

    :raises ContainerNotRunningError: it has ended
    """
    record, process = running_process(store, text)
    gone = ContainerNotRunningError(f"container {record.id} is not running")
    try:
        pidfd = Fd(open_process(process))  # before its /proc is read: it is the right one
    except ProcessLookupError:
        raise gone from None
    try:
        found = _list(process)
    except (ProcessLookupError, FileNotFoundError):
        raise gone from None
    except PermissionError as error:
        raise KernelRefusedError(
            f"look into container {record.id}", "open", f"/proc/{process.pid}", error.errno or 0
        ) from error
    finally:
        pidfd.close()
    if not found:
        raise gone
    return found


def _list(first: Process) -> list[ProcessInfo]:
    level = len(parse_status(_read(f"/proc/{first.pid}/status"))["NSpid"]) - 1
    uid_map = _read(f"/proc/{first.pid}/uid_map").decode()
    users = _users(first.pid)
    # The btime of /proc/stat is the same in whole seconds.
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    ticks_per_second = os.sysconf("SC_CLK_TCK")
    found = []
    namespace = PidNamespace(first.pid)
    try:
        for pid, directory in namespace.members():
            try:
                stat = parse_stat(_read("stat", directory))
                found.append(
                    describe(
                        pid,
                        stat,
                        parse_status(_read("status", directory)),
                        parse_arguments(_read("cmdline", directory)),
                        level=level,
                        uid_map=uid_map,
                        users=users,
                        started=datetime.fromtimestamp(
                            boot + stat.start_ticks / ticks_per_second, UTC
                        ),
                        ticks_per_second=ticks_per_second,
                    )
                )
            except (OSError, ValueError, LookupError):
                continue  # it has ended while we read
    finally:
        namespace.close()
    return sorted(found, key=lambda info: (info.started, info.pid))


def _users(pid: int) -> dict[int, str]:
    """By the container's own passwd, read without following a symlink out of it."""
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return {}
    try:
        return user_names(read_inside(root, b"etc/passwd"))
    finally:
        os.close(root)


def _read(path: str, directory: int | None = None) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        content = b""
        while len(content) < _MAX_BYTES and (data := os.read(fd, 64 * 1024)):
            content += data
        return content
    finally:
        os.close(fd)
