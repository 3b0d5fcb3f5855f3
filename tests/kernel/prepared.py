"""System calls as the keeper's child makes them: prepared, without a wrapper of their own.

What a launch plan relies on is tried through the same functions and numbers that plans use.
"""

from __future__ import annotations

import os
import struct

from craterun.core import flags as f
from craterun.core.assembler import Assembler
from craterun.keeper import child
from craterun.linux import calls


def prepared(name: str, *arguments: object) -> int:
    """The result of one of `opcodes.CALLS`, or an `OSError` that names it."""
    assembler = Assembler({}, 0)
    assembler.call(name, *arguments)
    ((code, values, _, _),) = assembler.calls
    result: int = child._FUNCTIONS[code](*values)
    if result < 0:
        number = calls.errno()
        raise OSError(number, os.strerror(number), name)
    return result


def setns(fd: int, flags: int) -> None:
    """setns(2)."""
    prepared("setns", fd, flags)


def mount_propagation(path: bytes, flags: int) -> None:
    """mount(2), used for nothing but changing the propagation type of ``path``."""
    prepared("mount", None, path, None, flags, None)


def umount2(path: bytes, flags: int) -> None:
    """umount2(2)."""
    prepared("umount2", path, flags)


def pivot_root(new: bytes, old: bytes) -> None:
    """pivot_root(2)."""
    prepared("pivot_root", new, old)


def move_mount(mount: int, dirfd: int, path: bytes) -> None:
    """move_mount(2): attach ``mount`` to ``path`` below ``dirfd``, or, if that is empty, to it."""
    how = f.MOVE_MOUNT_F_EMPTY_PATH | (0 if path else f.MOVE_MOUNT_T_EMPTY_PATH)
    prepared("move_mount", mount, b"", dirfd, path, how)


def fsopen(kind: bytes) -> int:
    """fsopen(2)."""
    return prepared("fsopen", kind, f.FSOPEN_CLOEXEC)


def fsconfig(fd: int, command: int, key: bytes | None, value: bytes | None) -> None:
    """fsconfig(2)."""
    prepared("fsconfig", fd, command, key, value, 0)


def fsmount(fd: int, attributes: int) -> int:
    """fsmount(2)."""
    return prepared("fsmount", fd, f.FSMOUNT_CLOEXEC, attributes)


def capset(mask: int) -> None:
    """capset(2): permitted and effective become ``mask``, inheritable becomes empty."""
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, ourselves
    prepared("capset", header, struct.pack("6I", low, low, 0, high, high, 0))


def sethostname(name: bytes) -> None:
    """sethostname(2)."""
    prepared("sethostname", name, len(name))
