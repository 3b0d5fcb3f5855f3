"""Start a keeper from any process, whatever threads or event loops that has.

The keeper is executed afresh, not forked: a fork would copy the caller's memory (and pay for its
page tables at every clone), and is unsafe where there are threads. It starts in the time that the
caller spends on importing trio.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from typing import NamedTuple

from craterun.core import flags as f
from craterun.core import opcodes as op
from craterun.core.errors import KernelRefusedError, UnsupportedHostError
from craterun.linux import calls

_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _bootstrap(module: str) -> list[str]:
    """Interpreter arguments that run ``module``'s main, isolated from the user's environment.

    -I and -S leave out site-packages, start-up files and the current directory: less to import,
    and nothing that a container's user could have planted.
    """
    code = (
        f"import sys; sys.path.append({_PACKAGE_PARENT!r}); "
        f"from {module} import main; main(int(sys.argv[-1]), sys.argv[1:-1])"
    )
    return ["-I", "-S", "-c", code]


def takeover_command() -> list[str]:
    """Command that starts another supervisor for a keeper that lost its own.

    It imports trio and msgspec, so it gets this process's whole import path.
    """
    code = (
        f"import sys; sys.path[:] = {[p for p in sys.path if p]!r}; "
        "from craterun.supervisor.takeover import main; "
        f"main(int(sys.argv[-1]), {op.PROTOCOL})"
    )
    return [sys.executable, "-I", "-S", "-c", code]


class SpawnedKeeper(NamedTuple):
    """A keeper that has just been started: its process and the socket to it, both owned."""

    process: subprocess.Popen[bytes]
    socket: socket.socket

    def close(self) -> None:
        """End a keeper that was never used."""
        self.socket.close()
        self.process.wait()


def spawn_keeper() -> SpawnedKeeper:
    """Start a keeper. The caller owns both its process and the socket to it (see `wire`).

    Closing the socket ends the keeper, after it has found a successor for the containers that
    outlive their supervisor.

    :raises KernelRefusedError: there are too many open files or processes; the message says which
        limit that is
    """
    try:
        return _spawn()
    except OSError:
        from craterun.linux.shortage import explained  # which those who succeed need not wait for

        with explained("start the keeper"):
            raise


def _spawn() -> SpawnedKeeper:
    interpreter = _readonly_interpreter()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        executable = f"/proc/self/fd/{interpreter}" if interpreter >= 0 else sys.executable
        inherited = [theirs.fileno(), *([interpreter] if interpreter >= 0 else [])]
        process = subprocess.Popen(
            [
                sys.executable,
                *_bootstrap("craterun.keeper.main"),
                *takeover_command(),
                str(theirs.fileno()),
            ],
            executable=executable,
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # From the first instant on, what a terminal sends is not for the keeper.
            start_new_session=True,
            # Resolve every symbol now, once, and not in each child at its first use.
            env={**os.environ, "LD_BIND_NOW": "1"},
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        if interpreter >= 0:
            os.close(interpreter)
    return SpawnedKeeper(process, ours)


def _readonly_interpreter() -> int:
    """A descriptor of the interpreter on a read-only mount that is attached nowhere, or -1.

    Until its execve, a container's first process runs the interpreter, and /proc/self/exe leads to
    that file whatever the mount namespace: as the interpreter of a script it could be re-executed
    and then overwritten (CVE-2019-5736). Through this mount it cannot be opened for writing.
    Without CAP_SYS_ADMIN, in a user namespace yet to come, there is nothing to protect: the file
    belongs to a user that root in there is not.
    """
    try:
        tree = calls.open_tree(f.AT_FDCWD, os.fsencode(sys.executable), f.OPEN_TREE_CLONE)
    except OSError:
        return -1
    try:
        calls.mount_setattr(tree, 0, f.MOUNT_ATTR_RDONLY)
    except OSError as error:
        os.close(tree)
        if error.errno == errno.ENOSYS:
            raise UnsupportedHostError(
                "this kernel has no mount_setattr; craterun needs Linux 5.12 or newer"
            ) from error
        raise KernelRefusedError(
            "protect the interpreter from containers", "mount_setattr", sys.executable,
            error.errno or 0,
        ) from error  # fmt: skip
    return tree
