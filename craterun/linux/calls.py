"""System calls that Python has no function for, one thin wrapper each.

A wrapper takes numbers and bytes, returns a value or raises `OSError` with the name of the call as
its ``filename``. It neither retries nor logs. What launch plans consist of needs no wrapper: the
keeper's child makes those calls through `plain_function`. It has a copy of this module, which
therefore imports ctypes and nothing else of weight.

ctypes goes through `PyDLL`, which keeps the interpreter lock: after a raw clone3 there is only one
thread in the child, and it must own the lock without having to ask for it.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import addressof, c_char_p, c_int, c_long, c_size_t, c_uint, c_ulong, c_void_p, sizeof

from craterun.core import flags as f

TYPE_CHECKING = False  # typing is an import that the keeper does without
if TYPE_CHECKING:
    from typing import Any

_libc = ctypes.PyDLL(None, use_errno=True)


def _prototype(name: str, *arguments: Any) -> Any:
    """A C function with fixed argument types: plain integers and bytes then need no wrapping, which
    halves the cost of a call. Each gets a function object of its own, since syscall(2) has as many
    shapes as there are calls.
    """
    function = _libc[name]
    function.argtypes = arguments
    function.restype = c_long if name == "syscall" else c_int
    return function


# From <asm-generic/unistd.h>; since 2019 (424 on) the numbers are the same on all architectures.
_NR_OPEN_TREE = 428
_NR_CLONE3 = 435
_NR_CLOSE_RANGE = 436
_NR_OPENAT2 = 437
_NR_MOUNT_SETATTR = 442

# Older calls have numbers of their own on each architecture.
_NR_KEYCTL = {
    "x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280,
}.get(os.uname().machine, -1)  # fmt: skip
_NR_IOPRIO_GET = {
    "x86_64": 252, "aarch64": 31, "riscv64": 31, "ppc64le": 274, "s390x": 283,
}.get(os.uname().machine, -1)  # fmt: skip
_IOPRIO_WHO_PROCESS = 1


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


_clone3 = _prototype("syscall", c_long, c_void_p, c_size_t)
_unshare = _prototype("unshare", c_int)
_open_tree = _prototype("syscall", c_long, c_int, c_char_p, c_uint)
_mount_setattr = _prototype("syscall", c_long, c_int, c_char_p, c_uint, c_void_p, c_size_t)
_openat2 = _prototype("syscall", c_long, c_int, c_char_p, c_void_p, c_size_t)
_close_range = _prototype("syscall", c_long, c_uint, c_uint, c_uint)
_prctl = _prototype("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_prctl_name = _prototype("prctl", c_int, c_char_p, c_ulong, c_ulong, c_ulong)
_keyctl = _prototype("syscall", c_long, c_long, c_void_p)
_ioprio_get = _prototype("syscall", c_long, c_int, c_int)
_inotify_init1 = _prototype("inotify_init1", c_int)
_inotify_add_watch = _prototype("inotify_add_watch", c_int, c_char_p, c_uint)
_mmap = _prototype("mmap", c_void_p, c_size_t, c_int, c_int, c_int, c_long)
_mmap.restype = c_void_p
_munmap = _prototype("munmap", c_void_p, c_size_t)


_plain = ctypes.PyDLL(None)
_errno_location = _plain["__errno_location"]
_errno_location.restype = ctypes.POINTER(c_int)


def plain_function(name: str) -> Any:
    """A function of the C library without a prototype: integers go in as int, bytes as their
    address, None as NULL, and an int comes out. Nothing is checked or raised; see `errno`.
    """
    return _plain[name]


def errno() -> int:
    """What the last call of a `plain_function` left behind (errno(3)); read it at once."""
    number: int = _errno_location()[0]
    return number


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
        args.pidfd = addressof(pidfd)
    if cgroup >= 0:
        args.flags |= f.CLONE_INTO_CGROUP
        args.cgroup = cgroup
    pid = _clone3(_NR_CLONE3, addressof(args), sizeof(args))
    if pid < 0:
        raise _fail("clone3")
    return pid, pidfd.value


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _unshare(flags) < 0:
        raise _fail("unshare")


def open_tree(dirfd: int, path: bytes, flags: int) -> int:
    """open_tree(2), Linux 5.2. Returns a close-on-exec descriptor.

    With OPEN_TREE_CLONE, EINVAL before Linux 6.15 if the mount is attached nowhere.
    """
    fd: int = _open_tree(_NR_OPEN_TREE, dirfd, path, flags | f.OPEN_TREE_CLOEXEC)
    if fd < 0:
        raise _fail("open_tree")
    return fd


def mount_setattr(fd: int, flags: int, attributes: int, clear: int = 0) -> None:
    """mount_setattr(2), Linux 5.12, on the mount that ``fd`` refers to."""
    attr = _MountAttr(attributes, clear, 0, 0)
    flags |= f.AT_EMPTY_PATH
    if _mount_setattr(_NR_MOUNT_SETATTR, fd, b"", flags, addressof(attr), sizeof(attr)) < 0:
        raise _fail("mount_setattr")


def openat2(dirfd: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2), Linux 5.6. ELOOP: a symlink where none is allowed; EXDEV: an escape."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    fd: int = _openat2(_NR_OPENAT2, dirfd, path, addressof(how), sizeof(how))
    if fd < 0:
        raise _fail("openat2")
    return fd


def close_range(first: int, flags: int = 0) -> None:
    """close_range(2), Linux 5.9, from ``first`` to the highest descriptor."""
    if _close_range(_NR_CLOSE_RANGE, first, 0xFFFFFFFF, flags) < 0:
        raise _fail("close_range")


def prctl(option: int, value: int = 0, third: int = 0) -> None:
    """prctl(2)."""
    if _prctl(option, value, third, 0, 0) < 0:
        raise _fail("prctl")


def set_process_name(name: bytes) -> None:
    """prctl(PR_SET_NAME): what /proc/PID/comm shows, at most 15 bytes."""
    _prctl_name(f.PR_SET_NAME, name, 0, 0, 0)


def set_command_line(text: bytes) -> None:
    """Overwrite what /proc/self/cmdline shows, in memory: fields 48 and 49 of /proc/self/stat.

    prctl(PR_SET_MM_ARG_START) would need CAP_SYS_RESOURCE. Cut to the room that is there.
    """
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b") ")[2].split()
    start, end = int(fields[45]), int(fields[46])
    if not start:
        return  # a kernel that hides it from us hides it from others
    ctypes.memmove(start, text[: end - start - 1].ljust(end - start, b"\0"), end - start)


def new_session_keyring() -> None:
    """keyctl(KEYCTL_JOIN_SESSION_KEYRING). Without effect in a kernel that has no keys (ENOSYS)."""
    if _keyctl(_NR_KEYCTL, f.KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        error = _fail("keyctl")
        if error.errno != 38:  # ENOSYS: nothing there to be reached
            raise error


def io_priority(pid: int) -> int:
    """Class and level of a process, as ioprio_get(2) has them; 0 stands for this one."""
    value: int = _ioprio_get(_NR_IOPRIO_GET, _IOPRIO_WHO_PROCESS, pid)
    if value < 0:
        raise _fail("ioprio_get")
    return value


def shared_integers(count: int) -> tuple[tuple[int, int], Any]:
    """mmap(2): (address and size, array of ``count`` 64-bit integers) that children share with us.

    The `mmap` module would do, too; it is one more library to be mapped, and paid for at each fork.
    """
    kind = ctypes.c_uint64 * count
    size = sizeof(kind)
    address = _mmap(None, size, 0x3, 0x21, -1, 0)  # read and write; shared, anonymous
    if address == c_void_p(-1).value:
        raise _fail("mmap")
    return (address, size), kind.from_address(address)


def unmap(page: tuple[int, int]) -> None:
    """munmap(2) of what `shared_integers` has made; nobody may use it afterwards."""
    if _munmap(*page) < 0:
        raise _fail("munmap")


def inotify_init() -> int:
    """inotify_init1(2), close-on-exec. EMFILE: /proc/sys/fs/inotify/max_user_instances."""
    fd: int = _inotify_init1(os.O_CLOEXEC)
    if fd < 0:
        raise _fail("inotify_init1")
    return fd


def inotify_add_watch(fd: int, path: bytes, mask: int) -> int:
    """inotify_add_watch(2)."""
    watch: int = _inotify_add_watch(fd, path, mask)
    if watch < 0:
        raise _fail("inotify_add_watch")
    return watch
