"""What a server's workers have done before they get their job: imports, and parsing.

To parse a command line takes cyclopts several times as long as the command itself. What it makes of
the words before ``--`` depends on nothing else, so it is remembered for those that come again.
"""

from __future__ import annotations

import importlib
import inspect
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from cyclopts import App, CycloptsError
from cyclopts.argument import ArgumentCollection

from craterun.cli import app as command_line
from craterun.cli import thin
from craterun.serve import desk
from craterun.serve.hello import decode_hello
from craterun.serve.jobs import Desk

_LATE = (
    "craterun.cli.attached", "craterun.cli.foreground", "craterun.cli.served",
    "craterun.client.logs", "craterun.keeper.spawn", "craterun.linux.limits",
    "craterun.linux.meter", "craterun.linux.features", "craterun.core.limit_files", "trio",
)  # fmt: skip
"""Imported by commands only when they need it."""
_USUAL = (["run"], ["run", "--attach"], ["run", "-d"], ["run", "--detach"], ["run", "--rm"])
_MAX_LINES = 256
_STANDING_FOR_ANY = "\ncommand\n"

_lines: dict[tuple[str, ...], tuple[Callable[..., object], inspect.BoundArguments]] = {}
_assembled: dict[int, ArgumentCollection] = {}
_assemble = App.assemble_argument_collection


def get_ready() -> None:
    """Before the spawner is forked: import all commands; prepare for parsing."""
    for target, _ in command_line.COMMANDS.values():
        importlib.import_module(f"craterun.cli.{target.partition(':')[0]}")
    for name in _LATE:
        importlib.import_module(name)
    learn(["ps"])
    for words in _USUAL:
        learn([*words, "--"])
    for name in command_line.COMMANDS:
        _assemble_ahead(name)
    App.assemble_argument_collection = _hand_out  # type: ignore[method-assign,assignment]
    command_line.recall = recall


def learn(arguments: list[str]) -> None:
    """In the spawner: parse a command line as it has come, for workers to come.

    What follows ``--`` is the command of a container, whatever it is: one that stands for any is
    put there, to see where it goes.
    """
    words = _words(arguments)
    if words is None or len(_lines) >= _MAX_LINES or words in _lines:
        return
    App.assemble_argument_collection = _assemble  # type: ignore[method-assign]
    try:
        tokens = [*words, _STANDING_FOR_ANY] if words[-1] == "--" else list(words)
        function, bound, _ = command_line.app.parse_args(tokens)
    except CycloptsError:
        return  # to be found out, and said, each time
    finally:
        App.assemble_argument_collection = _hand_out  # type: ignore[method-assign,assignment]
    if words[-1] != "--" or _command_of(bound) == (_STANDING_FOR_ANY,):
        _lines[words] = function, bound


def recall(arguments: list[str]) -> partial[object] | None:
    """In a worker: what `learn` has learned of this command line, as what is to be called."""
    words = _words(arguments)
    if words is None or words not in _lines:
        return None
    function, bound = _lines[words]
    args = bound.args
    if words[-1] == "--":
        command = arguments[len(words) :]
        if not command:
            return None
        args = (*args[:-1], *command)
    return partial(function, *args, **bound.kwargs)


class _Rehearsal(Desk):
    """A server that takes nothing over."""

    def hand_over(self, request: bytes) -> NoReturn:
        raise desk.DeclinedError


def rehearse() -> None:
    """In a worker that has no job yet: go all the way of ``run``, but for its last step.

    After a fork, each page of memory is copied when it is first written to, and Python writes to
    all that it looks at.
    """
    decode_hello(thin.hello(["run"], []))
    with socket.socket() as nowhere:
        desk.current = _Rehearsal(nowhere)
        try:
            command_line.run_command_line(["run", "--", "true"])
        except desk.DeclinedError:
            desk.current = None


def _words(arguments: list[str]) -> tuple[str, ...] | None:
    """Up to ``--``; None of what is for cyclopts itself, or says less than the environment does."""
    end = arguments.index("--") + 1 if "--" in arguments else len(arguments)
    words = tuple(arguments[:end])
    if not words or words[0] not in command_line.COMMANDS or "CRATERUN_DETACH_KEYS" in os.environ:
        return None
    return None if {"--help", "-h", "--version", "-V"} & {*words} else words


def _command_of(bound: inspect.BoundArguments) -> object:
    """What went to the parameter that takes all that follows."""
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return bound.arguments.get(name)
    return None


class _AssembledError(BaseException):
    """Carries what was assembled out of the parser."""

    def __init__(self, arguments: ArgumentCollection) -> None:
        super().__init__()
        self.arguments = arguments


def _assemble_ahead(name: str) -> None:
    """Let cyclopts look at a command's signature, as it does at the beginning of each parse."""

    def capture(app: App, **options: object) -> ArgumentCollection:
        raise _AssembledError(_assemble(app, **options))  # type: ignore[arg-type]

    App.assemble_argument_collection = capture  # type: ignore[method-assign,assignment]
    try:
        command_line.app.parse_args([name])
    except _AssembledError as assembled:
        _assembled[id(command_line.app[name])] = assembled.arguments


def _hand_out(app: App, **options: object) -> ArgumentCollection:
    """What was assembled ahead: once, since parsing writes into it; a worker parses once."""
    ready = None if options else _assembled.pop(id(app), None)
    return _assemble(app, **options) if ready is None else ready  # type: ignore[arg-type]
