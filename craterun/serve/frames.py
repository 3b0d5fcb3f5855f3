"""What client and server say to each other, as the client's end needs it: with no import at all.

Every message is a frame: four bytes of length, little-endian, then that many bytes of MessagePack.
The client writes its few forms by hand, since it would have to import msgspec for longer than many
a command runs; the server reads them with msgspec, strictly (`hello`). Its replies are arrays of
two small integers, of which the client looks at the second byte and the last.

The client begins with a hello, along with four descriptors: its standard streams and its working
directory. It may write signals after that. The server answers DECLINED, after which the client
does everything by itself, or ACCEPTED, and in the end one of the others. Before ACCEPTED was
written, it does nothing for the client, which until then can take its request back.
"""

from __future__ import annotations

VERSION = 1
MAX_HELLO_BYTES = 8 * 1024 * 1024
"""More than execve(2) takes, with the usual limit of the stack."""
MAX_REQUEST_BYTES = MAX_HELLO_BYTES
"""Of what a worker asks the server for: JSON, in which bytes that are no UTF-8 are three times as
long. execve(2) takes 2 MiB of them, with the usual limit of the stack.
"""
MAX_SIGNAL_BYTES = 16
HELLO_DESCRIPTORS = 4

# Replies; of those without a value, it is 0.
ACCEPTED = 1
DECLINED = 2
EXITED = 3
SIGNALED = 4
"""The client is to die of this signal, as the command did."""
SUSPENDED = 5
"""The command has stopped on SIGTSTP: the client may stop, too."""
SHUT_DOWN = 6
"""The server has ended in good order before the command had; 1: its containers go on."""
SOCKET_NAME = ".serve.sock"
"""In the state directory: a server belongs to one, and only its users find it."""
LEAVE_RUNNING = "leave-running"
"""After `SHUTDOWN`: the containers are to go on."""
SHUTDOWN = "\0shutdown"
"""Instead of a command's arguments: end the server; no file or user can have that name."""

TYPE_CHECKING = False  # typing is an import that the client does without
if TYPE_CHECKING:
    Packable = int | bytes | list["Packable"]


def pack(value: Packable) -> bytes:
    """MessagePack of the forms that a hello is made of."""
    if isinstance(value, int):
        return b"\xce" + value.to_bytes(4, "big")
    if isinstance(value, bytes):
        return b"\xc6" + len(value).to_bytes(4, "big") + value
    return b"\xdd" + len(value).to_bytes(4, "big") + b"".join(map(pack, value))


def frame(payload: bytes) -> bytes:
    """``payload`` with its length in front."""
    return len(payload).to_bytes(4, "little") + payload


def reply(kind: int, value: int = 0) -> bytes:
    """A frame of the server's; `kind_and_value` reads it."""
    tail = bytes([value]) if value < 128 else bytes([0xCC, value])
    return frame(bytes([0x92, kind]) + tail)


def kind_and_value(payload: bytes) -> tuple[int, int]:
    """Of a reply. A number below 128 is one byte of MessagePack, one below 256 ends with it."""
    return payload[1], payload[-1]
