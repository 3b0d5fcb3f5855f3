"""The server's socket: made here, with a lock beside it, or handed over by systemd."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from contextlib import suppress

from craterun.core.errors import CraterunError, UsageError
from craterun.linux.fd import Fd

_BACKLOG = 4096
_FIRST_PASSED_FD = 3
Identity = tuple[int, int]
"""Of a file: device and inode."""


class Listener:
    """A listening unix socket that nobody but its user can open.

    :ivar socket: non-blocking
    :ivar is_passed: it is somebody else's, who goes on listening
    """

    def __init__(
        self, sock: socket.socket, path: str, lock: Fd, identity: Identity | None = None
    ) -> None:
        """Takes ownership.

        :param lock: closed if the socket file is not ours to remove
        :param identity: of that file
        """
        self.socket = sock
        self.path = path
        self._lock = lock
        self._identity = identity
        self.is_passed = identity is None

    def close(self) -> None:
        """Close it, and remove the file that `listen` has made, so that clients do not even ask.
        What somebody has put in its place is left to them. Nothing happens the second time.
        """
        # Before it is closed: until then, no other file has its inode.
        identity, self._identity = self._identity, None
        if identity is not None:
            _remove(self.path, identity)
        self.socket.close()

    def release(self) -> None:
        """Remove the lock: the server has done all that it does at its end (`wait_for_end`)."""
        if not self._lock.closed:
            _remove(f"{self.path}.lock", _identity(os.fstat(self._lock.fileno())))
            self._lock.close()


def listen(path: str) -> Listener:
    """Make a socket at ``path``, mode 0600; one that a dead server left there is replaced.

    :raises CraterunError: another server has it, or it cannot be made
    """
    folder, name = os.path.split(path)
    try:
        os.makedirs(folder, 0o711, exist_ok=True)
        lock = _lock(path)
    except OSError as error:
        number = errno.ENOTDIR if isinstance(error, FileExistsError) else error.errno or 0
        raise CraterunError(f"no server at {path}: {os.strerror(number)}") from error
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    where = Fd(-1)
    try:
        where = Fd(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        if os.path.lexists(path):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise UsageError(f"{path} exists and is not a socket: give another --socket")
            os.unlink(path)
        before = os.umask(0o177)
        try:
            sock.bind(f"/proc/self/fd/{where.fileno()}/{name}")
            identity = _identity(os.stat(name, dir_fd=where.fileno(), follow_symlinks=False))
        finally:
            os.umask(before)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException as error:
        sock.close()
        _remove(f"{path}.lock", _identity(os.fstat(lock.fileno())))
        lock.close()
        if isinstance(error, OSError):
            raise CraterunError(f"no server at {path}: {os.strerror(error.errno or 0)}") from error
        raise
    finally:
        where.close()
    return Listener(sock, path, lock, identity)


def _lock(path: str) -> Fd:
    """The lock beside the socket: whoever holds it may replace the socket.

    :raises CraterunError: a server that lives has it
    """
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = Fd(os.open(f"{path}.lock", flags, 0o600))
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(f"{path}.lock", _identity(os.fstat(lock.fileno()))):
                return lock
        except BlockingIOError:
            lock.close()
            raise CraterunError(
                f"there is a server at {path} already; end it with craterun shutdown"
            ) from None
        except BaseException:
            lock.close()
            raise
        lock.close()  # of a server that has just ended, and has removed it


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def wait_for_end(path: str) -> bool:
    """Wait for a server that lets no one in any more, since it is ending.

    Returns whether it has removed its lock at its end; otherwise it was killed before.

    :raises CraterunError: there is none
    """
    try:
        lock = Fd(os.open(f"{path}.lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
    except OSError:
        raise CraterunError(f"there is no server at {path}") from None
    try:
        fcntl.flock(lock.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        raise CraterunError(f"there is no server at {path}")  # a dead one has left that
    except BlockingIOError:
        fcntl.flock(lock.fileno(), fcntl.LOCK_SH)
        return not _is_at(f"{path}.lock", _identity(os.fstat(lock.fileno())))
    finally:
        lock.close()


def _is_at(path: str, identity: Identity | None) -> bool:
    try:
        return _identity(os.lstat(path)) == identity
    except FileNotFoundError:
        return False


def _remove(path: str, identity: Identity | None) -> None:
    """Remove a file, if it is still that one. No error keeps a server from its end."""
    with suppress(OSError):
        if _is_at(path, identity):
            os.unlink(path)


def take_passed() -> Listener | None:
    """The socket that systemd listens at for us (sd_listen_fds(3)), if there is one.

    :raises UsageError: it is not one listening unix stream socket
    """
    if os.environ.pop("LISTEN_PID", None) != str(os.getpid()):
        return None
    count = os.environ.pop("LISTEN_FDS", "0")
    os.environ.pop("LISTEN_FDNAMES", None)
    if count in ("", "0"):
        return None
    if count != "1":
        raise UsageError(f"LISTEN_FDS is {count}: the server listens at one socket")
    try:
        sock = socket.socket(fileno=_FIRST_PASSED_FD)
    except OSError as error:
        raise UsageError(
            f"LISTEN_FDS is 1, but descriptor {_FIRST_PASSED_FD} is no socket: "
            f"{os.strerror(error.errno or 0)}"
        ) from None
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.close()
        raise UsageError("the socket that was passed is not a unix stream socket")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise UsageError("the socket that was passed does not listen")
    sock.set_inheritable(False)
    sock.setblocking(False)
    return Listener(sock, _shown(sock.getsockname()), Fd(-1))


def _shown(address: str | bytes) -> str:
    """An abstract one as systemd writes it (unix(7))."""
    return "@" + os.fsdecode(address[1:]) if isinstance(address, bytes) else address


def notify(state: str) -> None:
    """Tell systemd, if it wants to be told (sd_notify(3)): READY=1, STOPPING=1."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        try:
            sock.sendto(state.encode(), address)
        except OSError:
            return  # no reason not to serve
