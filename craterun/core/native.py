"""System calls as bytes, for the machine code that makes them (`keeper.native`).

The calls of `core.program` become structures of 72 bytes, one behind the other, and behind them the
strings and structures that they point to. What several containers share is written once, by the
keeper, into memory that all its children have, and so the calls must not contain what is
particular to one of them: that is a `Value`, and each launch has a table of values of its own.

The numbers are those of x86-64 (<asm/unistd_64.h>); on other machines the child stays Python.
"""

from __future__ import annotations

import os
import struct

from craterun.core import opcodes as op

TYPE_CHECKING = False  # typing is an import that the keeper does without
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

Native = tuple[bytes, bytes]
"""Calls with all that they point to, and where in them, as 32-bit integers, there are addresses,
which are relative to their beginning."""

SUPPORTED: Final = os.uname().machine == "x86_64" and struct.calcsize("P") == 8

# --- the table of values, and a launch's whole slot (native_x86_64.s) -----------------------------
SLOT_BYTES: Final = 16 * 1024
STAMP: Final = 0
"""When execve(2) was called: ``struct timespec`` of CLOCK_MONOTONIC."""
FAILED: Final = 16
"""How many calls were made, the last of which has failed; 0: none has."""
RESULT: Final = 24
"""What that one returned."""
PARTS: Final = 32
"""Addresses of the parts of the program; 0 ends them."""
MAX_PARTS: Final = 15
VALUES: Final = PARTS + 8 * (MAX_PARTS + 1)
"""For each value its address, or a number itself, and its length."""
MAX_VALUES: Final = 48
CLONE_ARGS: Final = VALUES + 16 * MAX_VALUES
PIDFD: Final = CLONE_ARGS + 88
SCRATCH: Final = 1024
SCRATCH_BYTES: Final = 1024
DATA: Final = SCRATCH + SCRATCH_BYTES
"""What the values point to, up to the end of the slot."""

# Values that the keeper has for every launch; those of the plan follow.
VALUE_STAMP: Final = 0
VALUE_SCRATCH: Final = 1
VALUE_ERROR: Final = 2
VALUE_STREAMS: Final = 3
FIRST_VALUE: Final = 6

CALL_BYTES: Final = 72
_CALL = struct.Struct("=iI6qqHHHxx")
_END = _CALL.pack(-1, *[0] * 11)
_COMPARE = -2
_WANTED_IS_VALUE = 0x40
_ANY_RESULT = 0x80
_LENIENT = 0x100
_ANY_ERRNO = 0x200

_NUMBERS = {
    "write": 1, "close": 3, "fstat": 5, "poll": 7, "ioctl": 16, "dup2": 33, "socket": 41,
    "execve": 59, "getcwd": 79, "chdir": 80, "fchdir": 81, "umask": 95, "setsid": 112,
    "setgroups": 116, "setresuid": 117, "setresgid": 119, "capset": 126, "pivot_root": 155,
    "prctl": 157, "setrlimit": 160, "chroot": 161, "mount": 165, "umount2": 166, "sethostname": 170,
    "clock_gettime": 228, "keyctl": 250, "openat": 257, "mkdirat": 258, "mknodat": 259,
    "newfstatat": 262, "symlinkat": 266, "unshare": 272, "dup3": 292, "setns": 308,
}  # fmt: skip
_AT_FDCWD = -100
_ENOENT, _ENOTDIR, _ENOSYS, _ESTALE = 2, 20, 38, 116
_ST_DEV, _ST_INO = 0, 8  # in struct stat
_CLOCK_MONOTONIC = 1
_ALL_BITS = -1


class Value(tuple[int, bool]):
    """What each launch has its own of: ``(its number, whether its length is meant)``."""

    __slots__ = ()


def value(number: int) -> Value:
    """Value ``number``: a number as it is, or the address of a string, a structure or a list."""
    return Value((number, False))


def length(number: int) -> Value:
    """How many bytes value ``number`` has."""
    return Value((number, True))


def translate(calls: Sequence[Any]) -> Native | None:
    """Calls as `core.program` makes them; None if there is one that only Python can make."""
    expanded = [_expand(*call) for call in calls]
    if None in expanded:
        return None
    building = _Building(sum(len(group) for group in expanded if group))
    for position, group in enumerate(expanded):
        for name, arguments, wanted, lenient in group or ():
            skip = 0
            if lenient is not None:
                left_out = expanded[position + 1 : position + 1 + lenient[1]]
                skip = sum(len(group or ()) for group in left_out)
            building.add(name, arguments, wanted, lenient and lenient[0], skip)
    return building.finish()


def _expand(code: int, arguments: tuple[Any, ...], wanted: Any, lenient: Any) -> Any:
    """One call of a plan as ``(name or number, arguments, wanted, lenient)``, one or several."""
    if code >= len(op.CALLS):
        special: Any = _SPECIAL.get(op.SPECIAL[code - len(op.CALLS)])
        return special(*arguments) if special else None
    name, number = op.CALLS[code]
    if name == "syscall":
        number, *arguments = arguments  # type: ignore[assignment]
        return [(number, arguments, wanted, lenient)]
    return [(number or name, arguments, wanted, lenient)]


def _check_directory(fd: int, device: int, inode: int) -> Any:
    return [
        ("fstat", (fd, value(VALUE_SCRATCH)), 0, None),
        _compare(_ST_DEV, _ALL_BITS, device, _ESTALE),
        _compare(_ST_INO, _ALL_BITS, inode, _ESTALE),
    ]


def _check_inside() -> Any:
    # A path that is longer than the scratch is a failure here, and so it is Python's business.
    return [
        ("getcwd", (value(VALUE_SCRATCH), SCRATCH_BYTES), None, None),
        _compare(0, 0xFF, ord("/"), _ENOENT),
    ]


def _session_keyring() -> Any:
    # ENOSYS: a kernel without keys.
    return [("keyctl", (1, 0), None, ((_ENOSYS,), 0))]


def _execute(candidates: Any, arguments: Any, environment: Any) -> Any:
    calls: Any = [("clock_gettime", (_CLOCK_MONOTONIC, value(VALUE_STAMP)), 0, None)]
    for path in candidates:
        # Go on looking only where there is no such file; what else may be wrong, Python tells.
        absent = (-_ENOENT, ((_ENOTDIR,), 0))
        calls.append(("execve", (path, arguments, environment), *absent))
        calls.append(("newfstatat", (_AT_FDCWD, path, value(VALUE_SCRATCH), 0), *absent))
    return calls


def _compare(offset: int, mask: int, wanted: int, errno: int) -> Any:
    """Whether that is in the scratch; if not, it is as if a call had failed with ``errno``."""
    return (_COMPARE, (SCRATCH + offset, mask, wanted, errno), 0, None)


_SPECIAL = {
    "check_directory": _check_directory,
    "check_inside": _check_inside,
    "session_keyring": _session_keyring,
    "execute": _execute,
}


class _Building:
    def __init__(self, count: int) -> None:
        self.calls: list[bytes] = []
        self.data = bytearray()
        self.data_at = (count + 1) * CALL_BYTES
        self.known: dict[bytes, int] = {}
        self.addresses: list[int] = []

    def add(
        self,
        name: str | int,
        arguments: Any,
        wanted: Any,
        lenient: tuple[int, ...] | None,
        skip: int,
    ) -> None:
        number = name if isinstance(name, int) else _NUMBERS[name]
        flags = 0
        words = [0] * 6
        for place, argument in enumerate(arguments):
            if isinstance(argument, Value):
                flags |= 1 << place
                words[place] = _offset(argument)
            elif isinstance(argument, bytes):
                self.addresses.append(len(self.calls) * CALL_BYTES + 8 + 8 * place)
                words[place] = self.address(argument)
            else:
                words[place] = _signed(argument or 0)
        if wanted is None:
            flags |= _ANY_RESULT
            wanted = 0
        elif isinstance(wanted, Value):
            flags |= _WANTED_IS_VALUE
            wanted = _offset(wanted)
        errnos: tuple[int, ...] = (0, 0)
        if lenient is not None:
            flags |= _LENIENT if lenient else _LENIENT | _ANY_ERRNO
            if len(lenient) > 2:
                raise ValueError("no more than two errors can be put up with")
            errnos = (*lenient, *lenient[-1:], 0, 0)[:2]
        self.calls.append(_CALL.pack(number, flags, *words, wanted, *errnos, skip))

    def address(self, data: bytes) -> int:
        """Where ``data``, with a zero byte behind it, is, relative to the first call."""
        known = self.known.get(data)
        if known is None:
            known = self.known[data] = self.data_at + len(self.data)
            self.data += data + bytes(8 - len(data) % 8)
        return known

    def finish(self) -> Native:
        blob = b"".join((*self.calls, _END, self.data))
        return blob, struct.pack(f"={len(self.addresses)}I", *self.addresses)


def _offset(argument: Value) -> int:
    number, is_length = argument
    if not 0 <= number < MAX_VALUES:
        raise ValueError(f"there is no value {number}")
    return VALUES + 16 * number + (8 if is_length else 0)


def _signed(number: int) -> int:
    """The same 64 bits as a signed number."""
    return number - (1 << 64) if number >> 63 == 1 else number
