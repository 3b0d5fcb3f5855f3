"""What the signatures of commands are written in: imported when somebody evaluates them.

`cli.parser` does, with cyclopts; `cli.reading` puts something lighter in the place of these names.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is an import that most commands do without
if TYPE_CHECKING:
    from typing import Annotated, Literal

    from cyclopts import Parameter

    from craterun.cli.limits import LimitOptions

__all__ = ["Annotated", "LimitOptions", "Literal", "Parameter"]

_HOMES = {
    "Annotated": "typing",
    "Literal": "typing",
    "Parameter": "cyclopts",
    "LimitOptions": "craterun.cli.limits",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(home), name)
    globals()[name] = found
    return found
