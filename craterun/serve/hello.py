"""The server's reading of what a client says: strict, bounded, and never longer than a moment."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import msgspec
import trio

from craterun.linux.fd import Fd
from craterun.serve import frames

HELLO_SECONDS = 5.0
"""A client sends its hello at once; whoever is slower than this has died or means no good."""
_RECEIVE_BYTES = 65536
_SMALL_BYTES = 65536
"""What any client may hold, so that greedy ones do not keep others out."""
_MAX_DESCRIPTORS = 16
"""Room for more than a hello has, so that a wrong number is noticed."""


class BrokenClientError(Exception):
    """Not a client of this protocol, or one that has gone in the middle of a message."""


class Circumstances(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a container would inherit from whoever starts it, raw, as the kernel tells it.

    :ivar status: /proc/self/status
    :ivar limits: /proc/self/limits
    :ivar namespaces: what the links in /proc/self/ns say
    :ivar root: device and inode of the root directory
    :ivar others: priority, scheduling policy, oom_score_adj, personality(2) and the like
    """

    status: bytes
    limits: bytes
    namespaces: bytes
    root: bytes
    others: bytes

    def essence(self) -> tuple[bytes, ...]:
        """What two processes have in common for which a container would come out the same."""
        lines = self.status.split(b"\n")
        inherited = tuple(line for line in lines if line.startswith(_INHERITED))
        return (*inherited, self.limits, self.namespaces, self.root, self.others)


_INHERITED = (
    b"Umask:", b"Uid:", b"Gid:", b"Groups:", b"SigBlk:", b"Cap", b"NoNewPrivs:", b"Seccomp:",
    b"Speculation", b"THP_enabled:", b"Cpus_allowed:", b"Mems_allowed:",
)  # fmt: skip


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a client wants, and what it is.

    :ivar version: of the protocol
    :ivar program: which craterun it is, in which interpreter; the server stands in for no other
    :ivar arguments: of the command line, without the program's name
    :ivar environment: KEY=VALUE
    :ivar root: the state directory, absolute
    :ivar real_root: the same without symlinks
    :ivar ignored: signals that it was told to ignore
    :ivar encodings: of its standard streams, with error handlers: six words
    """

    version: int
    program: bytes
    arguments: list[bytes]
    environment: list[bytes]
    root: bytes
    real_root: bytes
    ignored: list[int]
    encodings: bytes
    circumstances: Circumstances


_decoder = msgspec.msgpack.Decoder(Hello)
_signal_decoder = msgspec.msgpack.Decoder(int)


def decode_hello(payload: bytes) -> Hello:
    """Decode and check.

    :raises BrokenClientError: it is none
    """
    try:
        hello = _decoder.decode(payload)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BrokenClientError(str(error)) from error
    texts = (*hello.arguments, *hello.environment, hello.root, hello.real_root)
    is_shutdown = hello.arguments[:1] == [frames.SHUTDOWN.encode()]
    if any(b"\0" in text for text in (texts[1:] if is_shutdown else texts)):
        raise BrokenClientError("a text with a zero byte")
    if not all(text.find(b"=", 1) > 0 for text in hello.environment):
        raise BrokenClientError("an environment without names")
    if not all(0 < number < 65 for number in hello.ignored):
        raise BrokenClientError("no signal has such a number")
    return hello


class Budget:
    """How many bytes of unfinished messages are held for all clients together."""

    def __init__(self, total: int) -> None:
        self._free = total

    def take(self, size: int) -> None:
        """Reserve.

        :raises BrokenClientError: there is no room
        """
        if size > self._free:
            raise BrokenClientError("too much that is unfinished")
        self._free -= size

    def give_back(self, size: int) -> None:
        """What `take` took."""
        self._free += size


class Incoming:
    """One direction of a stream socket, frame by frame. Owns the descriptors that came along."""

    def __init__(self, sock: socket.socket) -> None:
        """:param sock: non-blocking, borrowed"""
        self._socket = sock
        self._buffer = bytearray()
        self.fds: list[Fd] = []

    async def receive(self, limit: int, budget: Budget | None = None) -> bytes | None:
        """The next payload; None at the end, if that is between two frames.

        :raises BrokenClientError: the end is in the middle of one, it is longer than ``limit``, or
            there are too many descriptors
        """
        held = 0
        try:
            while True:
                if len(self._buffer) >= 4:
                    size = int.from_bytes(self._buffer[:4], "little")
                    if size > limit:
                        raise BrokenClientError(f"a message of {size} bytes")
                    if budget is not None and size > _SMALL_BYTES and not held:
                        budget.take(size)
                        held = size
                    if len(self._buffer) >= 4 + size:
                        payload = bytes(self._buffer[4 : 4 + size])
                        del self._buffer[: 4 + size]
                        return payload
                if not await self._more():
                    if self._buffer:
                        raise BrokenClientError("half a message")
                    return None
        finally:
            if budget is not None:
                budget.give_back(held)

    async def _more(self) -> int:
        """At least one byte, and descriptors; 0 at the end."""
        while True:
            await trio.lowlevel.wait_readable(self._socket.fileno())
            try:
                data, numbers, flags, _ = socket.recv_fds(
                    self._socket, _RECEIVE_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                continue
            except ConnectionError:
                return 0
            self.fds += [Fd(number) for number in numbers]
            if flags & socket.MSG_CTRUNC or len(self.fds) > _MAX_DESCRIPTORS:
                raise BrokenClientError("too many descriptors")
            self._buffer += data
            return len(data)

    def take_fds(self) -> list[Fd]:
        """All that have come so far; the caller owns them."""
        fds, self.fds = self.fds, []
        return fds

    def close(self) -> None:
        """Close descriptors that nobody took; the socket is its owner's."""
        close_all(self.take_fds())


def close_all(fds: Sequence[Fd]) -> None:
    """Close every one of them."""
    for fd in fds:
        fd.close()


def decode_signal(payload: bytes) -> int:
    """A number that the client was sent.

    :raises BrokenClientError: it is none
    """
    try:
        number = _signal_decoder.decode(payload)
    except msgspec.DecodeError as error:
        raise BrokenClientError(str(error)) from error
    if not 0 < number < 65:
        raise BrokenClientError(f"{number} is no signal")
    return number
