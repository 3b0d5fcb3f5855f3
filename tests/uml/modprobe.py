"""The guest kernel's ``modprobe``, called as ``modprobe.py -q -- ALIAS``.

Debian's ``linux.uml`` has overlayfs, veth, loop, IPv6 and more as modules, in a
directory of its own, and the machine need not have ``kmod`` at all (a container
host often has not). So the guest's init names this file in
``/proc/sys/kernel/modprobe``, and the kernel loads what it needs when it needs it,
as on any machine. It is standalone: it runs as ``python -I -S``.
"""

from __future__ import annotations

import ctypes
import errno
import fnmatch
import os
import sys

#: Where modules lie; the last is that of Debian's user-mode-linux.
_ROOTS = ("/lib/modules", "/usr/lib/modules", "/usr/lib/uml/modules")


def module_name(path: str) -> str:
    """Return the name of the module in file ``path``, with ``_`` for ``-``."""
    return os.path.basename(path).split(".ko", 1)[0].replace("-", "_")


def dependencies(modules_dep: str) -> dict[str, list[str]]:
    """Return, for each module, the files to load, itself last."""
    found: dict[str, list[str]] = {}
    for line in modules_dep.splitlines():
        path, _, needed = line.partition(":")
        # modules.dep lists what a module needs last first.
        found[module_name(path)] = [*reversed(needed.split()), path]
    return found


def resolve(wanted: str, modules_alias: str) -> list[str]:
    """Return the names of the modules that ``wanted`` (a name or alias) means."""
    names = []
    for line in modules_alias.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[0] == "alias" and fnmatch.fnmatchcase(wanted, fields[1]):
            names.append(fields[2].replace("-", "_"))
    return names or [wanted.replace("-", "_")]


def _load(path: str) -> None:
    """Load one module file; one that is loaded already is no error."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # glibc has no finit_module(); 313 is its number on x86-64, the only
        # machine that UML has besides 32-bit x86.
        if libc.syscall(313, fd, b"", 0) != 0:
            code = ctypes.get_errno()
            if code != errno.EEXIST:
                raise OSError(code, os.strerror(code), path)
    finally:
        os.close(fd)


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def main(arguments: list[str]) -> int:
    """Load the modules that the last argument means; 1 when there is none."""
    wanted = arguments[-1]
    for root in _ROOTS:
        base = os.path.join(root, os.uname().release)
        if not os.path.exists(os.path.join(base, "modules.dep")):
            continue
        files = dependencies(_read(os.path.join(base, "modules.dep")))
        names = resolve(wanted, _read(os.path.join(base, "modules.alias")))
        known = [name for name in names if name in files]
        for name in known:
            for path in files[name]:
                _load(os.path.join(base, path))
        if known:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
