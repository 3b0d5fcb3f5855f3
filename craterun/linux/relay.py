"""A chunk of output, from a container's pipe to its log and on to a reader, in machine code.

Between two chunks the processor's caches go to others, and then each instruction is paid for in
full: what Python does between a wait, a read and two writes takes longer than those four system
calls. So a thread has them made one behind the other (relay_x86_64.s; `supervisor.express`).

While it waits, nothing is locked: whoever needs the log for himself, or no longer wants to read,
disarms it (`Relay.halt`), by one atomic instruction. If it took a chunk before that, it has the log
until its thread has put down what was written.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from craterun.core import native
from craterun.core import opcodes as op
from craterun.linux import memory

if TYPE_CHECKING:
    from collections.abc import Callable

_CODE = bytes.fromhex(
    "534889fbb807000000488d7b08be0200000048c7c2ffffffff0f054883f8fc74e34885c00f888c00"
    "000048c7c083ffffff66837b1600757eb8000000008b7b08488b7318488b53200f054883f8f574b4"
    "4883f8fc74ae4885c07e5b4989c0483b43287752b801000000b902000000f00fb10b4c89c0753fb8"
    "010000008b7b30488b73184c89c20f05488943384c39c075228b7b3485ff780eb8010000004c89c2"
    "0f0548894340443b43047307b8180000000f054c89c05bc30f1f840000000000b80100000031c9f0"
    "0fb10fc3"
)
"""relay_x86_64.s, assembled."""
_HALT = 192
"""Where in it ``halt`` begins."""
_POLLIN = 1
_ARMED, _TOOK = 1, 2
STOPPED = -errno.ECANCELED
"""What `Relay.wait` returns when it was told to stop."""


class _Fields(ctypes.Structure):
    _fields_ = (
        ("state", ctypes.c_uint32),
        ("yield_below", ctypes.c_uint32),
        ("pipe", ctypes.c_int32),
        ("pipe_events", ctypes.c_int16),
        ("pipe_ready", ctypes.c_int16),
        ("stop", ctypes.c_int32),
        ("stop_events", ctypes.c_int16),
        ("stop_ready", ctypes.c_int16),
        ("buffer", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("room", ctypes.c_uint64),
        ("log", ctypes.c_int32),
        ("reader", ctypes.c_int32),
        ("logged", ctypes.c_int64),
        ("passed", ctypes.c_int64),
    )


class _Code(NamedTuple):
    relay: Callable[[object], int]
    halt: Callable[[object], int]


@cache
def _code() -> _Code | None:
    if not native.SUPPORTED or os.environ.get(op.SWITCH) == "0":
        return None
    try:
        address, _ = memory.executable(_CODE)
    except OSError:
        return None  # no memory, or none that may be executed
    return _Code(
        ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(address),
        # It takes no time, so that others need not be let run meanwhile.
        ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(address + _HALT),
    )


def open_relay(pipe: int, stop: int, buffer: memoryview) -> Relay | None:
    """None where it is not possible: another machine, or a security module that forbids it.

    :param pipe: to read from; non-blocking. It and ``stop`` are borrowed.
    :param stop: becomes readable when `Relay.wait` is to end
    :param buffer: what is read is in there
    """
    return None if (code := _code()) is None else Relay(code, pipe, stop, buffer)


class Relay:
    """For one thread, but for `halt` and `wait_idle`."""

    def __init__(self, code: _Code, pipe: int, stop: int, buffer: memoryview) -> None:
        self._fields = _Fields(
            pipe=pipe, pipe_events=_POLLIN, stop=stop, stop_events=_POLLIN, size=len(buffer)
        )
        self._buffer = ctypes.c_char.from_buffer(buffer)
        self._fields.buffer = ctypes.addressof(self._buffer)
        self._address = ctypes.c_void_p(ctypes.addressof(self._fields))
        self._relay, self._halt = code
        self._busy = threading.Lock()

    def arm(self, log: int, room: int, reader: int, yield_below: int = 0) -> None:
        """From now on, `wait` writes what it reads. Only while nobody else uses the log.

        :param log: descriptor to append to; may not be closed before `halt`
        :param room: bytes that may be written there; more than that are only read
        :param reader: where to write what has been logged: a non-blocking descriptor, or -1
        :param yield_below: after fewer bytes, others may run (sched_yield(2))
        """
        fields = self._fields
        fields.log, fields.room, fields.reader = log, room, reader
        fields.yield_below, fields.logged, fields.passed = yield_below, 0, 0
        self._busy.acquire()
        fields.state = _ARMED

    def wait(self) -> int:
        """How much was read; 0 at the end of the pipe; `STOPPED`; or -errno of poll(2), read(2)."""
        return self._relay(self._address)

    @property
    def took(self) -> bool:
        """Whether this relay has the log until `finish`, having written to it."""
        return bool(self._fields.state == _TOOK)

    @property
    def logged(self) -> int:
        """How much of what was read it has written to the log, or -errno of write(2)."""
        return int(self._fields.logged)

    @property
    def passed(self) -> int:
        """How much of it to the reader, or -errno; 0 if not all was logged."""
        return int(self._fields.passed)

    def finish(self) -> None:
        """Disarm it, and let go of the log. It has to be armed anew."""
        self._fields.state = 0
        self._busy.release()

    def halt(self) -> bool:
        """From any thread: `wait` only reads from now on. False: too late, it has the log."""
        return self._halt(self._address) != _TOOK

    def wait_idle(self) -> None:
        """From any thread, after `halt` was too late: until the relay has let go of the log."""
        with self._busy:
            return
