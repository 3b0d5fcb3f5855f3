"""The command line: commands by name, imported when used, and one place for errors."""

from __future__ import annotations

import gc
import os
import sys

from craterun.cli.errors import explained, single_cause
from craterun.cli.reading import read
from craterun.cli.thin import Options
from craterun.core.errors import CraterunError

TYPE_CHECKING = False  # typing is an import that some commands do without
if TYPE_CHECKING:
    from collections.abc import Callable

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
_INTERRUPTED = 130
_BROKEN_PIPE = 141


class NotUnderstoodError(Exception):
    """The arguments make no sense; the text says why."""


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
        result = _unwrapped(_understand(arguments))
        sys.stdout.flush()
    except NotUnderstoodError as error:
        return _fail(str(error), 125)
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


def _understand(arguments: list[str]) -> Callable[[], object]:
    """What is to be called. Ordinary command lines are read without cyclopts, which takes longer to
    import than most commands take.
    """
    try:
        command = read(arguments, COMMANDS)
    finally:
        gc.freeze()  # or the first collection would look at all that was imported
        gc.enable()  # which `craterun.__main__` has disabled
    if command is not None:
        return command

    def parse_and_call() -> object:
        from craterun.cli import parser

        return parser.call(arguments)

    return parse_and_call


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
