"""The command line: commands by name, imported when used, and one place for errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial

from cyclopts import App, CycloptsError, Parameter

from craterun import __version__
from craterun.cli.errors import explained, single_cause
from craterun.cli.thin import Options
from craterun.core.errors import CraterunError

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

COMMANDS = {
    "run": ("run:run", "Run a command in a new container."),
    "attach": ("attach:attach", "Join a running container, and type into its terminal."),
    "exec": ("execute:execute", "Run a further command in a running container."),
    "ps": ("listing:ps", "List containers."),
    "logs": ("logs:logs", "Print or follow what containers wrote."),
    "inspect": ("listing:inspect", "Print all that is known of containers, as JSON."),
    "events": ("events:events", "Print what happened to containers, or follow what happens."),
    "stats": ("stats:stats", "Show what containers use, live."),
    "top": ("top:top", "List the processes in a container."),
    "wait": ("manage:wait", "Wait for containers to end and print their exit codes."),
    "stop": ("manage:stop", "Ask containers to end; kill those that do not."),
    "kill": ("manage:kill", "Send a signal to containers."),
    "pause": ("manage:pause", "Stop all processes of containers for a while."),
    "unpause": ("manage:unpause", "Let paused containers go on."),
    "update": ("update:update", "Change the limits of running containers."),
    "rm": ("manage:rm", "Remove containers with their logs."),
    "batch": ("batch:batch", "Run a container for each line of a stream, many at once."),
    "serve": ("serve:serve", "Stay, and make all other commands quick."),
    "shutdown": ("serve:shutdown", "End the server that craterun serve has started."),
    "bench": ("bench:bench", "Measure this machine: starts, phases, logs, beside other runtimes."),
    "info": ("info:info", "Tell what this host can do for containers, and why not more."),
}
for _name, (_target, _help) in COMMANDS.items():
    app.command(f"craterun.cli.{_target}", name=_name, help=_help)
app.command(f"craterun.cli.{COMMANDS['info'][0]}", name="doctor", show=False)
app.register_install_completion_command(help="Install completion for your shell.")


def _recall_nothing(_: list[str]) -> Callable[[], object] | None:
    return None


recall: Callable[[list[str]], Callable[[], object] | None] = _recall_nothing
"""In a server's worker (`warm`): a command line that was parsed before, as what is to be called."""
_INTERRUPTED = 130
_BROKEN_PIPE = 141


def run_command_line(arguments: list[str]) -> int:
    """Parse and run. Every error becomes one line on stderr, and an exit code."""
    options = Options(arguments)
    options.apply()
    arguments = options.rest
    if options.debug:
        import logging

        logging.basicConfig(
            level=logging.DEBUG, format="craterun: %(relativeCreated)d ms %(name)s: %(message)s"
        )
    if not arguments:
        arguments = ["--help"]
    try:
        _explain_fully(arguments)
        call = recall(arguments)
        result = _unwrapped(partial(app, arguments) if call is None else call)
        sys.stdout.flush()
    except CycloptsError as error:
        first = " ".join(str(error).split())
        command = f"{arguments[0]} " if _is_command(arguments[0]) else ""
        return _fail(f"{first} See: craterun {command}--help", 125)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone, as in `craterun ps | head -1`. Python would complain
        # once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _BROKEN_PIPE
    except (CraterunError, OSError) as error:
        told = explained(error)
        if options.debug or told is None:
            raise
        return _fail(*told)
    except RuntimeError as error:
        from craterun.linux.shortage import is_no_thread, processes

        if options.debug or not is_no_thread(error):
            raise
        return _fail(f"cannot start a thread; {processes()}", 125)
    return result if isinstance(result, int) else 0


def _is_command(word: str) -> bool:
    return not word.startswith("-") and word in app


def _explain_fully(arguments: list[str]) -> None:
    """The help of one command is its docstring; the list of all, which imports none of them, has
    the one line that it was registered with.
    """
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if own and _is_command(own[0]) and ("--help" in own or "-h" in own):
        app[own[0]].help = None


def _unwrapped(call: Callable[[], object]) -> object:
    """Call ``call``; a group of exceptions that has one cause is raised as that cause."""
    try:
        return call()
    except BaseExceptionGroup as group:
        raise single_cause(group) from None


def _fail(message: str, code: int) -> int:
    from craterun.cli.output import complain

    complain(message)
    return code
