"""Messages between keeper and supervisor: one tuple each, marshalled, with descriptors beside it.

The transport is a SOCK_SEQPACKET socketpair, so that message borders are kept and an end that dies
is seen at once. `marshal` is the encoding for one reason: it costs the keeper nothing. Importing
msgspec there was measured to add 4 MB of private memory, whose page tables every clone copies: 220
of 690 microseconds per fork and exit. Both ends are one Python, started by the same program, and
share a privilege; nothing of a container's reaches this socket. A message of the wrong shape means
that the peer is broken, and ends the connection.
"""

from __future__ import annotations

import _socket
import marshal
import os

TYPE_CHECKING = False  # typing is an import that the keeper does without
if TYPE_CHECKING:
    from typing import Any

INLINE_BYTES = 64 * 1024
"""Larger messages travel in a memfd: a socket buffer holds about 200 KiB, a command line 2 MiB."""

MAX_DESCRIPTORS = 8
_IN_MEMFD = b"M"
_INLINE = b"I"
_INT = 4
_ANCILLARY = _socket.CMSG_SPACE(MAX_DESCRIPTORS * _INT)


class BrokenPeerError(Exception):
    """The other end sent what no healthy one would."""


def encode(message: tuple[Any, ...]) -> tuple[bytes, int]:
    """(bytes to send, descriptor of a memfd with the message or -1). The caller owns the memfd."""
    body = marshal.dumps(message)
    if len(body) <= INLINE_BYTES:
        return _INLINE + body, -1
    fd = os.memfd_create("craterun-message", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(body)
    return _IN_MEMFD, fd


def ancillary(fds: list[int]) -> list[tuple[int, int, bytes]]:
    """SCM_RIGHTS data for sendmsg(2) that carries ``fds``, which stay the caller's."""
    if not fds:
        return []
    data = b"".join(fd.to_bytes(_INT, "little") for fd in fds)
    return [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, data)]


def receive(sock: Any, buffer: bytearray) -> tuple[Any, list[int]] | None:
    """One message and the descriptors that came with it, which the caller now owns.

    Returns None at end-of-file. Raises `BlockingIOError` if nothing is there on a non-blocking
    socket, and `BrokenPeerError` for nonsense. ``buffer`` holds at least INLINE_BYTES + 1.
    """
    size, data, flags, _ = sock.recvmsg_into([buffer], _ANCILLARY, _socket.MSG_CMSG_CLOEXEC)
    fds = [
        int.from_bytes(raw[i : i + _INT], "little")
        for level, kind, raw in data
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS
        for i in range(0, len(raw) - len(raw) % _INT, _INT)
    ]
    if size == 0:
        for fd in fds:
            os.close(fd)
        return None
    try:
        if flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
            raise BrokenPeerError("message or descriptors were truncated")
        view = memoryview(buffer)[:size]
        if view[:1] == _IN_MEMFD:
            memfd = fds.pop()
            try:
                body = os.pread(memfd, os.fstat(memfd).st_size, 0)
            finally:
                os.close(memfd)
            message = marshal.loads(body)
        else:
            message = marshal.loads(view[1:])
        if not isinstance(message, tuple) or not message:
            raise BrokenPeerError("not a message")
    except BaseException as error:
        for fd in fds:
            os.close(fd)
        if isinstance(error, (ValueError, EOFError, TypeError, IndexError, OSError, MemoryError)):
            raise BrokenPeerError(f"undecodable message: {error}") from error
        raise
    return message, fds
