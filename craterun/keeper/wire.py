"""Messages between keeper and supervisor: one tuple each, marshalled, with descriptors beside it.

The transport is a SOCK_SEQPACKET socketpair, so that message borders are kept and an end that dies
is seen at once. `marshal` is the encoding for one reason: it costs the keeper nothing. Importing
msgspec there was measured to add 4 MB of private memory, whose page tables every clone copies: 220
of 690 microseconds per fork and exit. Both ends are one Python, started by the same program, and
share a privilege; nothing of a container's reaches this socket. A message of the wrong shape means
that the peer is broken, and ends the connection.

Descriptors are another matter: a receiver that has as many open as it may gets the message without
them (MSG_CTRUNC in recv(2)), which is nobody's fault. What the message is about is in the packet
itself even if the rest of it is in a memfd, so that the receiver can refuse that one thing.
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
_MAX_ELEMENTS = 7
_SMALL_BYTES = INLINE_BYTES // (_MAX_ELEMENTS + 1)
"""Elements of a large message that are in the packet, too: at most so many, at most so large."""
_IN_MEMFD = b"M"
_INLINE = b"I"
_INT = 4
_ANCILLARY = _socket.CMSG_SPACE(MAX_DESCRIPTORS * _INT)


class BrokenPeerError(Exception):
    """The other end sent what no healthy one would."""


class DescriptorsLostError(Exception):
    """This process could not take the descriptors that came with a message; they are all closed.

    :ivar message: the message; of a large one only the small elements, with None for the others
    """

    def __init__(self, message: tuple[Any, ...]) -> None:
        self.message = message
        super().__init__(message)


def encode(message: tuple[Any, ...]) -> tuple[bytes, int]:
    """(bytes to send, descriptor of a memfd with the message or -1). The caller owns the memfd."""
    body = marshal.dumps(message)
    if len(body) <= INLINE_BYTES:
        return _INLINE + body, -1
    fd = os.memfd_create("craterun-message", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(body)
    except BaseException:
        os.close(fd)
        raise
    return _IN_MEMFD + marshal.dumps(_small_elements(message)), fd


def _small_elements(message: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        element if len(marshal.dumps(element)) <= _SMALL_BYTES else None
        for element in message[:_MAX_ELEMENTS]
    )


def ancillary(fds: list[int]) -> list[tuple[int, int, bytes]]:
    """SCM_RIGHTS data for sendmsg(2) that carries ``fds``, which stay the caller's."""
    if not fds:
        return []
    data = b"".join(fd.to_bytes(_INT, "little") for fd in fds)
    return [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, data)]


def receive(sock: Any, buffer: bytearray) -> tuple[Any, list[int]] | None:
    """One message and the descriptors that came with it, which the caller now owns.

    Returns None at end-of-file. Raises `BlockingIOError` if nothing is there on a non-blocking
    socket, `BrokenPeerError` for nonsense, and `DescriptorsLostError` if this process has no room
    for the descriptors. ``buffer`` holds at least INLINE_BYTES + 1.
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
    lost = bool(flags & _socket.MSG_CTRUNC)
    try:
        # Nobody sends more than was agreed: if as many came, others did, too, and were cut off.
        if flags & _socket.MSG_TRUNC or (lost and len(fds) >= MAX_DESCRIPTORS):
            raise BrokenPeerError("message or descriptors were truncated")
        view = memoryview(buffer)[:size]
        if view[:1] == _IN_MEMFD and not lost:
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
        if lost:
            raise DescriptorsLostError(message)
    except BaseException as error:
        for fd in fds:
            os.close(fd)
        if isinstance(error, (ValueError, EOFError, TypeError, IndexError, OSError, MemoryError)):
            raise BrokenPeerError(f"undecodable message: {error}") from error
        raise
    return message, fds
