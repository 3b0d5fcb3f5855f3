"""exec: a further command in a running container."""

from __future__ import annotations

from craterun.cli import typed
from craterun.cli.uninterrupted import uninterrupted
from craterun.cli.window import default_term, our_window
from craterun.core.execspec import ExecSpec
from craterun.core.units import parse_env, parse_signal
from craterun.serve import desk
from craterun.state.store import default_root


def execute(
    container: str,
    /,
    *command: str,
    env: typed.Annotated[list[str] | None, typed.Parameter(name=["--env", "-e"])] = None,
    workdir: typed.Annotated[str | None, typed.Parameter(name=["--workdir", "-w"])] = None,
    user: typed.Annotated[str | None, typed.Parameter(name=["--user", "-u"])] = None,
    interactive: typed.Annotated[bool, typed.Parameter(name=["--interactive", "-i"])] = False,
    tty: typed.Annotated[bool, typed.Parameter(name=["--tty", "-t"])] = False,
    detach: typed.Annotated[bool, typed.Parameter(name=["--detach", "-d"])] = False,
    timeout: float | None = None,
    stop_signal: str = "TERM",
    stop_timeout: float = 10.0,
) -> int:
    """Run a further command in a running container, and exit with its exit code.

    It enters all namespaces of the container, and its limits hold. Its output goes to our stdout
    and stderr and is not logged. When this process is killed or disconnected, or gets SIGINT,
    SIGTERM, SIGHUP or SIGQUIT, which it forwards, the command ends, and with it all that it has
    started. What it leaves in the background when it ends by itself lives on.

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
    detach
        Return as soon as the command runs, and print its pid on the host. Its output goes to
        /dev/null. It ends with the container; craterun events tells when and how it has ended.
    timeout
        Seconds after which the command is stopped; our exit code is 124 then.
    stop_signal
        What asks the command to end then: a name or a number. When it has ended, what it has
        started gets SIGKILL.
    stop_timeout
        Seconds that it has to end then, before SIGKILL.
    """
    variables = dict(parse_env(entry) for entry in env or [])
    if interactive and not tty:
        desk.leave_terminal_alone()
    spec = ExecSpec(
        command=command,
        env=default_term(variables) if tty else variables,
        workdir=workdir,
        user=user,
        stdin=interactive,
        window=our_window() if tty else None,
        detached=detach,
        timeout=timeout,
        stop_signal=parse_signal(stop_signal),
        stop_seconds=stop_timeout,
    )
    spec.check()
    if detach:
        if desk.current is not None:
            from craterun.cli.served import execute_detached
        else:
            from craterun.cli.background import execute_detached

        print(execute_detached(container, spec, default_root()))
        return 0
    if desk.current is not None:
        from craterun.cli.served import hand_over_exec

        hand_over_exec(container, spec)
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
        return await exec_command(container, spec, default_root(), keeper)

    return trio.run(main)
