"""What a worker and the server say to each other of containers that the server looks after and the
worker makes use of (`lending`, `borrowing`): a batch has many, and its own process all the same.

The worker numbers them.
"""

from __future__ import annotations

import msgspec

from craterun.core import errors
from craterun.core.errors import CraterunError, KernelRefusedError
from craterun.core.life import Record
from craterun.state.loghead import Head
from craterun.state.logindex import Stream


class Launch(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Start a container; answered by `Launched` and, in its time, `Over`, or by `Refused`.

    :ivar spec: a `Spec`, by `specs.encode`
    :ivar head_bytes: how much of each output stream comes along with `Over`
    """

    number: int
    spec: bytes
    container_id: str | None
    head_bytes: int


class Signal(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Send a container a signal; nothing if it has ended."""

    number: int
    signal: int


class Launched(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """It runs.

    :ivar has_input: the write end of its input pipe comes along
    """

    number: int
    record: Record
    has_input: bool


class Refused(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """It does not.

    :ivar kind: name of a class of `core.errors`
    """

    number: int
    kind: str
    text: str

    @classmethod
    def by(cls, number: int, error: Exception) -> Refused:
        """What ``error`` says."""
        kinds = (kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        return cls(number, next(kinds, CraterunError).__name__, str(error))

    def error(self) -> CraterunError:
        """What it was there, but for attributes of its own."""
        kind = getattr(errors, self.kind)
        assert issubclass(kind, CraterunError)
        return CraterunError(self.text) if kind is KernelRefusedError else kind(self.text)


class Over(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """It has ended.

    :ivar record: the final one
    :ivar totals: bytes that it has written to stdout and stderr
    :ivar heads: the first of them
    """

    number: int
    record: Record
    totals: tuple[int, int]
    heads: tuple[bytes, bytes]

    @classmethod
    def of(cls, number: int, record: Record, head: Head) -> Over:
        """What there is to be told."""
        out, err = Stream.STDOUT, Stream.STDERR
        heads = bytes(head.kept[out]), bytes(head.kept[err])
        return cls(number, record, (head.totals[out], head.totals[err]), heads)

    def fill(self, head: Head) -> None:
        """Make ``head`` what it was there."""
        for stream, total, kept in zip(
            (Stream.STDOUT, Stream.STDERR), self.totals, self.heads, strict=True
        ):
            head.totals[stream] = total
            head.kept[stream] += kept


class Closing(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The server is ending: it is about to stop what runs, and starts nothing more."""


FromBorrower = Launch | Signal
FromLender = Launched | Refused | Over | Closing
