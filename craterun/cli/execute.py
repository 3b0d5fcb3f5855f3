"""exec: a further command in a running container."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from craterun.cli.uninterrupted import uninterrupted
from craterun.cli.window import default_term, our_window
from craterun.core.units import parse_env
from craterun.state.store import default_root


def execute(
    container: str,
    /,
    *command: str,
    env: Annotated[list[str] | None, Parameter(name=["--env", "-e"])] = None,
    workdir: Annotated[str | None, Parameter(name=["--workdir", "-w"])] = None,
    user: Annotated[str | None, Parameter(name=["--user", "-u"])] = None,
    interactive: Annotated[bool, Parameter(name=["--interactive", "-i"])] = False,
    tty: Annotated[bool, Parameter(name=["--tty", "-t"])] = False,
) -> int:
    """Run a further command in a running container, and exit with its exit code.

    It enters all namespaces and the cgroup of the container. Its output goes to our stdout and
    stderr and is not logged. It is killed when this process dies.

    Parameters
    ----------
    container
        Id, prefix or name.
    command
        The command and its arguments, after --.
    env
        KEY=VALUE to add to the container's environment. May be repeated.
    workdir
        Working directory inside; default: the container's.
    user
        NAME or UID, optionally :GROUP or :GID, as in the container's /etc/passwd; default: root.
    interactive
        Give the command our standard input; without it, it reads /dev/null.
    tty
        Give the command a terminal, and show it on ours. With --interactive, ours is in raw mode
        meanwhile: every key goes to the command.
    """
    variables = dict(parse_env(entry) for entry in env or [])
    from craterun.keeper.spawn import spawn_keeper

    keeper = spawn_keeper()
    try:
        with uninterrupted():
            import trio

            from craterun.cli.foreground import exec_command
    except BaseException:
        keeper.close()
        raise

    async def main() -> int:
        return await exec_command(
            container,
            command,
            default_root(),
            keeper,
            env=default_term(variables) if tty else variables,
            workdir=workdir,
            user=user,
            stdin=interactive,
            window=our_window() if tty else None,
        )

    return trio.run(main)
