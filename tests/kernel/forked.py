"""Children for what would change this process: its namespaces, mounts, limits and credentials."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from craterun.core import flags as f
from craterun.linux import calls
from craterun.linux.proc import parse_start_time
from tests.kernel import prepared

T = TypeVar("T")

NAMESPACES = {
    "mnt": f.CLONE_NEWNS,
    "cgroup": f.CLONE_NEWCGROUP,
    "uts": f.CLONE_NEWUTS,
    "ipc": f.CLONE_NEWIPC,
    "pid": f.CLONE_NEWPID,
    "net": f.CLONE_NEWNET,
    "user": f.CLONE_NEWUSER,
}
"""Names in /proc/PID/ns, and the flags of clone3(2)."""


def in_child(function: Callable[[], T]) -> T:
    """Run ``function`` in a forked child, which is reaped; return what it returned.

    Whatever it raises fails the test, with the child's traceback.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        _report(function, write_end)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert data, f"the child ended without a word: wait status {status}"
    ok, value = pickle.loads(data)
    assert ok, f"in the child:\n{value}"
    result: T = value
    return result


def _report(function: Callable[[], Any], write_end: int) -> None:
    try:
        try:
            data = pickle.dumps((True, function()))
        except BaseException:
            data = pickle.dumps((False, traceback.format_exc()))
        with open(write_end, "wb") as pipe:
            pipe.write(data)
    finally:
        os._exit(0)


@contextmanager
def parked(set_up: Callable[[], object] = lambda: None) -> Iterator[int]:
    """A child that has run ``set_up`` and then waits to be killed; its pid. Reaped at the end.

    The test may kill it or let it be killed, but not reap it.
    """
    ready, tell = os.pipe()
    wait, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ready)
            os.close(release)
            set_up()
            os.write(tell, b"!")
            os.read(wait, 1)
        finally:
            os._exit(0)
    os.close(tell)
    os.close(wait)
    try:
        assert os.read(ready, 1) == b"!", "the child could not be set up"
        yield pid
    finally:
        os.close(ready)
        os.close(release)
        os.waitpid(pid, 0)


def enter_new(kind: str) -> None:
    """For a child: a new namespace, ``kind`` as in /proc/self/ns.

    What follows would be done to the host if unshare failed unnoticed, as it once did: so whether
    it worked is not left to the code under test.
    """
    before = os.readlink(f"/proc/self/ns/{kind}")
    calls.unshare(NAMESPACES[kind])
    if os.readlink(f"/proc/self/ns/{kind}") == before:
        raise AssertionError(f"still in the host's {kind} namespace: nothing more is done")


def private_mounts() -> None:
    """For a child: mounts of its own, of which the host sees nothing."""
    enter_new("mnt")
    prepared.mount_propagation(b"/", f.MS_REC | f.MS_PRIVATE)
    with open("/proc/self/mountinfo", "rb") as file:
        if any(b" shared:" in line.partition(b" - ")[0] for line in file):
            raise AssertionError("mounts still propagate to the host: nothing more is done")


def new_tmpfs(*options: tuple[bytes, bytes], attributes: int = 0) -> int:
    """A descriptor of a tmpfs that is attached nowhere."""
    context = prepared.fsopen(b"tmpfs")
    for key, value in options:
        prepared.fsconfig(context, f.FSCONFIG_SET_STRING, key, value)
    prepared.fsconfig(context, f.FSCONFIG_CMD_CREATE, None, None)
    mount = prepared.fsmount(context, attributes)
    os.close(context)
    return mount


def mount_tmpfs(path: bytes, *options: tuple[bytes, bytes]) -> None:
    """Attach a new tmpfs to ``path``."""
    mount = new_tmpfs(*options)
    prepared.move_mount(mount, f.AT_FDCWD, path)
    os.close(mount)


def start_time(pid: int) -> int:
    """As the kernel tells it."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return parse_start_time(file.read())


def status_field(name: str, pid: int | str = "self") -> str:
    """One line of /proc/PID/status."""
    with open(f"/proc/{pid}/status") as file:
        (value,) = (line.split(":", 1)[1].strip() for line in file if line.startswith(f"{name}:"))
    return value
