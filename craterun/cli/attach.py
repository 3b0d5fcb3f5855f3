"""attach: join a running container, from any number of terminals at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from craterun.cli import typed
from craterun.cli.output import complain
from craterun.cli.uninterrupted import uninterrupted
from craterun.client import local
from craterun.core.errors import ContainerNotRunningError, CraterunError
from craterun.core.keys import parse_keys
from craterun.serve import desk
from craterun.state.store import Store, default_root

if TYPE_CHECKING:
    from craterun.core.life import Record
    from craterun.linux.fd import Fd


def attach(
    container: str,
    *,
    logs: bool = False,
    no_stdin: bool = False,
    sig_proxy: typed.Annotated[bool, typed.Parameter(negative=())] = True,
    detach_keys: typed.Annotated[
        str | None, typed.Parameter(env_var="CRATERUN_DETACH_KEYS")
    ] = None,
) -> int:
    """Show what a running container writes from now on, and type into its terminal or input pipe.

    Ends with the container, and with its exit code. Closing the window, or killing this command,
    leaves the container as it is. Any number of terminals can be attached at once; a slow one
    holds up nobody and misses nothing, since it reads the log.

    Parameters
    ----------
    container
        Id, prefix or name.
    logs
        Begin with all that it has written before.
    no_stdin
        Only watch: what is typed stays here.
    sig_proxy
        Forward SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 to the container;
        --sig-proxy=false: let them end this command.
    detach_keys
        Keys that leave the container's terminal, such as ctrl-p,ctrl-q. Off unless asked for, or
        set in CRATERUN_DETACH_KEYS. Only where we type into a terminal.
    """
    keys = parse_keys(detach_keys) if detach_keys else b""
    return attach_to(
        container, default_root(), from_start=logs, typing=not no_stdin, proxy=sig_proxy, keys=keys
    )


def attach_to(
    container: str, root: str, *, from_start: bool, typing: bool, proxy: bool, keys: bytes
) -> int:
    """The same, as `run --detach-keys` uses it."""
    store = Store(root)
    record, _ = local.running_process(store, container)
    if typing and not record.terminal:
        desk.leave_terminal_alone()
    entrance = _entrance(record) if typing and (record.terminal or record.interactive) else None

    with uninterrupted():
        import trio

        from craterun.cli.attached import show_container

    detached = trio.run(show_container, store, record, entrance, from_start, proxy, keys)
    if detached:
        print(f"\r\ndetached from {record.id}")
        return 0
    code = local.wait(store, record.id).exit_code
    return 125 if code is None else code


def _entrance(record: Record) -> Fd | None:
    """The container's terminal or input pipe, to type into; None if its input has ended."""
    from craterun.linux.doorway import take_entrance

    try:
        return take_entrance(record.id)
    except ConnectionRefusedError:
        if not record.terminal:
            complain(f"the input of container {record.id} has ended: what is typed stays here")
            return None
        raise ContainerNotRunningError(
            f"container {record.id} is not running any more, or its supervisor belongs to a "
            "network namespace of its own; watch it with --no-stdin"
        ) from None
    except OSError as error:
        raise CraterunError(
            f"cannot attach to container {record.id}: {os.strerror(error.errno or 0)}"
        ) from None
