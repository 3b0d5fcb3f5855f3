"""The blank mount namespace: nothing but an empty directory. Containers begin in a copy of it.

The usual way to a container's mounts is a copy of the host's, all of them, and pivot_root(2) out of
it. That looks at every process of the host to see whether it has to be given a new root, and holds
the lock on all mounts meanwhile: with 2,000 containers alive it was a fifth of what a start costs.
Here it is done once. A container takes its files from where it is, enters a copy of this namespace
(one mount), and puts them there. What lies beneath its root is then an empty directory in which
nothing can be made, instead of the kernel's first filesystem, which may be an initramfs with files
in it. Linux 7.0 has nearly the same in one call (OPEN_TREE_NAMESPACE of open_tree(2)).
"""

from __future__ import annotations

import _socket
import os

from craterun.core import flags as f
from craterun.core import opcodes as op
from craterun.keeper.child import evidence_of
from craterun.keeper.kept import receive_descriptor, socket_pair
from craterun.linux import calls

TYPE_CHECKING = False  # typing is an import that the keeper does without
if TYPE_CHECKING:
    from typing import Any, NoReturn


def make_blank() -> int:
    """Have a child make it. Returns a descriptor that it lives as long as (namespaces(7)).

    :raises OSError: with the name of the call that failed, or the path that could not be opened
    """
    ours, theirs = socket_pair()
    try:
        pid, pidfd = calls.clone3(f.CLONE_NEWNS)
        if pid == 0:
            _make(theirs)
        theirs.close()
        try:
            said = ours.recv(4096, _socket.MSG_PEEK)
            if said != _MADE:
                raise _error(said)
            return receive_descriptor(ours)[0]
        finally:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
    finally:
        ours.close()
        theirs.close()


_EPIPE = 32
_MADE = b"m"


def _make(sock: Any) -> NoReturn:
    """In the child: make it, and pass it out, or what has failed."""
    try:
        try:
            blank = os.open(b"/proc/self/ns/mnt", os.O_RDONLY)
            # To the root of all, also for who is in a chroot, out of which pivot_root leads nobody.
            _call("setns", blank, f.CLONE_NEWNS)
            _empty()
            rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, blank.to_bytes(4, "little"))
            sock.sendmsg([_MADE], [rights])
        except OSError as error:
            sock.send((error.errno or 0).to_bytes(2, "little") + evidence_of(error))
    finally:
        os._exit(0)


def _error(said: bytes) -> OSError:
    if not said:  # killed before it could say anything
        return OSError(_EPIPE, os.strerror(_EPIPE), "recvmsg")
    number, kind, name = int.from_bytes(said[:2], "little"), said[2:3], said[3:]
    return OSError(number, os.strerror(number), name if kind == b"p" else name.decode())


def _empty() -> None:
    """Have nothing in this mount namespace but an empty directory that stays so."""
    _call("mount", None, b"/", None, f.MS_REC | f.MS_PRIVATE, None)
    context = _call("fsopen", b"tmpfs", f.FSOPEN_CLOEXEC)
    # One inode, which is the directory itself.
    options = ((b"source", b"craterun"), (b"mode", b"0555"), (b"size", b"4k"), (b"nr_inodes", b"1"))
    for key, value in options:
        _call("fsconfig", context, f.FSCONFIG_SET_STRING, key, value, 0)
    _call("fsconfig", context, f.FSCONFIG_CMD_CREATE, None, None, 0)
    strict = f.MOUNT_ATTR_RDONLY | f.MOUNT_ATTR_NOSUID | f.MOUNT_ATTR_NODEV | f.MOUNT_ATTR_NOEXEC
    mount = _call("fsmount", context, f.FSMOUNT_CLOEXEC, strict)
    _call("move_mount", mount, b"", f.AT_FDCWD, b"/", f.MOVE_MOUNT_F_EMPTY_PATH)
    os.fchdir(mount)
    # Both on the same directory: pivot_root(2), NOTES.
    _call("pivot_root", b".", b".")
    _call("umount2", b".", f.MNT_DETACH)


def _call(name: str, *arguments: int | bytes | None) -> int:
    """One of `opcodes.CALLS`.

    :raises OSError: with its name
    """
    number = _NUMBERS[name]
    if number:
        result = calls.plain_function("syscall")(number, *arguments)
    else:
        result = calls.plain_function(name)(*arguments)
    if result < 0:
        errno = calls.errno()
        raise OSError(errno, os.strerror(errno), name)
    return int(result)


_NUMBERS = dict(op.CALLS)
