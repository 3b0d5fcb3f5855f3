"""ps, inspect: commands that tell what there is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from craterun.cli import typed
from craterun.cli.output import complain, shorten, table
from craterun.client.observing import Observation, R, observe
from craterun.core.errors import CraterunError
from craterun.core.states import State
from craterun.core.units import age
from craterun.state.store import Damaged, Store, default_root

if TYPE_CHECKING:
    from craterun.core.life import Record
    from craterun.state.store import Known

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
    if form == "json" and not quiet:
        records, broken = _observed(store, store.records(), store.load, running=running)
        sys.stdout.write(_json([_as_json(store, observed) for observed in records]))
        return 125 if broken else 0
    seen, broken = _observed(store, store.glances(), store.look, running=running)
    if quiet:
        text = "".join(f"{observed.record.id}\n" for observed in seen)
    else:
        header = ("CONTAINER ID", "PID", "STATUS", "CREATED", "COMMAND", "NAME")
        text = table(header, (_row(observed) for observed in seen)) + "\n"
    sys.stdout.write(text)
    return 125 if broken else 0


def _observed(
    store: Store,
    records: Iterable[R | Damaged],
    load: Callable[[str], R],
    *,
    running: bool,
) -> tuple[list[Observation[R]], bool]:
    """The newest first, and whether there were damaged ones, of which is complained.

    :param load: reads a record once more
    :param running: only what runs
    """
    seen: list[Observation[R]] = []
    broken = False
    for record in records:
        if isinstance(record, Damaged):
            complain(str(record.error))
            broken = True
            continue
        observed = observe(store, record, load)
        if observed.running or not running:
            seen.append(observed)
    seen.sort(key=lambda observed: observed.record.created, reverse=True)
    return seen, broken


def _row(observed: Observation[Known]) -> tuple[str, ...]:
    record = observed.record
    return (
        record.id,
        str(record.pid) if observed.running and record.pid else "-",
        _status(observed),
        age(record.created),
        shorten(" ".join(record.command), _COMMAND_WIDTH),
        record.name or "",
    )


def _status(observed: Observation[Known]) -> str:
    """With the OOM kills that the status itself does not tell of."""
    kills = observed.record.oom_kills
    if not kills or observed.record.init_oom_killed:
        return observed.status
    from craterun.core.oom import kills_text

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
            observed = observe(store, store.load(store.resolve(text)), store.load)
            found.append(_as_json(store, observed))
        except CraterunError as error:
            complain(str(error))
            failed = True
    sys.stdout.write(_json(found))
    return 125 if failed else 0


def _as_json(store: Store, observed: Observation[Record]) -> dict[str, object]:
    import msgspec  # which a table does without

    fields: dict[str, object] = msgspec.to_builtins(observed.record)
    if observed.lost:
        fields["status"] = "lost"
    elif observed.paused:
        fields["status"] = State.PAUSED
    fields["running"] = observed.running
    fields["directory"] = store.path(observed.record.id)
    return fields


def _json(value: object) -> str:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def require_some(containers: tuple[str, ...]) -> None:
    """Refuse an empty list, which would silently do nothing."""
    if not containers:
        raise CraterunError("which container? Give at least one id, prefix or name")
