"""ps, inspect: commands that tell what there is."""

from __future__ import annotations

import sys

import msgspec

from craterun.cli import typed
from craterun.cli.output import complain, shorten, table
from craterun.client.local import Observed, observe
from craterun.core.errors import CraterunError
from craterun.core.life import State
from craterun.core.oom import kills_text
from craterun.core.units import age
from craterun.state.store import Store, default_root

_COMMAND_WIDTH = 40


def ps(
    *,
    quiet: typed.Annotated[bool, typed.Parameter(name=["--quiet", "-q"])] = False,
    running: bool = False,
    form: typed.Annotated[
        typed.Literal["table", "json"], typed.Parameter(name="--format")
    ] = "table",
) -> int:
    """List containers, the newest first.

    Parameters
    ----------
    quiet
        Print ids only.
    running
        List only containers that run.
    form
        A table for people, or JSON for programs.
    """
    store = Store(default_root())
    seen: list[Observed] = []
    broken = 0
    for record in store.records():
        if isinstance(record, tuple):
            complain(str(record[1]))
            broken += 1
            continue
        observed = observe(store, record)
        if observed.running or not running:
            seen.append(observed)
    seen.sort(key=lambda observed: observed.record.created, reverse=True)
    if quiet:
        text = "".join(f"{observed.record.id}\n" for observed in seen)
    elif form == "json":
        text = _json([_as_json(store, observed) for observed in seen])
    else:
        header = ("CONTAINER ID", "PID", "STATUS", "CREATED", "COMMAND", "NAME")
        text = table(header, (_row(observed) for observed in seen)) + "\n"
    sys.stdout.write(text)
    return 125 if broken else 0


def _row(observed: Observed) -> tuple[str, ...]:
    record = observed.record
    return (
        record.id,
        str(record.pid) if observed.running and record.pid else "-",
        _status(observed),
        age(record.created),
        shorten(" ".join(record.command), _COMMAND_WIDTH),
        record.name or "",
    )


def _status(observed: Observed) -> str:
    """With the OOM kills that the status itself does not tell of."""
    kills = observed.record.oom_kills
    if not kills or observed.record.init_oom_killed:
        return observed.status
    return f"{observed.status}, {kills_text(kills)}"


def inspect(*containers: str) -> int:
    """Print all that is known of containers, as a JSON array.

    Parameters
    ----------
    containers
        Ids, prefixes or names.
    """
    require_some(containers)
    store = Store(default_root())
    found, failed = [], False
    for text in containers:
        try:
            observed = observe(store, store.load(store.resolve(text)))
            found.append(_as_json(store, observed))
        except CraterunError as error:
            complain(str(error))
            failed = True
    sys.stdout.write(_json(found))
    return 125 if failed else 0


def _as_json(store: Store, observed: Observed) -> dict[str, object]:
    fields: dict[str, object] = msgspec.to_builtins(observed.record)
    if observed.lost:
        fields["status"] = "lost"
    elif observed.paused:
        fields["status"] = State.PAUSED
    fields["running"] = observed.running
    fields["directory"] = store.path(observed.record.id)
    return fields


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def require_some(containers: tuple[str, ...]) -> None:
    """Refuse an empty list, which would silently do nothing."""
    if not containers:
        raise CraterunError("which container? Give at least one id, prefix or name")
