"""The command line in the eyes of cyclopts: help, errors, and all that `cli.reading` leaves."""

from __future__ import annotations

from cyclopts import App, CycloptsError, Group, Parameter

from craterun import __version__
from craterun.cli.app import COMMANDS, NotUnderstoodError
from craterun.cli.limits import LimitOptions

HELP = """\
Run commands in Linux containers: real namespaces and cgroups, no engine, no daemon.

- craterun run --attach -- echo hello: a container with the host's programs, read-only
- craterun run --rootfs /srv/debian -- make check: one with a root directory of its own
- craterun ps, craterun logs ID: what ran, and what it said

Everything before -- is for craterun, everything after it is the command. An ID is 16 hex digits; \
any unique prefix of it, or the name, will do.

Some options belong to every command: --root DIR keeps the state in DIR, as does the variable \
CRATERUN_ROOT (default: /var/lib/craterun for root, ~/.craterun for others); --debug shows what \
happens; --socket PATH, as does CRATERUN_SOCKET, says where a server (craterun serve) listens, and \
--no-serve does without it.

Exit codes: the command's own; 128 + N if signal N killed it; 124 if it ran into its --timeout; \
125 for an error of craterun, 126 if the command cannot be executed, 127 if it is not found."""

app = App(
    name="craterun",
    help=HELP,
    help_format="markdown",
    version=f"craterun {__version__}",
    version_flags=["--version", "-V"],
    default_parameter=Parameter(negative=()),
    exit_on_error=False,
    print_error=False,
    help_on_error=False,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for _name, (_target, _help) in COMMANDS.items():
    app.command(f"craterun.cli.{_target}", name=_name, help=_help)
app.command(f"craterun.cli.{COMMANDS['info'][0]}", name="doctor", show=False)
app.register_install_completion_command(help="Install completion for your shell.")
Parameter(name="*", group=Group("Limits", sort_key=10))(LimitOptions)


def call(arguments: list[str]) -> object:
    """Parse, and call the command. Returns its result.

    :raises NotUnderstoodError: there is no such command, or it takes no such arguments
    """
    _explain_fully(arguments)
    try:
        return app(arguments)
    except CycloptsError as error:
        first = " ".join(str(error).split())
        command = f"{arguments[0]} " if _is_command(arguments[0]) else ""
        raise NotUnderstoodError(f"{first} See: craterun {command}--help") from error


def _is_command(word: str) -> bool:
    return not word.startswith("-") and word in app


def _explain_fully(arguments: list[str]) -> None:
    """The help of one command is its docstring; the list of all, which imports none of them, has
    the one line that it was registered with.
    """
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if own and _is_command(own[0]) and ("--help" in own or "-h" in own):
        app[own[0]].help = None
