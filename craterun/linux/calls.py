"""System calls that Python has no function for, one thin wrapper each.

A wrapper takes numbers and bytes, returns a value or raises `OSError` with the name of the call as
its ``filename``. It neither retries nor logs. The keeper's child calls these between clone3 and
execve, so this module imports ctypes and nothing else of weight.

ctypes goes through `PyDLL`, which keeps the interpreter lock: after a raw clone3 there is only one
thread in the child, and it must own the lock without having to ask for it.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import byref, c_char_p, c_int, c_long, c_uint, c_ulong, c_void_p, sizeof

from craterun.core import flags as f

_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = c_long

# From <asm-generic/unistd.h>; since 2019 (424 on) the numbers are the same on all architectures.
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432
_NR_CLONE3 = 435
_NR_CLOSE_RANGE = 436
_NR_OPENAT2 = 437
_NR_MOUNT_SETATTR = 442

_machine = os.uname().machine
# Older calls have numbers of their own on each architecture: (pivot_root, keyctl, capset).
_OLD_NUMBERS = {
    "x86_64": (155, 250, 126),
    "aarch64": (41, 219, 91),
    "riscv64": (41, 219, 91),
    "ppc64le": (203, 271, 184),
    "s390x": (217, 280, 185),
}
_NR_PIVOT_ROOT, _NR_KEYCTL, _NR_CAPSET = _OLD_NUMBERS.get(_machine, (-1, -1, -1))


class _CloneArgs(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size",
            "tls", "set_tid", "set_tid_size", "cgroup",
        )
    ]  # fmt: skip


class _OpenHow(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("flags", "mode", "resolve")]


class _MountAttr(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")
    ]


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", c_int)]


class _CapData(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def _fail(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), call)


def clone3(flags: int, cgroup: int = -1, exit_signal: int = 17) -> tuple[int, int]:
    """clone3(2), Linux 5.3: fork with namespace ``flags``. Returns (pid, pidfd), 0 in the child.

    :param cgroup: descriptor of a version 2 cgroup to be born in (Linux 5.7), or -1
    :param exit_signal: SIGCHLD, or 0 as CLONE_PARENT demands

    glibc's and CPython's fork handlers do not run. That is sound here because the caller has one
    thread and the child only makes system calls until execve or _exit.
    """
    args = _CloneArgs()
    pidfd = c_int(-1)
    args.exit_signal = exit_signal
    args.flags = flags
    if not flags & f.CLONE_PARENT:
        args.flags = flags | f.CLONE_PIDFD
        args.pidfd = ctypes.addressof(pidfd)
    if cgroup >= 0:
        args.flags |= f.CLONE_INTO_CGROUP
        args.cgroup = cgroup
    pid = _syscall(c_long(_NR_CLONE3), byref(args), c_ulong(sizeof(args)))
    if pid < 0:
        raise _fail("clone3")
    return pid, pidfd.value


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _libc.unshare(c_int(flags)) < 0:
        raise _fail("unshare")


def setns(fd: int, flags: int) -> None:
    """setns(2); with a pidfd, several namespaces at once (Linux 5.8). ESRCH: it has ended."""
    if _libc.setns(c_int(fd), c_int(flags)) < 0:
        raise _fail("setns")


def mount_propagation(path: bytes, flags: int) -> None:
    """mount(2), used for nothing but changing the propagation type of ``path``."""
    if _libc.mount(None, c_char_p(path), None, c_ulong(flags), None) < 0:
        raise _fail("mount")


def umount2(path: bytes, flags: int) -> None:
    """umount2(2)."""
    if _libc.umount2(c_char_p(path), c_int(flags)) < 0:
        raise _fail("umount2")


def pivot_root(new: bytes, old: bytes) -> None:
    """pivot_root(2). EINVAL: the current root is not a mount point, as in an initramfs."""
    if _syscall(c_long(_NR_PIVOT_ROOT), c_char_p(new), c_char_p(old)) < 0:
        raise _fail("pivot_root")


def open_tree(dirfd: int, path: bytes, flags: int) -> int:
    """open_tree(2), Linux 5.2. Returns a close-on-exec descriptor."""
    fd = _syscall(
        c_long(_NR_OPEN_TREE), c_int(dirfd), c_char_p(path), c_uint(flags | f.OPEN_TREE_CLOEXEC)
    )
    if fd < 0:
        raise _fail("open_tree")
    return int(fd)


def move_mount(mount: int, dirfd: int, path: bytes) -> None:
    """move_mount(2), Linux 5.2: attach ``mount`` to ``path`` below ``dirfd``, or to ``dirfd``
    itself where ``path`` is empty. Symlinks at the end of ``path`` are not followed.
    """
    how = f.MOVE_MOUNT_F_EMPTY_PATH | (0 if path else f.MOVE_MOUNT_T_EMPTY_PATH)
    if _syscall(
        c_long(_NR_MOVE_MOUNT),
        c_int(mount),
        c_char_p(b""),
        c_int(dirfd),
        c_char_p(path),
        c_uint(how),
    ):
        raise _fail("move_mount")


def fsopen(kind: bytes) -> int:
    """fsopen(2), Linux 5.2. ENODEV: the kernel does not know this filesystem."""
    fd = _syscall(c_long(_NR_FSOPEN), c_char_p(kind), c_uint(f.FSOPEN_CLOEXEC))
    if fd < 0:
        raise _fail("fsopen")
    return int(fd)


def fsconfig(fd: int, command: int, key: bytes | None, value: bytes | None) -> None:
    """fsconfig(2), Linux 5.2."""
    if _syscall(
        c_long(_NR_FSCONFIG), c_int(fd), c_uint(command), c_char_p(key), c_char_p(value), c_int(0)
    ):
        raise _fail("fsconfig")


def fsmount(fd: int, attributes: int) -> int:
    """fsmount(2), Linux 5.2: a detached mount of the filesystem configured on ``fd``."""
    mount = _syscall(c_long(_NR_FSMOUNT), c_int(fd), c_uint(f.FSMOUNT_CLOEXEC), c_uint(attributes))
    if mount < 0:
        raise _fail("fsmount")
    return int(mount)


def mount_setattr(fd: int, flags: int, attributes: int, clear: int = 0) -> None:
    """mount_setattr(2), Linux 5.12, on the mount that ``fd`` refers to."""
    attr = _MountAttr(attributes, clear, 0, 0)
    if _syscall(
        c_long(_NR_MOUNT_SETATTR),
        c_int(fd),
        c_char_p(b""),
        c_uint(flags | f.AT_EMPTY_PATH),
        byref(attr),
        c_ulong(sizeof(attr)),
    ):
        raise _fail("mount_setattr")


def openat2(dirfd: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2), Linux 5.6. ELOOP: a symlink where none is allowed; EXDEV: an escape."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    fd = _syscall(
        c_long(_NR_OPENAT2), c_int(dirfd), c_char_p(path), byref(how), c_ulong(sizeof(how))
    )
    if fd < 0:
        raise _fail("openat2")
    return int(fd)


def close_range(first: int, flags: int = 0) -> None:
    """close_range(2), Linux 5.9, from ``first`` to the highest descriptor."""
    if _syscall(c_long(_NR_CLOSE_RANGE), c_uint(first), c_uint(0xFFFFFFFF), c_uint(flags)):
        raise _fail("close_range")


def prctl(option: int, value: int = 0, third: int = 0) -> None:
    """prctl(2)."""
    if _libc.prctl(c_int(option), c_ulong(value), c_ulong(third), c_ulong(0), c_ulong(0)) < 0:
        raise _fail("prctl")


def set_process_name(name: bytes) -> None:
    """prctl(PR_SET_NAME): what /proc/PID/comm shows, at most 15 bytes."""
    _libc.prctl(c_int(f.PR_SET_NAME), c_char_p(name), c_ulong(0), c_ulong(0), c_ulong(0))


def capset(mask: int) -> None:
    """capset(2): permitted and effective become ``mask``, inheritable becomes empty."""
    version_3 = 0x20080522
    data = (_CapData * 2)()
    for half in (0, 1):
        word = (mask >> (32 * half)) & 0xFFFFFFFF
        data[half].effective = word
        data[half].permitted = word
    header = _CapHeader(version_3, 0)
    if _syscall(c_long(_NR_CAPSET), byref(header), byref(data)):
        raise _fail("capset")


def new_session_keyring() -> None:
    """keyctl(KEYCTL_JOIN_SESSION_KEYRING). ENOSYS: a kernel without keys."""
    if _syscall(c_long(_NR_KEYCTL), c_long(f.KEYCTL_JOIN_SESSION_KEYRING), c_void_p(None)) < 0:
        raise _fail("keyctl")


def sethostname(name: bytes) -> None:
    """sethostname(2)."""
    if _libc.sethostname(c_char_p(name), c_ulong(len(name))) < 0:
        raise _fail("sethostname")
