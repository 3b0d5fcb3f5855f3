"""top: the processes in a container."""

from __future__ import annotations

import sys

import msgspec

from craterun.cli import typed
from craterun.cli.output import shorten, table
from craterun.client import processes
from craterun.core.processes import ProcessInfo
from craterun.core.units import age, short_bytes
from craterun.state.store import Store, default_root

_COMMAND_WIDTH = 60


def top(
    container: str,
    *,
    form: typed.Annotated[
        typed.Literal["table", "json"], typed.Parameter(name="--format")
    ] = "table",
) -> int:
    """List the processes in a container, also those that exec started, the oldest first.

    Parameters
    ----------
    container
        Id, prefix or name.
    form
        A table for people, or JSON for programs.
    """
    found = processes.top(Store(default_root()), container)
    if form == "json":
        text = msgspec.json.format(msgspec.json.encode(found), indent=2).decode()
    else:
        header = ("PID", "HOST PID", "USER", "STATE", "CPU TIME", "RSS", "STARTED", "COMMAND")
        text = table(header, map(_row, found))
    sys.stdout.write(f"{text}\n")
    return 0


def _row(info: ProcessInfo) -> tuple[str, ...]:
    # Without arguments, as ps(1) shows it.
    command = " ".join(info.command) or f"[{info.name}]"
    return (
        str(info.pid),
        str(info.host_pid),
        info.user,
        info.state,
        f"{info.cpu_seconds:.2f}s",
        short_bytes(info.rss_bytes),
        age(info.started),
        shorten(command, _COMMAND_WIDTH),
    )
