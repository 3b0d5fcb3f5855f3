"""One line of a batch's input: a request for a container, and what only a batch needs to know."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress

import msgspec
import trio
from msgspec import UNSET, UnsetType

from craterun.core.errors import UsageError, printable
from craterun.core.request import Request, with_defaults
from craterun.core.spec import Spec
from craterun.core.units import parse_env_file
from craterun.linux.fd import Fd
from craterun.supervisor.threads import in_thread

_READ_BYTES = 64 * 1024
_MAX_ENV_FILE_BYTES = 8 * 1024 * 1024
"""More than execve(2) takes."""


class Job(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A container to be run, as a line of JSON asks for it.

    :ivar key: the user's own name for it, which its result has, too
    :ivar stdin: what it reads from its standard input; without this and ``stdin_file``: nothing
    :ivar stdin_file: the same, from a file on the host
    """

    key: str | UnsetType | None = UNSET
    stdin: str | UnsetType | None = UNSET
    stdin_file: str | UnsetType | None = UNSET

    @property
    def has_input(self) -> bool:
        """Whether it is to get an input pipe."""
        return bool(self.stdin or self.stdin_file)

    def to_spec(self) -> Spec:
        """What it means, checked.

        :raises UsageError: a value is malformed, or two contradict each other
        """
        if not self.command:
            raise UsageError("there is no command: give one in the line, or for all after --")
        if self.stdin and self.stdin_file:
            raise UsageError("stdin and stdin_file exclude each other")
        return self.spec(interactive=self.has_input)


class _Key(msgspec.Struct):
    key: str | None = None


_ESCAPES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
    rb"|\\."
)
_decoder = msgspec.json.Decoder(Job)
_key_decoder = msgspec.json.Decoder(_Key)


def parse_job(line: bytes, defaults: Job) -> Job:
    """The job that a line asks for, and where it says nothing, ``defaults`` do.

    :raises UsageError: it is not JSON, or has fields or types of fields that no job has
    """
    try:
        return with_defaults(_decoder.decode(line), defaults)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        raise UsageError(f"this is no job: {printable(str(error))}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = _half_character(line) or printable(str(error))
        raise UsageError(f"this is not JSON: {why}") from None


def _half_character(line: bytes) -> str:
    """What is wrong with a line in which half of a surrogate pair is escaped; or "". Of some of
    them, the decoder says that the line was cut short.
    """
    for match in _ESCAPES.finditer(line):
        if half := match["half"]:
            return f"{half.decode()} is half of a surrogate pair, and no character"
    return ""


def key_of(line: bytes) -> str | None:
    """The key in a line that is no job for another reason; None if there is none to be found."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _key_decoder.decode(line).key
    return None


def read_env_files(job: Job) -> dict[str, str]:
    """The variables in the files that are a job's ``env_file``. Blocks as regular files do.

    :raises UsageError: a file cannot be read, is too large or malformed
    """
    paths = [job.env_file] if isinstance(job.env_file, str) else job.env_file or []
    env: dict[str, str] = {}
    for path in paths:
        file = _open_regular("env_file", path)
        try:
            content = os.pread(file.fileno(), _MAX_ENV_FILE_BYTES + 1, 0)
        except OSError as error:
            raise UsageError(f"env_file {printable(path)}: {_why(error)}") from None
        finally:
            file.close()
        if len(content) > _MAX_ENV_FILE_BYTES:
            raise UsageError(f"env_file {printable(path)} is larger than any environment")
        env.update(parse_env_file(content.decode("utf-8", "surrogateescape"), path))
    return env


def open_input(job: Job) -> Fd | None:
    """``stdin_file``, opened, which the caller owns; None if there is none.

    :raises UsageError: it cannot be opened, or is no regular file
    """
    return _open_regular("stdin_file", str(job.stdin_file)) if job.stdin_file else None


def _open_regular(field: str, path: str) -> Fd:
    """Nothing else: the end of a pipe might never come, and neither might its beginning."""
    name = printable(path)
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        file = Fd(os.open(path, flags))
    except (OSError, ValueError) as error:
        raise UsageError(f"{field} {name}: {_why(error)}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UsageError(f"{field} {name} is not a regular file")
    return file


async def feed(target: Fd, text: str, file: Fd | None) -> None:
    """Write a job's input to its pipe, at the pace of its reader, and close that. Takes ``target``.

    A container that reads no more, or has ended, is the end of it.
    """
    async with trio.lowlevel.FdStream(target.take()) as stream:
        try:
            if file is None:
                await stream.send_all(text.encode("utf-8", "surrogatepass"))
                return
            while data := await in_thread(os.read, file.fileno(), _READ_BYTES):
                await stream.send_all(data)
        except trio.BrokenResourceError:
            return


def _why(error: OSError | ValueError) -> str:
    code = error.errno if isinstance(error, OSError) else None
    return os.strerror(code) if code else printable(str(error))
