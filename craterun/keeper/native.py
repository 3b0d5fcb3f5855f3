"""Children that are machine code from their first instruction to execve(2).

A child of a Python process pays for the fork of its memory, and then 2 µs for each page that it
touches: a third of the price of a whole start. This one has none of that memory. The keeper has all
its mappings left out of forks (MADV_DONTFORK, madvise(2)) but for one page of code and an *arena*,
which is shared: there are the programs that the child carries out (`core.native`), and there it
says when it called execve, or which call has failed. So its page tables are nearly empty, the
keeper's own memory is not made copy-on-write, and there is next to nothing for execve to let go of.

What else was thought of. CLONE_VM with CLONE_VFORK copies nothing at all, but the OOM killer kills
everybody who shares the memory of its victim (a container with a tiny limit would take the keeper
along, and all other containers), and the keeper would stand still while a mount waits for a file
server. A helper process with little memory that does the cloning would need to be told of each
start, to be watched, and to share the keeper's descriptors.

Whatever goes wrong in such a child, it only ends: the supervisor then asks for the same once more,
carried out by `keeper.child`, which finds out what there is to say about it. All that a child does
it does to itself and to namespaces of its own, so that doing it twice is the same as once.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys

from craterun.core import flags as f
from craterun.core import native as n
from craterun.core import opcodes as op
from craterun.linux import memory

TYPE_CHECKING = False  # typing is an import that the keeper does without
if TYPE_CHECKING:
    from typing import Any

_CODE = bytes.fromhex(
    "b8b30100000f054885c07401c34989d44c8d6a2031ed498b5d004983c50831c04885db0f84ea0000"
    "008b0383f8ff74e6448b7304488b7b08488b7310488b53184c8b53204c8b43284c8b4b3041f6c63f"
    "743c41f6c6017404498b3c3c41f6c6027404498b343441f6c6047404498b141441f6c60874044f8b"
    "141441f6c61074044f8b040441f6c62074044f8b0c0c83f8fe746c0f0548ffc541f7c68000000075"
    "1f488b533841f7c6400000007404498b14144839d0750e4883c348e969ffffff4885c079f241f7c6"
    "00010000744541f7c60002000075184889c148f7d90fb753404839d174090fb753424839d175240f"
    "b74b444801cd486bc9484801cbebb8498b043c4821f04831d0748a4c89d048f7d8eb824989442418"
    "49896c2410bf7d000000b8e70000000f05f4"
)
"""native_x86_64.s, assembled."""

_SIGCHLD = 17
_SLOTS = 64
"""As many children can be on their way to execve at once; more than that have to be Python's."""
_PARTS_BYTES = 1024 * 1024
COMMON = 256
"""A child that begins with the keeper's table of descriptors gets those below this number."""
_CODES = {name: code for code, (name, _) in enumerate(op.CALLS)}


class UnavailableError(Exception):
    """This launch takes Python; its argument says for how long that is so."""


def make_native(open_files: tuple[int, int]) -> Native | None:
    """None where it is not possible: another machine, or a security module that forbids it.

    :param open_files: RLIMIT_NOFILE of the processes to be
    """
    if not n.SUPPORTED or os.environ.get(op.SWITCH) == "0":
        return None
    try:
        return Native(open_files)
    except OSError:
        return None


class Native:
    """The arena, and the children on their way.

    :raises OSError: no memory, or none that may be executed
    """

    def __init__(self, open_files: tuple[int, int]) -> None:
        memory.unregister_rseq()
        size = _PARTS_BYTES + _SLOTS * n.SLOT_BYTES
        self._base, arena = memory.shared(size)
        self._bytes = memoryview(arena).cast("B")
        self._words = self._bytes.cast("Q")
        code = memory.executable(_CODE)
        self._start = ctypes.PYFUNCTYPE(
            ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
        )(code[0])
        self._kept = ((self._base, size), code)
        self._free = [_PARTS_BYTES + slot * n.SLOT_BYTES for slot in reversed(range(_SLOTS))]
        self._open_files = open_files
        self._parts: dict[int, int] = {}
        self._end = 0
        self._launches = 0
        memory.leave_out_of_forks(self._kept)

    # --- launching ----------------------------------------------------------------------------

    def start(
        self,
        parts: Any,
        values: Any,
        streams: tuple[int, int, int],
        error: int,
        clone_flags: int,
        cgroup: int,
        table: bool = False,
        blank: int = -1,
    ) -> tuple[int, int, int]:
        """Clone a child for a program. Returns (pid, pidfd, slot); the caller frees the slot once
        the child has executed its command or has ended.

        :param parts: (number, (calls, addresses) or None if they were sent before) of each
        :param values: what the program has of its own, from ``FIRST_VALUE`` on
        :param streams: the pipes' ends for descriptors 0, 1 and 2, or -1
        :param error: write end of the error pipe
        :param cgroup: descriptor of a version 2 cgroup to be born in, or -1
        :param table: the child begins with our table of descriptors instead of a copy, takes those
            below `COMMON` along into one of its own, and writes a byte into the error pipe. Until
            then, ``streams`` and ``error``, all of them below, must stay open here.
        :param blank: descriptor of the blank mount namespace, always the same one, or -1
        :raises UnavailableError: no room, or a part is not known any more
        :raises OSError: clone3 has failed
        """
        if len(self._free) == _SLOTS and self._end > _PARTS_BYTES // 2:
            self.forget_parts()
        if not self._free or len(parts) >= n.MAX_PARTS:
            raise UnavailableError(op.NOW)
        slot = self._free.pop()
        try:
            self._fill(slot, parts, values, streams, error, table, blank)
            pid, pidfd = self._clone(slot, clone_flags | f.CLONE_FILES * table, cgroup)
        except BaseException:
            self.free(slot)
            raise
        self._launches += 1
        if self._launches & (self._launches - 1) == 0:
            # Memory that has come since: less and less often, as there is less and less of it.
            memory.leave_out_of_forks(self._kept)
        return pid, pidfd, slot

    def whole_forks(self) -> None:
        """The next children get all memory, as Python needs it, but for the arena: the init of
        ``--init`` stays what it is, and nothing inside may have a way to write there.
        """
        memory.take_into_forks(self._kept)

    def bare_forks(self) -> None:
        """The next children get nothing but the arena."""
        memory.leave_out_of_forks(self._kept)

    def free(self, slot: int) -> None:
        """Nobody reads this slot any more."""
        self._free.append(slot)

    def finish(self, slot: int) -> tuple[int, tuple[int, int, bytes] | None]:
        """The child has executed its command, or it has ended: (when it called execve, in
        nanoseconds of CLOCK_MONOTONIC, or 0; how it has failed, as `opcodes.MSG_FAILED` has it).
        """
        executing = self._word(slot, n.STAMP) * 1_000_000_000 + self._word(slot, n.STAMP + 8)
        made = self._word(slot, n.FAILED)
        errno = -self._word(slot, n.RESULT) & 0xFFFF
        self.free(slot)
        return executing, (op.NATIVE_FAILED, errno, b"%d" % made) if made else None

    def _word(self, slot: int, place: int) -> int:
        return int(self._words[(slot + place) >> 3])

    def _clone(self, slot: int, flags: int, cgroup: int) -> tuple[int, int]:
        address = self._base + slot
        flags |= f.CLONE_PIDFD
        if cgroup >= 0:
            flags |= f.CLONE_INTO_CGROUP
        place = (slot + n.CLONE_ARGS) >> 3
        self._words[place] = flags
        self._words[place + 1] = address + n.PIDFD
        self._words[place + 4] = _SIGCHLD
        self._words[place + 10] = max(cgroup, 0)
        pid = self._start(address + n.CLONE_ARGS, n.PIDFD - n.CLONE_ARGS, address)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid), "clone3")
        return pid, self._word(slot, n.PIDFD) & 0xFFFFFFFF

    # --- what the child reads -----------------------------------------------------------------

    def _fill(
        self,
        slot: int,
        parts: Any,
        values: Any,
        streams: tuple[int, int, int],
        error: int,
        table: bool,
        blank: int,
    ) -> None:
        words = self._words
        words[(slot + n.STAMP) >> 3] = words[(slot + n.STAMP + 8) >> 3] = 0
        words[(slot + n.FAILED) >> 3] = 0
        place = (slot + n.PARTS) >> 3
        words[place] = self._base + self._opening(streams, table, blank)
        for number, native in parts:
            place += 1
            found = self._parts.get(number)
            if found is None:
                if native is None:
                    raise UnavailableError(op.NOW)
                found = self._keep(number, *native)
            words[place] = self._base + found
        words[place + 1] = 0
        here = self._base + slot
        entries = [here + n.STAMP, 0, here + n.SCRATCH, 0, error, 0]
        for fd in streams:
            entries += (max(fd, 0), 0)
        self._add_values(entries, values, slot)

    def _add_values(self, entries: list[int], values: Any, slot: int) -> None:
        """Put ``values`` behind one another, and where they are into the table of values."""
        at = self._base + slot + n.DATA
        data = bytearray()
        for value in values:
            if isinstance(value, tuple):
                pointers = []
                for string in value:
                    pointers.append(at + len(data))
                    data += string
                    data.append(0)
                data += bytes(-len(data) % 8)
                entries += (at + len(data), len(value))
                for pointer in (*pointers, 0):
                    data += pointer.to_bytes(8, "little")
            else:
                entries += (at + len(data), len(value))
                data += value
                data.append(0)
        if len(data) > n.SLOT_BYTES - n.DATA or len(entries) > 2 * n.MAX_VALUES:
            raise UnavailableError(op.NOW)
        self._bytes[slot + n.DATA : slot + n.DATA + len(data)] = data
        place = (slot + n.VALUES) >> 3
        self._words[place : place + len(entries)] = memoryview(
            b"".join([word.to_bytes(8, "little") for word in entries])
        ).cast("Q")

    def _keep(self, number: int, code: bytes, addresses: bytes) -> int:
        """Put a part where all children find it. Returns where in the arena."""
        found = self._end
        if found + len(code) > _PARTS_BYTES:
            raise UnavailableError(op.NOW)
        copy = bytearray(code)
        words = memoryview(copy).cast("Q")
        for place in memoryview(addresses).cast("I"):
            words[place >> 3] += self._base + found
        self._bytes[found : found + len(code)] = copy
        self._end = found + len(code)
        self._parts[number] = found
        return found

    def forget_parts(self) -> None:
        """Whoever sends parts, begins to count them anew, or there are too many."""
        self._parts.clear()
        if len(self._free) == _SLOTS:  # nobody reads them
            self._end = 0

    def _opening(self, streams: tuple[int, int, int], table: bool, blank: int) -> int:
        """What `keeper.child.opening` does."""
        given = (blank,) if blank >= 0 else ()
        kind = -1 - (streams[0] >= 0) - 2 * table - 4 * len(given)
        if kind not in self._parts:
            soft_and_hard = b"".join(
                number.to_bytes(8, sys.byteorder, signed=True) for number in self._open_files
            )
            numbers = (0, 1, 2) if streams[0] >= 0 else (1, 2)
            connect = [_call("dup2", _stream(fd), fd, wanted=fd) for fd in numbers]
            part = [
                _call("close_range", COMMON, -1, f.CLOSE_RANGE_UNSHARE, wanted=0),
                _call("write", n.value(n.VALUE_ERROR), bytes((op.RECORD_TABLE,)), 1, wanted=1),
            ]
            opening = [
                *(part if table else ()),
                *connect,
                _call("dup3", n.value(n.VALUE_ERROR), op.ERROR_FD, os.O_CLOEXEC, wanted=3),
                *(
                    _call("dup3", fd, number, os.O_CLOEXEC, wanted=number)
                    for number, fd in enumerate(given, op.GIVEN_FD)
                ),
                _call("close_range", op.GIVEN_FD + len(given), -1, 0, wanted=0),
                _call("setrlimit", resource.RLIMIT_NOFILE, soft_and_hard, wanted=0),
                _call("umask", 0, wanted=None),
            ]
            native = n.translate(opening)
            if native is None:
                raise UnavailableError(op.NOW)
            self._keep(kind, *native)
        return self._parts[kind]


def _stream(fd: int) -> n.Value:
    return n.value(n.VALUE_STREAMS + fd)


def _call(name: str, *arguments: Any, wanted: int | None) -> Any:
    if name == "close_range":
        return (0, (436, *arguments), wanted, None)
    return (_CODES[name], arguments, wanted, None)
