"""The way into a container: an abstract socket (unix(7)) named after the container.

It costs no file, vanishes with its owner, and nobody can have guessed its name beforehand.
"""

from __future__ import annotations

import os
import socket
import struct

from craterun.linux.fd import Fd

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_BACKLOG = 16


def open_doorway(container_id: str) -> socket.socket:
    """A listening, non-blocking socket; the caller owns it.

    :raises OSError: another supervisor of the same container has it open (EADDRINUSE)
    """
    kind = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        sock.bind(_address(container_id))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def give_entrance(doorway: socket.socket, entrance: Fd) -> bool:
    """Let the next one in who waits at ``doorway``: root and our own user get a descriptor of
    ``entrance``, which is borrowed. Whether somebody was let in.

    :raises OSError: we are out of descriptors (EMFILE, ENFILE)
    """
    try:
        peer, _ = doorway.accept()
    except (BlockingIOError, ConnectionError):
        return False  # gone already
    with peer:
        if not _is_trusted(peer):
            return False
        peer.setblocking(False)
        try:
            socket.send_fds(peer, [b"entrance"], [entrance.fileno()])
        except (BlockingIOError, ConnectionError):
            return False
    return True


def take_entrance(container_id: str) -> Fd:
    """The master side of a container's terminal, or the write end of its input pipe, from its
    supervisor; the caller owns it.

    :raises OSError: nobody answers (ECONNREFUSED), or nobody that we trust (EPERM)
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
        sock.connect(_address(container_id))
        if not _is_trusted(sock):
            raise PermissionError(1, "the container's address belongs to another user")
        _, fds, _, _ = socket.recv_fds(sock, 64, 1, socket.MSG_CMSG_CLOEXEC)
        if not fds:
            raise ConnectionRefusedError(111, "its supervisor did not let us in")
        return Fd(fds[0])


def _address(container_id: str) -> bytes:
    return b"\0craterun/" + container_id.encode()


def _is_trusted(peer: socket.socket) -> bool:
    """Whether the other end is root's or ours."""
    size = _CREDENTIALS.size
    uid = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1]
    return uid in (0, os.geteuid())
