"""What became of a job: one line of JSON."""

from __future__ import annotations

import base64
import os
from enum import StrEnum

import msgspec
from msgspec import UNSET, UnsetType

from craterun.batch.running import Started
from craterun.core.errors import (
    CommandNotExecutableError,
    CommandNotFoundError,
    CraterunError,
    LimitError,
    NameInUseError,
    NeedsRootError,
    RootfsError,
    UnsupportedHostError,
    UsageError,
    printable,
)
from craterun.core.life import Instant, Record
from craterun.core.phases import Phases
from craterun.state.loghead import Head
from craterun.state.logs import FILES, Stream

_REFUSALS = (
    UsageError, RootfsError, CommandNotFoundError, CommandNotExecutableError, LimitError,
    NameInUseError, NeedsRootError, UnsupportedHostError,
)  # fmt: skip
"""What would be no different if it was tried again."""


class Failure(StrEnum):
    """Why a job has not succeeded.

    INVALID: the line is no job. REFUSED: no container could be started as it was asked for. ERROR:
    the host has failed, not the job. OOM, TIMEOUT: it ran into a limit. EXIT: its command exited
    with another code than 0, or was killed. CANCELLED: it was ended with the batch; going on with
    that runs it again.
    """

    INVALID = "invalid"
    REFUSED = "refused"
    ERROR = "error"
    OOM = "oom"
    TIMEOUT = "timeout"
    EXIT = "exit"
    CANCELLED = "cancelled"


RETRIED = frozenset({Failure.OOM, Failure.TIMEOUT, Failure.EXIT})
"""What ``retries`` are for, unless something else is said."""


class Attempt(msgspec.Struct, frozen=True):
    """An attempt that another one followed."""

    container: str | None
    failure: Failure
    exit_code: int | None
    error: str | None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the output. Every field is always there, but for the last six.

    :ivar line: of the input, counted from 1
    :ivar key: what the input gave it as key
    :ivar ok: its command has exited with 0 and no ``timeout`` ended it
    :ivar error: in words, if something else than the command has failed
    :ivar kept: whether the container is still there, with its log
    :ivar exit_code: 128 + N if signal N killed it; None: nothing was executed, or nobody saw it
    :ivar wall_seconds: from its call of execve(2) to its end
    :ivar attempts: how often it was tried; all else is that of the last time
    :ivar earlier: the others, but for those of a batch that was killed
    :ivar adopted: it outlived the batch that had started it, and this one only saw its end
    :ivar stdout_bytes: what it has written; None: not known
    :ivar stdout_log: its log, if there is one
    :ivar stdout: the beginning of its output, if that is valid UTF-8; it is not cut in the middle
        of a character
    :ivar stdout_base64: the beginning of its output, if that is not
    :ivar stdout_truncated: whether there was more of it
    """

    line: int
    key: str | None
    ok: bool
    failure: Failure | None
    error: str | None
    container: str | None
    kept: bool
    exit_code: int | None
    signal: int | None
    timed_out: bool
    oom_kills: int | None
    init_oom_killed: bool | None
    started: Instant | None
    finished: Instant | None
    wall_seconds: float | None
    cpu_seconds: float | None
    memory_peak_bytes: int | None
    attempts: int
    earlier: tuple[Attempt, ...]
    adopted: bool
    stdout_bytes: int | None
    stderr_bytes: int | None
    stdout_log: str | None
    stderr_log: str | None
    phases_us: Phases | None
    stdout: str | UnsetType = UNSET
    stdout_base64: str | UnsetType = UNSET
    stdout_truncated: bool | UnsetType = UNSET
    stderr: str | UnsetType = UNSET
    stderr_base64: str | UnsetType = UNSET
    stderr_truncated: bool | UnsetType = UNSET


_encoder = msgspec.json.Encoder()


def encode_result(result: Result) -> bytes:
    """The line, with its end."""
    return _encoder.encode(result) + b"\n"


class Outcome(msgspec.Struct, kw_only=True):
    """How one attempt went.

    :ivar record: the container's final record, if there was a container
    :ivar own: that container, unless an earlier batch had started it
    """

    failure: Failure | None
    error: str | None = None
    container: str | None = None
    record: Record | None = None
    head: Head | None = None
    own: Started | None = None
    adopted: bool = False

    def as_attempt(self) -> Attempt:
        """For the result of a later one."""
        assert self.failure is not None
        code = self.record.exit_code if self.record is not None else None
        return Attempt(self.container, self.failure, code, self.error)


def judge(record: Record) -> Failure | None:
    """Why a container that has ended was no success; None if it was one."""
    if record.exit_code is None:
        return Failure.ERROR
    if record.timed_out:
        return Failure.TIMEOUT
    if record.exit_code == 0:
        return None
    return Failure.OOM if record.oom_kills or record.init_oom_killed else Failure.EXIT


def judge_error(error: CraterunError | OSError) -> Outcome:
    """What it means that a container did not start."""
    failure = Failure.REFUSED if isinstance(error, _REFUSALS) else Failure.ERROR
    return Outcome(failure=failure, error=printable(str(error)))


def make_result(
    line: int,
    key: str | None,
    outcome: Outcome,
    attempts: int,
    earlier: tuple[Attempt, ...] = (),
    *,
    folder: str | None = None,
    capture: bool = False,
) -> Result:
    """The result of a job, of which this was the last attempt.

    :param attempts: the number of that; 0: the line is no job
    :param earlier: those before it that are known
    :param folder: the container's, if it is kept
    :param capture: whether the beginning of the output belongs to it
    """
    record, head = outcome.record, outcome.head
    has_log = folder is not None and record is not None and record.log.driver != "none"
    logs = {stream: f"{_as_text(folder or '')}/{FILES[stream]}" for stream in Stream}
    return Result(
        line=line,
        key=key,
        ok=outcome.failure is None,
        failure=outcome.failure,
        error=outcome.error,
        container=outcome.container,
        kept=folder is not None,
        exit_code=record.exit_code if record else None,
        signal=record.signal if record else None,
        timed_out=record.timed_out if record else False,
        oom_kills=record.oom_kills if record else 0,
        init_oom_killed=record.init_oom_killed if record else False,
        started=record.started if record else None,
        finished=record.finished if record else None,
        wall_seconds=_wall_seconds(record) if record else None,
        cpu_seconds=record.cpu_seconds if record else None,
        memory_peak_bytes=record.memory_peak_bytes if record else None,
        attempts=attempts,
        earlier=earlier,
        adopted=outcome.adopted,
        stdout_bytes=head.totals[Stream.STDOUT] if head else None,
        stderr_bytes=head.totals[Stream.STDERR] if head else None,
        stdout_log=logs[Stream.STDOUT] if has_log else None,
        stderr_log=logs[Stream.STDERR] if has_log else None,
        phases_us=record.phases_us if record else None,
        **(captured(head) if capture and head else {}),  # type: ignore[arg-type]
    )


def captured(head: Head) -> dict[str, str | bool]:
    """The fields with the beginning of the output."""
    fields: dict[str, str | bool] = {}
    for stream in Stream:
        name = stream.name.lower()
        kept, total = bytes(head.kept[stream]), head.totals[stream]
        whole = kept if len(kept) == total else _without_torn_character(kept)
        try:
            fields[name] = whole.decode("utf-8")
        except UnicodeDecodeError:
            fields[f"{name}_base64"] = base64.b64encode(kept).decode("ascii")
        fields[f"{name}_truncated"] = len(kept) < total
    return fields


def _without_torn_character(data: bytes) -> bytes:
    """``data`` without the beginning of a UTF-8 character whose rest was cut off."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] if length > back else data
        if byte < 0x80:
            break
    return data


def _wall_seconds(record: Record) -> float | None:
    """By the monotonic clock, if the same supervisor has seen the start and the end."""
    phases = record.phases_us
    if phases is not None and phases.exec is not None and phases.run is not None:
        # A command can end before it is known to have begun: ``run`` is 0 then.
        return (phases.exec + phases.run) / 1e6
    if record.started is None or record.finished is None:
        return None
    return (record.finished - record.started).total_seconds()


def _as_text(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
