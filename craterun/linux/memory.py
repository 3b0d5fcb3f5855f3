"""Memory of the keeper that its children have, too, and all other memory, which they have not."""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import c_int, c_long, c_size_t, c_uint, c_void_p

TYPE_CHECKING = False  # typing is an import that the keeper does without
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Range = tuple[int, int]
    """Address and size."""

_PAGE = 4096
_TOP = (1 << 47) - _PAGE
_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_MAP_SHARED, _MAP_PRIVATE, _MAP_ANONYMOUS = 1, 2, 0x20
_MADV_DONTFORK, _MADV_DOFORK = 10, 11
# x86-64
_NR_ARCH_PRCTL, _ARCH_GET_FS = 158, 0x1003
_NR_RSEQ, _RSEQ_FLAG_UNREGISTER, _RSEQ_SIG = 334, 1, 0x53053053

_libc = ctypes.PyDLL(None, use_errno=True)
_mmap = _libc["mmap"]
_mmap.argtypes = (c_void_p, c_size_t, c_int, c_int, c_int, c_long)
_mmap.restype = c_void_p
_mprotect = _libc["mprotect"]
_mprotect.argtypes = (c_void_p, c_size_t, c_int)
_madvise = _libc["madvise"]
_madvise.argtypes = (c_void_p, c_size_t, c_int)
_syscall = _libc["syscall"]
_syscall.argtypes = (c_long, c_long, c_void_p, c_int, c_uint)
_syscall.restype = c_long


def shared(size: int) -> tuple[int, Any]:
    """mmap(2): (address, array of bytes) of memory that all children share."""
    address = _map(size, _MAP_SHARED)
    return address, (ctypes.c_char * size).from_address(address)


def executable(code: bytes) -> Range:
    """A mapping of ``code``. EACCES, EPERM: a security module allows none (mprotect(2))."""
    size = len(code) + -len(code) % _PAGE
    address = _map(size, _MAP_PRIVATE)
    ctypes.memmove(address, code, len(code))
    if _mprotect(address, size, _PROT_READ | _PROT_EXEC) < 0:
        raise _fail("mprotect")
    return address, size


def leave_out_of_forks(kept: Sequence[Range]) -> None:
    """Children will have no memory but ``kept`` (MADV_DONTFORK)."""
    _advise(kept, _MADV_DONTFORK)
    _advise_only(kept, _MADV_DOFORK)


def take_into_forks(kept: Sequence[Range]) -> None:
    """Children will have all memory, as usual, but for ``kept``."""
    _advise(kept, _MADV_DOFORK)
    _advise_only(kept, _MADV_DONTFORK)


def _advise(kept: Sequence[Range], advice: int) -> None:
    begin = 0
    for address, size in sorted((*kept, *_special_mappings(), (_TOP, 0))):
        advised = address <= begin or _madvise(begin, address - begin, advice) == 0
        # ENOMEM: there are holes, which is why the range can be that large; all else was advised.
        if not advised and ctypes.get_errno() != errno.ENOMEM:
            raise _fail("madvise")
        begin = address + size


def _advise_only(ranges: Sequence[Range], advice: int) -> None:
    for address, size in ranges:
        if _madvise(address, size, advice) < 0:
            raise _fail("madvise")


def _special_mappings() -> list[Range]:
    """The kernel's own (vdso(7)), which refuse MADV_DOFORK. They never move."""
    if not _special:
        with open("/proc/self/maps", "rb") as file:
            for line in file:
                if line.rstrip().endswith((b"[vdso]", b"[vvar]", b"[vvar_vclock]")):
                    begin, end = (int(word, 16) for word in line.split()[0].split(b"-"))
                    _special.append((begin, end - begin))
    return _special


_special: list[Range] = []


def unregister_rseq() -> None:
    """rseq(2): the C library has registered an area that the kernel writes to whenever it moves a
    thread. A child that does not have that memory would be killed for it.

    :raises OSError: it is registered, and stays so
    """
    area = ctypes.c_long()
    offset, size = _rseq_symbol("__rseq_offset", c_long), _rseq_symbol("__rseq_size", c_uint)
    if size == 0:
        return  # an older C library, or another: it registers none
    if _syscall(_NR_ARCH_PRCTL, _ARCH_GET_FS, ctypes.addressof(area), 0, 0) < 0:
        raise _fail("arch_prctl")
    address = area.value + offset
    # What is registered has at least this size; the symbol tells how much of it is in use.
    for length in (max(size, 32), size):
        if _syscall(_NR_RSEQ, address, length, _RSEQ_FLAG_UNREGISTER, _RSEQ_SIG) == 0:
            return
    raise _fail("rseq")


def _rseq_symbol(name: str, kind: Any) -> int:
    try:
        return int(kind.in_dll(_libc, name).value)
    except ValueError:
        return 0


def _map(size: int, flags: int) -> int:
    address = _mmap(None, size, _PROT_READ | _PROT_WRITE, flags | _MAP_ANONYMOUS, -1, 0)
    if address == c_void_p(-1).value:
        raise _fail("mmap")
    return int(address)


def _fail(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), call)
