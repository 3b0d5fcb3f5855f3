"""What a server does once, so that each of its workers need not."""

from __future__ import annotations

import importlib
import socket
from typing import NoReturn

from craterun.cli import app as command_line
from craterun.cli import thin
from craterun.serve import desk
from craterun.serve.hello import decode_hello
from craterun.serve.jobs import Desk

_LATE = (
    "craterun.cli.attached", "craterun.cli.batchrun", "craterun.cli.foreground",
    "craterun.cli.limits", "craterun.cli.parser", "craterun.cli.served",
    "craterun.client.logs", "craterun.keeper.spawn", "craterun.linux.limits",
    "craterun.linux.meter", "craterun.linux.features", "craterun.core.limit_files",
    "craterun.serve.borrowing", "trio",
)  # fmt: skip
"""Imported by commands only when they need it."""


def get_ready() -> None:
    """Before the spawner is forked: import all commands."""
    for target, _ in command_line.COMMANDS.values():
        importlib.import_module(f"craterun.cli.{target.partition(':')[0]}")
    for name in _LATE:
        importlib.import_module(name)


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
