"""The command line's entry: answers what needs no import; leaves the rest to `cli.app`."""

from __future__ import annotations

import sys


def main() -> None:
    """Console script ``craterun``; also ``python -m craterun``. Exits with the command's code."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from craterun import __version__

        print(f"craterun {__version__}")
        return
    from craterun.cli.app import run_command_line

    sys.exit(run_command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
