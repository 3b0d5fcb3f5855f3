"""info, alias doctor: what this host can do for containers."""

from __future__ import annotations

import sys

from craterun import __version__
from craterun.cli import typed
from craterun.cli.output import table


def info(
    *,
    form: typed.Annotated[typed.Literal["text", "json"], typed.Parameter(name="--format")] = "text",
) -> int:
    """Tell what this host can do for containers, and where it cannot, why.

    Parameters
    ----------
    form
        Text for people, or JSON for programs.
    """
    import msgspec

    from craterun.linux.features import report
    from craterun.state.store import default_root

    found = report()
    if form == "json":
        fields = {"craterun": __version__, **msgspec.to_builtins(found), "root": default_root()}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(fields), indent=2).decode() + "\n")
        return 0
    who = "root" if found.user == 0 else f"uid {found.user}"
    print(f"craterun {__version__} on Linux {found.kernel} ({found.machine}), as {who}")
    print(f"state in {default_root()}")
    print(f"cgroups: {found.layout}\n")
    rows = (
        (c.name, c.works, str(c.version or "-"), c.place or "-", c.note) for c in found.controllers
    )
    print(table(("CONTROLLER", "USABLE", "VERSION", "BELOW", "NOTE"), rows))
    print()
    print(table(("FEATURE", "WORKS", "NOTE"), ((f.name, f.works, f.note) for f in found.features)))
    return 0
