"""--detach: the supervisor lives on in a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec

from craterun.cli.uninterrupted import uninterrupted
from craterun.core.errors import CraterunError
from craterun.core.spec import Spec
from craterun.linux.calls import close_range

if TYPE_CHECKING:
    from craterun.core.execspec import ExecSpec
    from craterun.supervisor.main import Supervisor

    Start = Callable[[Supervisor], Awaitable[str]]


class _Report(msgspec.Struct):
    """What the background process tells the foreground before that leaves."""

    result: str = ""
    error: str = ""
    exit_code: int = 125


class _ReportedError(CraterunError):
    """An error of the background process, with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def start_detached(spec: Spec, root: str) -> str:
    """Start ``spec`` under a supervisor in the background. Returns the id once the command runs.

    :raises CraterunError: whatever starting raised there, with the same text and exit code
    """

    async def start(supervisor: Supervisor) -> str:
        container = await supervisor.start(spec)
        await container.recorded()
        return container.id

    return _in_background(start, root)


def execute_detached(container: str, spec: ExecSpec, root: str) -> int:
    """Execute ``spec`` in a running container, under a supervisor in the background. Returns the
    pid on the host once the command runs.

    :raises CraterunError: whatever starting raised there, with the same text and exit code
    """

    async def start(supervisor: Supervisor) -> str:
        return str((await supervisor.execute_spec(container, spec)).pid)

    return int(_in_background(start, root))


def _in_background(start: Start, root: str) -> str:
    """What ``start`` returns in a process that goes on until all is over that was started."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing has been imported yet that has threads or an event loop, so that a fork is sound.
    try:
        pid = os.fork()
    except OSError:
        from craterun.linux.shortage import explained  # which those who succeed need not wait for

        with explained("start a supervisor in the background"):
            raise
    if pid == 0:
        try:
            os.close(reader)
            _become_daemon(writer)
            _supervise(start, root)
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as pipe:
        content = pipe.read()
    if not content:
        from craterun.linux.shortage import killed

        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        fate = killed(-code) if code < 0 else f"exit code {code}"
        raise CraterunError(
            f"the background supervisor died before the command was started ({fate})"
        )
    report = msgspec.json.decode(content, type=_Report)
    if report.error:
        raise _ReportedError(report.error, report.exit_code)
    return report.result


def _become_daemon(keep: int) -> None:
    """No terminal, no inherited descriptor but ``keep``, which is 3 now, no directory held
    (daemon(7), less the second fork: a session leader that opens no terminal gets none).
    """
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.dup2(keep, 3, inheritable=False)
    close_range(4)


def _supervise(start: Start, root: str) -> None:
    def report(what: _Report) -> None:
        os.write(3, msgspec.json.encode(what))
        os.close(3)

    try:
        from craterun.keeper.spawn import spawn_keeper

        keeper = spawn_keeper()
        with uninterrupted():
            import trio

            from craterun.supervisor.link import KeeperLink
            from craterun.supervisor.main import Supervisor

        async def main() -> None:
            async with Supervisor(root, link=KeeperLink(*keeper)) as supervisor:
                report(_Report(result=await start(supervisor)))

        trio.run(main)
    except CraterunError as error:
        report(_Report(error=str(error), exit_code=error.exit_code))
    except BaseException as error:
        report(_Report(error=f"internal error: {error!r}"))
        raise
    os._exit(0)
