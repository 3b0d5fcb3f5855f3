"""Root, or a way to be it: a user namespace of our own (user_namespaces(7))."""

from __future__ import annotations

import os

from craterun.core import flags as f
from craterun.core.errors import NeedsRootError
from craterun.linux import calls


def become_root() -> None:
    """Make sure that this process may create containers: nothing to do for root; anybody else
    enters a user namespace in which their own uid is 0.

    Only a process with a single thread can, so programs call it before they start an event loop.

    :raises NeedsRootError: not root, and the kernel or its settings refuse a user namespace
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        return
    try:
        calls.unshare(f.CLONE_NEWUSER)
    except OSError as error:
        raise NeedsRootError(
            f"containers need root, and this is uid {uid}, which may not create a user namespace "
            f"either ({os.strerror(error.errno or 0)}); run it with sudo, or see "
            "/proc/sys/user/max_user_namespaces and your distribution's settings for unprivileged "
            "user namespaces"
        ) from error
    try:
        # An unprivileged process may map exactly one uid and gid, its own, and only after it has
        # given up setgroups(2): otherwise it could drop a group that denies it something.
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"0 {uid} 1")
        _write("/proc/self/gid_map", f"0 {gid} 1")
    except OSError as error:
        raise NeedsRootError(
            f"containers need root, and uid {uid} cannot be mapped to it in a user namespace "
            f"({os.strerror(error.errno or 0)}: {error.filename}); run it with sudo"
        ) from error


def require_root() -> None:
    """Check that this process may create containers.

    :raises NeedsRootError: it is neither root nor in a user namespace of its own
    """
    if os.geteuid() != 0:
        raise NeedsRootError(
            f"containers need root, and this is uid {os.geteuid()}; run it with sudo, or call "
            "craterun.become_root() before the event loop starts"
        )


def same_user_namespace(pid: int) -> bool:
    """Whether process ``pid`` is in our user namespace.

    :raises FileNotFoundError: it has ended
    """
    theirs, ours = os.stat(f"/proc/{pid}/ns/user"), os.stat("/proc/self/ns/user")
    return theirs.st_ino == ours.st_ino


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
    finally:
        os.close(fd)
