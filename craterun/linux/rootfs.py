"""Is this directory fit to be a rootfs? And what its own files say, read without leaving it."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from craterun.core import flags as f
from craterun.core.errors import RootfsError, UsageError, printable
from craterun.core.spec import Identity, RootDirectory
from craterun.core.units import argument_bytes
from craterun.core.users import parse_user, resolve_user
from craterun.linux import calls
from craterun.linux.bindable import is_bindable
from craterun.linux.host import mount_table
from craterun.linux.proc import Mount
from craterun.linux.shortage import SHORTAGES

_MARKERS = ("bin", "usr", "etc")
_ACCOUNT_FILE_BYTES = 4 * 1024 * 1024


def check_rootfs(path: str) -> RootDirectory:
    """Check ``path`` and return what was checked, so that a later swap is noticed.

    :raises RootfsError: it is relative, missing, not a directory, the host's own root, or holds
        none of bin/, usr/ and etc/
    :raises OSError: the host is short of what it takes to look
    """
    shown = printable(path)
    if not path:
        raise RootfsError("rootfs is empty: give the path of a directory, or leave the option out")
    try:
        argument_bytes(path)
    except UsageError as error:
        raise RootfsError(f"rootfs: {error}") from None
    if not path.startswith("/"):
        would_be = printable(os.path.abspath(path))
        raise RootfsError(f"rootfs '{shown}' is not an absolute path; write {would_be}")
    try:
        real = os.path.realpath(path, strict=True)
        fd = os.open(real, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        raise RootfsError(f"rootfs {shown}: {os.strerror(error.errno or 0)}") from error
    try:
        found = os.fstat(fd)
        mounts = mount_table()
        if _is_host_root(real, found, mounts):
            raise RootfsError(
                f"rootfs {shown} is the host's own root directory, which a container never gets; "
                "leave --rootfs out for a read-only view of the host's programs"
            )
        if not any(_is_directory(fd, name) for name in _MARKERS):
            raise RootfsError(
                f"rootfs {shown} has none of bin/, usr/ and etc/: it does not look like a root "
                "directory; unpack a distribution there, for example with debootstrap"
            )
    finally:
        os.close(fd)
    return RootDirectory(real, found.st_dev, found.st_ino, is_bindable(real, mounts))


def _is_host_root(path: str, found: os.stat_result, mounts: Sequence[Mount]) -> bool:
    root = os.stat("/")
    if (found.st_dev, found.st_ino) == (root.st_dev, root.st_ino):
        return True
    # Some filesystems give a bind mount of / other numbers than / itself: compare what the mount
    # table says is mounted, too.
    at = {mount.point: (mount.device, mount.root) for mount in mounts}
    return path in at and at[path] == at.get("/")


def _is_directory(root: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=root).st_mode)
    except OSError:
        return False


def look_up_user(
    user: str | None, root: str | None, accounts: tuple[str, str] = ("", "")
) -> Identity:
    """What ``user`` (``NAME|UID[:GROUP|GID]``) means inside the rootfs.

    :param root: directory whose etc/passwd and etc/group count; None to use ``accounts``
    :param accounts: contents of passwd and group
    :raises UsageError: malformed, or a name that is not there
    """
    if user is None:
        return Identity()
    wanted = parse_user(user)
    if root is not None:
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            accounts = (read_inside(fd, b"etc/passwd"), read_inside(fd, b"etc/group"))
        finally:
            os.close(fd)
    return resolve_user(wanted, *accounts)


def read_inside(root: int, path: bytes) -> str:
    """Contents of a regular file below ``root``, symlinks staying inside; "" if there is none.

    The file belongs to the container: it may be a FIFO to block on or larger than memory, neither
    of which counts as an account file.

    :raises OSError: the host is short of what it takes to look
    """
    try:
        place = calls.openat2(root, path, os.O_PATH, f.RESOLVE_IN_ROOT | f.RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return ""
    try:
        # Looked at before it is opened: opening alone does something to a device or a FIFO.
        found = os.fstat(place)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _ACCOUNT_FILE_BYTES:
            return ""
        with open(f"/proc/self/fd/{place}", "rb") as file:
            return file.read(_ACCOUNT_FILE_BYTES).decode("utf-8", "replace")
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return ""
    finally:
        os.close(place)
