"""update: other limits for containers that run."""

from __future__ import annotations

from craterun.cli import typed
from craterun.cli.listing import require_some
from craterun.cli.manage import report
from craterun.client.update import update as update_one
from craterun.core.errors import CraterunError, UsageError
from craterun.core.limits import Limits
from craterun.state.store import Store, default_root


def update(*containers: str, limits: typed.LimitOptions | None = None) -> int:
    """Change the limits of running containers. Prints their ids.

    Limits that are not named stay as they are. Each container gets all of the new ones or, if one
    of them is refused, none; each is judged on its own.

    Parameters
    ----------
    containers
        Ids, prefixes or names.
    """
    require_some(containers)
    changes = limits.parse() if limits is not None else Limits()
    if changes == Limits():
        raise UsageError("nothing to change: give at least one limit, as in --memory 64m")
    store = Store(default_root())
    results: list[str | CraterunError] = []
    for text in containers:
        try:
            results.append(update_one(store, text, changes))
        except CraterunError as error:
            results.append(error)
    return report(results)
