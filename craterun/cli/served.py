"""run and exec in a worker of a server: what they start is the server's, not this process's."""

from __future__ import annotations

import os
from typing import NoReturn

import msgspec

from craterun.core.errors import CraterunError
from craterun.core.execspec import ExecSpec
from craterun.core.spec import Spec
from craterun.serve import desk, specs
from craterun.serve.frames import MAX_REQUEST_BYTES


class RunRequest(msgspec.Struct, forbid_unknown_fields=True, tag="run"):
    """A container that the server is to start.

    :ivar attach: copy its output to the client
    :ivar quiet: say nothing of processes killed for want of memory
    :ivar cidfile: absolute path of an empty file for the id
    """

    spec: Spec
    attach: bool = False
    quiet: bool = False
    cidfile: str | None = None


class ExecRequest(msgspec.Struct, forbid_unknown_fields=True, tag="exec"):
    """A command that the server is to start in a running container.

    :ivar container: id, prefix or name
    """

    container: str
    spec: ExecSpec


Request = RunRequest | ExecRequest


class _AnsweredError(CraterunError):
    """What went wrong in the server, with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def encode(request: Request) -> bytes:
    """For the server.

    :raises DeclinedError: it is larger than what the server takes; the client may even be told by
        the kernel that it is too large for a command line
    """
    encoded = specs.encode(request)
    if len(encoded) > MAX_REQUEST_BYTES:
        raise desk.DeclinedError
    return encoded


def decode(data: bytes) -> Request:
    """What `encode` has encoded."""
    request: Request = specs.decode(data, Request)  # type: ignore[arg-type]  # a union
    return request


def start_detached(spec: Spec, root: str) -> str:
    """`background.start_detached` of the server. Its root is ours: it has made sure of that.

    :raises CraterunError: whatever starting raised there, with the same text and exit code
    """
    del root
    return _start(RunRequest(spec))


def execute_detached(container: str, spec: ExecSpec, root: str) -> int:
    """`background.execute_detached` of the server.

    :raises CraterunError: whatever starting raised there, with the same text and exit code
    """
    del root
    return int(_start(ExecRequest(container, spec)))


def _start(request: Request) -> str:
    assert desk.current is not None
    answer = desk.current.start(encode(request))
    if answer.error:
        raise _AnsweredError(answer.error, answer.exit_code)
    return answer.started


def hand_over(spec: Spec, cidfile: str | None, *, attach: bool, quiet: bool) -> NoReturn:
    """The server goes on in our place, with the streams of our client.

    :param cidfile: a file that is claimed already
    """
    assert desk.current is not None
    path = None if cidfile is None else os.path.realpath(cidfile)
    desk.current.hand_over(encode(RunRequest(spec, attach, quiet, path)))


def hand_over_exec(container: str, spec: ExecSpec) -> NoReturn:
    """The same for a command in a running container."""
    assert desk.current is not None
    desk.current.hand_over(encode(ExecRequest(container, spec)))
