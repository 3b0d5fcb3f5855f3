"""events: what happened to containers, and what is happening."""

from __future__ import annotations

import os
import stat
import sys
import time

from craterun.cli import typed
from craterun.cli.output import complain
from craterun.client.events import EventFeed
from craterun.core.errors import UsageError
from craterun.core.events import Event, Filter
from craterun.core.instants import parse_instant
from craterun.state.store import default_root


def events(
    *,
    follow: typed.Annotated[bool, typed.Parameter(name=["--follow", "-f"])] = False,
    json: bool = False,
    conditions: typed.Annotated[list[str] | None, typed.Parameter(name="--filter")] = None,
    since: str | None = None,
    until: str | None = None,
) -> int:
    """Print what happened to containers, whoever started them: one line for each event.

    About the last 20,000 events are kept, in the order in which they were written.

    Parameters
    ----------
    follow
        Print what happens from now on (with --since: what happened since then, too), until
        interrupted.
    json
        One JSON object on each line.
    conditions
        KEY=VALUE: type, container (id, prefix or name), id, name, or any attribute, as in
        type=oom or exit_code=137. Of several with one key, one must be met. May be repeated.
    since
        Leave out what was before: 10m or 1h30m (ago), 2026-01-31T12:00:00Z, or seconds since 1970.
    until
        Leave out what was then and later; with --follow, end then.
    """
    now = time.time_ns()
    begin = None if since is None else parse_instant(since, now)
    end = None if until is None else parse_instant(until, now)
    if begin is not None and end is not None and end < begin:
        raise UsageError("--until is before --since")
    wanted = Filter(conditions or [])
    with EventFeed(default_root(), wanted, since=begin, until=end, follow=follow) as feed:
        if not follow:
            _print(feed.read(), as_json=json)
        else:
            missed = 0
            for batch in feed.follow(_pipe(1)):
                _print(batch, as_json=json)
                if feed.missed > missed:
                    missed = feed.missed
                    complain("events were lost: they came faster than they were read")
    return 0


def _print(batch: list[Event], *, as_json: bool) -> None:
    lines = (what.json_line() if as_json else f"{what.line()}\n".encode() for what in batch)
    sys.stdout.buffer.write(b"".join(lines))
    sys.stdout.buffer.flush()


def _pipe(number: int) -> int:
    """``number`` if the end of its reader can be seen."""
    mode = os.fstat(number).st_mode
    return number if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else -1
