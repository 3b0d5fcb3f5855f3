"""Containers that other processes supervise: for programs (`Client`), and for short commands.

`Client` is in `client.api`, and imported, with anyio, on first use: commands do without.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is an import that some commands do without
if TYPE_CHECKING:
    from craterun.client.api import Client, Executed, RunFailedError
    from craterun.client.local import Observed

_HOMES = {
    "Client": "craterun.client.api",
    "Executed": "craterun.client.api",
    "Observed": "craterun.client.local",
    "RunFailedError": "craterun.client.api",
}

__all__ = ["Client", "Executed", "Observed", "RunFailedError"]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)
