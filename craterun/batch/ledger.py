"""The file of results, as the memory of a batch: what is done, so that it is not done again.

    FILE           the results, each appended by one write(2)
    FILE.running   only while containers of the batch may run: where they are, and their secrets

A job is known by its key, or by the number of its line if it has none. The id of its container is
a hash of that, of how often it was tried, and of the batch's secret. So a batch that goes on for
one that was killed knows which container every job would have, without a list that would have to be
kept before each start: if there is such a container, the job was begun. Making its folder is the
claim, which is atomic.

Each batch has a secret of its own. When it ends, in whatever order, there is no container of it
left, and its secret goes. Those of batches that were killed go when one has been to the end of the
input after them: until then, there may be containers of lines that it has not come to. flock(2) on
FILE keeps two batches from sharing it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum, auto

import msgspec

from craterun.batch.results import Failure
from craterun.core.errors import CraterunError, StateError, UsageError, printable
from craterun.core.units import is_id
from craterun.linux.fd import Fd

_READ_BYTES = 1024 * 1024
_BEGINNING = b'{"line":'
"""Of every result (`batch.results.Result`)."""
_MAX_LINES = 1 << 32


class Known(Enum):
    """What the ledger has of a job."""

    NEW = auto()
    SUCCEEDED = auto()
    FAILED = auto()
    TAKEN = auto()
    """The key is that of an earlier line of this input."""


class _Running(msgspec.Struct, frozen=True):
    """Contents of FILE.running.

    :ivar attempts: containers that a job can have got at most
    :ivar killed: secrets of earlier batches that were killed, the latest first
    """

    root: str
    secret: str
    attempts: int
    killed: tuple[str, ...] = ()


class _Past(msgspec.Struct, frozen=True):
    """What is of interest of a result that was written earlier."""

    line: int
    key: str | None
    failure: Failure | None
    container: str | None
    kept: bool


class Ledger:
    """An open file of results.

    For each job with a key it remembers 16 bytes, which Python makes about a hundred of; for one
    without a key, one byte.

    :ivar crashed: whether a batch was killed while it wrote here, so that containers of it may run
    """

    def __init__(
        self, path: str, root: str, *, resume: bool, rerun_failed: bool, attempts: int
    ) -> None:
        """:param root: the state directory, which must be the same when a killed batch goes on
        :param resume: whether results of an earlier batch are expected; otherwise they are refused
        :param rerun_failed: whether jobs that have failed count as not done
        :param attempts: containers that each job may get
        :raises UsageError: there is something in the file that must not be lost, or another batch
            writes to it
        :raises StateError: it is no file of results
        :raises OSError: it cannot be opened
        """
        self._path = path
        self._rerun_failed = rerun_failed
        self._succeeded: set[bytes] = set()
        self._failed: set[bytes] = set()
        self._again: dict[bytes, int] = {}
        self._taken: set[bytes] = set()
        self._lines = bytearray()
        self._invalid: dict[bytes, int] = {}
        self._kept: dict[bytes, bytes] = {}  # only of jobs that are to be run again
        created = self._open()
        try:
            self._lock(resume)
        except BaseException:
            self._file.close()
            raise
        try:
            # Whoever comes by a symbolic link to FILE must find it, too.
            self._running_path = f"{os.path.realpath(path)}.running"
            running = self._read_running()
            self.crashed = running is not None
            self._removed: list[str] = []
            if resume:
                self._load()
            if running is not None and not resume:
                raise UsageError(
                    f"{self._shown} belongs to a batch that was killed; go on with it by --resume, "
                    f"or remove {printable(self._running_path)} to forget it"
                )
            if running is not None and running.root != root:
                raise UsageError(
                    f"the batch that wrote {self._shown} was killed, and its containers are in "
                    f"{printable(running.root)}; go on with it by --root {printable(running.root)}"
                )
            killed = (running.secret, *running.killed) if running is not None else ()
            most = max(attempts, running.attempts) if running is not None else attempts
            self._running = _Running(root, os.urandom(16).hex(), most, killed)
            self._write_running(self._running)
        except BaseException:
            if created:  # while it is locked: no other batch has begun to use it
                with suppress(OSError):
                    os.unlink(path)
            self._file.close()
            raise

    @property
    def _shown(self) -> str:
        return printable(self._path)

    def _open(self) -> bool:
        """Returns whether it was not there before."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            self._file = Fd(os.open(self._path, flags | os.O_EXCL, 0o644))
        except FileExistsError:
            self._file = Fd(os.open(self._path, flags, 0o644))
            return False
        return True

    def _lock(self, resume: bool) -> None:
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(
                f"--output {self._shown} is not a regular file; for a pipe or device, leave "
                "--output away and redirect stdout"
            )
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another batch is writing to {self._shown}") from None
        if status.st_size and not resume:
            raise UsageError(
                f"--output {self._shown} is not empty; go on where it ends by --resume, or give "
                "another file"
            )

    # --- what was done before ---------------------------------------------------------------------

    def _load(self) -> None:
        decoder = msgspec.json.Decoder(_Past)
        for number, line in self._whole_lines():
            try:
                past = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise StateError(
                    f"{self._shown}, line {number}, is no result of a batch: "
                    f"{printable(str(error))}"
                ) from None
            if not 0 < past.line < _MAX_LINES:
                raise StateError(f"{self._shown}, line {number}: there is no line {past.line}")
            self._note(past)

    def _whole_lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines; a last one that was not finished is cut off.

        :raises StateError: it was no result, and must not be lost
        """
        fd, offset, rest, number = self._file.fileno(), 0, b"", 0
        while data := os.pread(fd, _READ_BYTES, offset):
            offset += len(data)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                number += 1
                yield number, line
        if rest[: len(_BEGINNING)] != _BEGINNING[: len(rest)]:
            raise StateError(f"{self._shown}, line {number + 1}, is no result of a batch")
        if rest.endswith(b"}") and _is_whole(rest):
            os.write(fd, b"\n")  # somebody has taken away just its end
            yield number + 1, rest
        elif rest:
            os.ftruncate(fd, offset - len(rest))

    def _note(self, past: _Past) -> None:
        name = _name(past.key, past.line)
        if past.failure is Failure.INVALID:
            self._invalid[name] = self._invalid.get(name, 0) + 1
            return
        if past.container is not None and not past.kept and self.crashed:
            self._removed.append(past.container)
        cancelled = past.failure is Failure.CANCELLED
        if cancelled or (past.failure is not None and (self._rerun_failed or self.crashed)):
            self._again[name] = self._again.get(name, 0) + 1
        if cancelled or (past.failure is not None and self._rerun_failed):
            if past.kept and past.container is not None and is_id(past.container):
                self._kept[name] = bytes.fromhex(past.container)
            return
        self._kept.pop(name, None)  # done since
        if past.key is None:
            self._lines += bytes(max(0, past.line + 1 - len(self._lines)))
            self._lines[past.line] = 1 if past.failure is None else 2
        else:
            (self._succeeded if past.failure is None else self._failed).add(name)

    def take_removed(self) -> list[str]:
        """Containers that were to be removed after their results, and may not have been."""
        removed, self._removed = self._removed, []
        return removed

    def look_up(self, key: str | None, line: int) -> Known:
        """What is known of a job. Each is looked up once; the second time, its key is taken."""
        if key is None:
            mark = self._lines[line] if line < len(self._lines) else 0
            return (Known.NEW, Known.SUCCEEDED, Known.FAILED)[mark]
        name = _name(key, line)
        if name in self._taken:
            return Known.TAKEN
        self._taken.add(name)
        if name in self._succeeded:
            self._succeeded.remove(name)
            return Known.SUCCEEDED
        if name in self._failed:
            self._failed.remove(name)
            return Known.FAILED
        return Known.NEW

    def take_kept(self, key: str | None, line: int) -> str | None:
        """The container of an earlier result of a job that is to be run again, if it was kept."""
        kept = self._kept.pop(_name(key, line), None)
        return None if kept is None else kept.hex()

    def is_known_as_invalid(self, key: str | None, line: int) -> bool:
        """Whether there is a result that says so of this line. Each line is looked up once: more
        than one may have the same key.
        """
        name = _name(key, line)
        count = self._invalid.get(name, 0)
        if count > 1:
            self._invalid[name] = count - 1
        else:
            self._invalid.pop(name, None)
        return count > 0

    def container_id(self, key: str | None, line: int, attempt: int) -> str:
        """The id of the container that a job's attempt has in this batch."""
        return self._id(self._running.secret, _name(key, line), attempt)

    def killed_ids(self, key: str | None, line: int) -> Iterator[tuple[int, str]]:
        """The number and the id of every container that a job without a result may have got in
        batches that were killed, the latest first.
        """
        name = _name(key, line)
        for secret in self._running.killed:
            for attempt in range(self._running.attempts, 0, -1):
                yield attempt, self._id(secret, name, attempt)

    def _id(self, secret: str, name: bytes, attempt: int) -> str:
        text = f"{secret} {self._again.get(name, 0)} {attempt} "
        return hashlib.blake2b(text.encode() + name, digest_size=8).hexdigest()

    # --- writing ----------------------------------------------------------------------------------

    def append(self, line: bytes) -> None:
        """Write one result.

        :raises OSError: it could not be written; what there is of it is taken back
        """
        fd = self._file.fileno()
        size = os.fstat(fd).st_size
        try:
            if os.write(fd, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        except OSError:
            with suppress(OSError):
                os.ftruncate(fd, size)
            raise

    def _read_running(self) -> _Running | None:
        try:
            with open(self._running_path, "rb") as file:
                return msgspec.json.decode(file.read(), type=_Running)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise StateError(
                f"{printable(self._running_path)} is damaged ({printable(str(error))}); remove it: "
                "then jobs that an earlier batch has begun are run again"
            ) from None

    def _write_running(self, running: _Running) -> None:
        temporary = f"{self._running_path}.new"
        try:
            with open(temporary, "wb") as file:
                file.write(msgspec.json.encode(running) + b"\n")
            os.rename(temporary, self._running_path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary)
            raise CraterunError(
                f"{printable(self._running_path)}: {os.strerror(error.errno or 0)}"
            ) from error

    def forget_killed(self) -> None:
        """Of batches that were killed, no container is left that has not been seen through."""
        self._running = msgspec.structs.replace(self._running, killed=())

    def close(self) -> None:
        """Write no more; no container of this batch is left."""
        if self._running.killed:
            secret, *killed = self._running.killed
            with suppress(CraterunError):  # the next one has a secret more to try, then
                self._write_running(
                    msgspec.structs.replace(self._running, secret=secret, killed=tuple(killed))
                )
        else:
            with suppress(FileNotFoundError):
                os.unlink(self._running_path)
        self._file.close()


def _is_whole(result: bytes) -> bool:
    try:
        msgspec.json.decode(result)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _name(key: str | None, line: int) -> bytes:
    text = f"line {line}" if key is None else f"key {key}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
