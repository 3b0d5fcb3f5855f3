"""run: a command in a new container, in the foreground or detached."""

from __future__ import annotations

import sys
from contextlib import suppress

from craterun.cli import typed
from craterun.cli.cidfile import CidFile
from craterun.cli.envfiles import read_env_files
from craterun.cli.uninterrupted import uninterrupted
from craterun.cli.window import DEFAULT_WINDOW, default_term, our_window
from craterun.core.errors import UsageError
from craterun.core.keys import parse_keys
from craterun.core.limits import Limits
from craterun.core.request import Request
from craterun.core.restart import parse_restart
from craterun.core.spec import HOST_ROOTFS, Spec
from craterun.core.units import parse_env
from craterun.serve import desk
from craterun.state.store import default_root


def run(
    *command: str,
    rootfs: str = HOST_ROOTFS,
    name: str | None = None,
    hostname: str | None = None,
    env: typed.Annotated[list[str] | None, typed.Parameter(name=["--env", "-e"])] = None,
    env_file: typed.Annotated[list[str] | None, typed.Parameter(name="--env-file")] = None,
    workdir: typed.Annotated[str, typed.Parameter(name=["--workdir", "-w"])] = "/",
    user: typed.Annotated[str | None, typed.Parameter(name=["--user", "-u"])] = None,
    interactive: typed.Annotated[bool, typed.Parameter(name=["--interactive", "-i"])] = False,
    tty: typed.Annotated[bool, typed.Parameter(name=["--tty", "-t"])] = False,
    detach_keys: typed.Annotated[
        str | None, typed.Parameter(env_var="CRATERUN_DETACH_KEYS")
    ] = None,
    merge_output: bool = False,
    attach: typed.Annotated[bool, typed.Parameter(name=["--attach", "-a"])] = False,
    quiet: typed.Annotated[bool, typed.Parameter(name=["--quiet", "-q"])] = False,
    detach: typed.Annotated[bool, typed.Parameter(name=["--detach", "-d"])] = False,
    rm: bool = False,
    cidfile: str | None = None,
    init: bool = False,
    limits: typed.LimitOptions | None = None,
    cgroup_parent: str | None = None,
    oom_score_adj: typed.Annotated[int | None, typed.Parameter(allow_leading_hyphen=True)] = None,
    timeout: float | None = None,
    stop_signal: str = "TERM",
    stop_timeout: float = 10.0,
    restart: str = "no",
    log_driver: typed.Literal["file", "none"] | None = None,
    log_max_size: str | None = None,
    log_max_files: int | None = None,
) -> int:
    """Run a command in a new container, and exit with its exit code.

    Without --attach and --detach, the container's id is printed, and its output goes to its log
    only. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are forwarded to the command; the
    same one of the first four twice within a second kills the container.

    Parameters
    ----------
    command
        The command and its arguments, after --.
    rootfs
        Absolute path of the directory that becomes the container's root. "host": the host's
        programs read-only, and everything else empty.
    name
        A name to use instead of the id.
    hostname
        Hostname inside; default: the first 12 digits of the id.
    env
        KEY=VALUE to add to the environment. May be repeated.
    env_file
        File with a KEY=VALUE on each line; --env overrides it. May be repeated.
    workdir
        Working directory inside.
    user
        NAME or UID, optionally :GROUP or :GID, as in the container's /etc/passwd.
    interactive
        Give the command our standard input; without it, it reads /dev/null.
    tty
        Give the command a terminal, and show it on ours (unless --detach). With --interactive, ours
        is in raw mode meanwhile: every key goes to the command, Ctrl-C and Ctrl-Z as well.
    detach_keys
        With --tty and --interactive: keys that leave the container's terminal and let it go on in
        the background, such as ctrl-p,ctrl-q; craterun attach joins it again. Off by default.
    merge_output
        One pipe for the command's stdout and stderr, so that their order is certain. All of it is
        logged as stdout.
    attach
        Copy the command's stdout and stderr to ours while it runs. They are logged all the same.
    quiet
        With --attach, say nothing on stderr about processes killed for want of memory.
    detach
        Return as soon as the command runs, and print the id.
    rm
        Remove the container with its log when it has ended.
    cidfile
        Write the id to this file, which must not exist.
    init
        Run a minimal init as PID 1, which reaps orphans and forwards signals.
    cgroup_parent
        An existing cgroup to put the container's cgroups below, as a path from the root of the
        hierarchy. Its limits hold for all containers in it together.
    oom_score_adj
        Whom the kernel kills first when the host runs out of memory: -1000 (never this one) to
        1000.
    timeout
        Seconds after which the container is stopped; our exit code is 124 then.
    stop_signal
        What asks the command to end, after --timeout and by craterun stop: a name or a number.
    stop_timeout
        Seconds that it has to end then, before SIGKILL.
    restart
        no, on-failure[:N] (at most N times) or always: start the command again when it has ended,
        after 0.1 s, then 0.2 s, … up to a minute; 0.1 s again after a life of 10 s. A signal that
        we forward, craterun stop and kill, and --timeout, which counts for all lives together, end
        it for good. Its log and its cgroup, with the limits, go on.
    log_driver
        "file": keep the output in files, for `craterun logs` (the default). "none": keep nothing;
        then only --attach shows the output, and a reader that stops holds the command up.
    log_max_size
        Begin new log files before one gets larger; default: 100m. 0 or "unlimited": never.
    log_max_files
        How many log files of each kind to keep, the newest; default: 3.
    """
    if attach and detach:
        raise UsageError("--attach and --detach exclude each other")
    if interactive and detach:
        raise UsageError("--interactive needs a container in the foreground, so no --detach")
    if limits is not None and limits.cpu is not None and command and command[0].isdigit():
        # Unquoted, the period is taken for the command's name.
        raise UsageError(f"--cpu takes one argument: --cpu '{limits.cpu} {command[0]}'")
    desk.leave_to_client(cidfile, rootfs if rootfs.startswith("/proc/") else None)
    keys = parse_keys(detach_keys) if detach_keys and tty and interactive else b""
    variables = {**read_env_files(env_file or ()), **dict(map(parse_env, env or ()))}
    spec = Request(
        command=command,
        rootfs=rootfs,
        name=name,
        hostname=hostname,
        env=default_term(variables) if tty else variables,
        workdir=workdir,
        user=user,
        merge_output=merge_output,
        init=init,
        cgroup_parent=cgroup_parent,
        oom_score_adj=oom_score_adj,
        timeout=timeout,
        stop_signal=stop_signal,
        stop_timeout=stop_timeout,
        log_driver=log_driver,
        log_max_size=log_max_size,
        log_max_files=log_max_files,
    ).spec(
        interactive=interactive,
        terminal=tty,
        window=our_window() if tty else DEFAULT_WINDOW,
        auto_remove=rm,
        limits=limits.parse() if limits is not None else Limits(),
        restart=parse_restart(restart),
    )
    from craterun.linux.userns import become_root

    root = default_root()  # that of the real user: from here on, everybody is root
    become_root()
    if interactive and not tty:
        desk.leave_terminal_alone()
    with CidFile(cidfile) as cid:
        if detach or keys:
            if desk.current is not None:
                from craterun.cli.served import start_detached
            else:
                from craterun.cli.background import start_detached

            container_id = start_detached(spec, root)
            cid.write(container_id)
            if keys:
                from craterun.cli.attach import attach_to

                return attach_to(
                    container_id, root, from_start=True, typing=True, proxy=True, keys=keys
                )
            print(container_id)
            return 0
        if desk.current is not None:
            from craterun.cli.served import hand_over

            hand_over(spec, cidfile, attach=attach or tty, quiet=quiet)
        return _run_in_foreground(spec, root, cid, attach=attach or tty, quiet=quiet)


def _run_in_foreground(spec: Spec, root: str, cid: CidFile, *, attach: bool, quiet: bool) -> int:
    from craterun.keeper.spawn import spawn_keeper

    # The keeper starts on the other core while this process imports trio.
    keeper = spawn_keeper()
    try:
        with uninterrupted():
            import trio

            from craterun.cli.foreground import run_container
            from craterun.supervisor.container import Container
    except BaseException:
        keeper.close()
        raise

    def started(container: Container) -> None:
        cid.write(container.id)
        if not attach:
            # Nobody there to read it is no reason to end the container.
            with suppress(OSError):
                sys.stdout.write(f"{container.id}\n")
                sys.stdout.flush()

    async def main() -> int:
        return await run_container(
            spec, root, keeper, attach=attach, tell_oom=attach and not quiet, started=started
        )

    return trio.run(main)
