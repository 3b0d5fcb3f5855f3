"""wait, stop, kill, pause, rm: commands that change containers which somebody else supervises."""

from __future__ import annotations

from collections.abc import Callable

from craterun.cli import typed
from craterun.cli.listing import require_some
from craterun.cli.output import complain
from craterun.cli.progress import Progress
from craterun.client import local
from craterun.core.errors import CraterunError, UsageError
from craterun.core.spec import MAX_SECONDS
from craterun.core.units import parse_signal
from craterun.state.store import Store, default_root


def wait(*containers: str) -> int:
    """Wait for containers to end, and print their exit codes, one on a line, in the given order.

    An exit code that nobody could see is printed as a question mark.

    Parameters
    ----------
    containers
        Ids, prefixes or names.
    """
    require_some(containers)
    store = Store(default_root())
    failed = False
    with Progress("waiting for") as progress:
        for position, text in enumerate(containers):
            progress.wait_for(containers[position:])
            try:
                code = local.wait(store, text).exit_code
                progress.erase()
                print("?" if code is None else code, flush=True)
            except CraterunError as error:
                progress.erase()
                complain(str(error))
                failed = True
    return 125 if failed else 0


def stop(
    *containers: str,
    seconds: typed.Annotated[float | None, typed.Parameter(name=["--time", "-t"])] = None,
    signal: typed.Annotated[str | None, typed.Parameter(name=["--signal", "-s"])] = None,
) -> int:
    """Ask containers to end, and kill those that have not ended in time. Prints their ids.

    One that has ended already is no error.

    A command that runs as PID 1 of its container does not notice a signal that it has no handler
    for: the kernel protects PID 1. Start it with --init if it should. A paused container goes
    on, to handle the signal.

    Parameters
    ----------
    containers
        Ids, prefixes or names.
    seconds
        Seconds to wait before SIGKILL. Default: what each was started with, as a rule 10.
    signal
        What asks them: a name or a number. Default: what each was started with, as a rule TERM.
    """
    require_some(containers)
    if seconds is not None and not 0 <= seconds < MAX_SECONDS:
        raise UsageError(f"--time {seconds:g} is not a number of seconds")
    store = Store(default_root())
    number = None if signal is None else parse_signal(signal)
    with Progress("stopping") as progress:
        results = local.stop(store, containers, number, seconds, progress.wait_for)
    return report(results)


def kill(
    *containers: str,
    signal: typed.Annotated[str, typed.Parameter(name=["--signal", "-s"])] = "KILL",
) -> int:
    """Send a signal to the first process of containers. Prints their ids.

    A paused container dies of SIGKILL; any other signal waits until it goes on.

    Parameters
    ----------
    containers
        Ids, prefixes or names.
    signal
        A name, with or without SIG, or a number.
    """
    require_some(containers)
    store = Store(default_root())
    number = parse_signal(signal)
    results: list[str | CraterunError] = []
    for text in containers:
        try:
            results.append(local.send_signal(store, text, number))
        except CraterunError as error:
            results.append(error)
    return report(results)


def pause(*containers: str) -> int:
    """Stop all processes of containers, until unpause. Prints their ids.

    A paused container uses no CPU, keeps its memory, and notices no time-out of its own. SIGKILL
    ends it all the same; stop lets it go on, to end in order; exec is refused.

    Parameters
    ----------
    containers
        Ids, prefixes or names.
    """
    return _for_each(containers, local.pause)


def unpause(*containers: str) -> int:
    """Let paused containers go on. Prints their ids.

    Parameters
    ----------
    containers
        Ids, prefixes or names.
    """
    return _for_each(containers, local.unpause)


def _for_each(containers: tuple[str, ...], action: Callable[[Store, str], str]) -> int:
    require_some(containers)
    store = Store(default_root())
    results: list[str | CraterunError] = []
    for text in containers:
        try:
            results.append(action(store, text))
        except CraterunError as error:
            results.append(error)
    return report(results)


def rm(
    *containers: str, force: typed.Annotated[bool, typed.Parameter(name=["--force", "-f"])] = False
) -> int:
    """Remove containers with their logs. Prints their ids; each is judged on its own.

    Parameters
    ----------
    containers
        Ids, prefixes or names.
    force
        Kill a running container first, and remove one whose record is damaged.
    """
    require_some(containers)
    store = Store(default_root())
    results: list[str | CraterunError] = []
    with Progress("removing") as progress:
        for position, text in enumerate(containers):
            progress.wait_for(containers[position:])
            try:
                results.append(local.remove(store, text, force=force))
            except CraterunError as error:
                results.append(error)
    return report(results)


def report(results: list[str | CraterunError]) -> int:
    """Ids to stdout, errors to stderr."""
    failed = 0
    for result in results:
        if isinstance(result, CraterunError):
            complain(str(result))
            failed = result.exit_code
        else:
            print(result)
    return failed
