"""Containers from any asyncio or trio program, through anyio.

    async with anyio.create_task_group() as tasks:
        client = Client()
        container_id = await client.run(Spec(command=("make", "check"), rootfs="/srv/build"))
        status = await client.wait(container_id)
        output = await client.read_log(container_id, Stream.STDOUT)

The containers are detached: each has a supervisor process of its own and lives on when this program
ends. A trio program that wants to supervise containers itself, many in one process, uses
`craterun.Supervisor` instead.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Concatenate, NamedTuple, ParamSpec, TypeVar

import anyio
import anyio.to_thread

from craterun.client import local
from craterun.client.events import EventFeed
from craterun.client.local import Observed
from craterun.client.stream import EventStream
from craterun.core.errors import CraterunError
from craterun.core.events import Filter
from craterun.core.life import ExitStatus
from craterun.core.spec import Spec
from craterun.linux.fd import Fd
from craterun.linux.proc import open_process
from craterun.state.logcursor import LogCursor
from craterun.state.logindex import Stream
from craterun.state.openlog import OpenLog
from craterun.state.store import Store, default_root

if TYPE_CHECKING:
    from craterun.client.usage import StatsMonitor
    from craterun.core.processes import ProcessInfo
    from craterun.core.stats import Usage

P = ParamSpec("P")
T = TypeVar("T")


class RunFailedError(CraterunError):
    """The container could not be started; the text is the command line's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Executed(NamedTuple):
    """How a further command has ended, and all that it has written.

    :ivar exit_code: as of ``craterun exec``: the command's own; 124 after a timeout; 125, 126 or
        127 if it could not be executed, and then ``stderr`` says why
    """

    exit_code: int
    stdout: bytes
    stderr: bytes


class Client:
    """Runs and manages containers below one state directory.

    :param root: the state directory; default: CRATERUN_ROOT, or /var/lib/craterun for root, or
        ~/.craterun for others
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.store = Store(root if root is not None else default_root())

    async def run(self, spec: Spec) -> str:
        """Start a detached container; returns its id once the command was executed.

        :raises UsageError: the spec makes no sense
        :raises RunFailedError: it could not be started
        """
        spec.check()
        done = await anyio.run_process(
            [sys.executable, "-m", "craterun", "run", "--detach", *_options(spec)],
            env={**os.environ, "CRATERUN_ROOT": self.store.root},
            check=False,
        )
        if done.returncode != 0:
            message = done.stderr.decode("utf-8", "replace").strip().removeprefix("craterun: ")
            raise RunFailedError(message, done.returncode)
        return done.stdout.decode().strip()

    async def execute(
        self,
        container: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        stdin: bytes = b"",
        timeout: float | None = None,  # noqa: ASYNC109  # enforced where the command is
    ) -> Executed:
        """Run a further command in the container, to its end. Cancelled, it is killed with all that
        it has started.

        :param container: id, prefix or name
        :param env: added to the container's own
        :param stdin: what it reads
        :param timeout: seconds after which it is ended, with all that it has started
        :raises NoSuchContainerError: there is none
        :raises ContainerNotRunningError: it has ended
        """
        await self._call(local.running_process, container)
        options = [f"--env={key}={value}" for key, value in (env or {}).items()]
        options += [f"--workdir={workdir}"] if workdir is not None else []
        options += [f"--user={user}"] if user is not None else []
        options += [f"--timeout={timeout}"] if timeout is not None else []
        done = await anyio.run_process(
            [sys.executable, "-m", "craterun", "exec", "-i", *options, container, "--", *command],
            input=stdin,
            env={**os.environ, "CRATERUN_ROOT": self.store.root},
            check=False,
        )
        return Executed(done.returncode, done.stdout, done.stderr)

    async def wait(self, container: str) -> ExitStatus:
        """Until the container has ended and its end is on record. Cancellable at any time.

        :param container: id, prefix or name
        :raises NoSuchContainerError: there is none
        """
        try:
            _, process = await self._call(local.running_process, container)
            pidfd = Fd(open_process(process))
        except (CraterunError, ProcessLookupError):
            pass  # not running: what remains to be waited for takes milliseconds, if anything
        else:
            try:
                await anyio.wait_readable(pidfd.fileno())
            finally:
                pidfd.close()
        return await self._call(local.wait, container)

    async def containers(self) -> Sequence[Observed]:
        """All containers whose records can be read, compared with reality."""
        return await anyio.to_thread.run_sync(self._list)

    async def inspect(self, container: str) -> Observed:
        """One container's record, compared with reality.

        :raises NoSuchContainerError: there is none
        :raises StateError: its record is damaged
        """
        return await anyio.to_thread.run_sync(
            lambda: local.observe(self.store, self.store.load(self.store.resolve(container)))
        )

    async def read_log(self, container: str, stream: Stream) -> bytes:
        """All that the container has written to ``stream`` so far and rotation has not removed.

        :raises NoSuchContainerError: there is none
        :raises CraterunError: it keeps no log
        """
        return await self._call(_read_log, container, stream)

    async def kill(self, container: str, number: int = 9) -> None:
        """Send a signal to the container's first process.

        :raises ContainerNotRunningError: it has ended
        """
        await self._call(local.send_signal, container, number)

    async def pause(self, container: str) -> None:
        """Stop all processes of the container; returns when the last one has stopped.

        :raises ContainerNotRunningError: it has ended
        :raises ContainerPausedError: it is paused already
        :raises UnsupportedHostError: the host cannot freeze it
        """
        await self._call(local.pause, container)

    async def unpause(self, container: str) -> None:
        """Let the processes of a paused container go on.

        :raises ContainerNotRunningError: it has ended
        :raises ContainerNotPausedError: it is not paused
        """
        await self._call(local.unpause, container)

    async def stop(
        self, container: str, *, seconds: float | None = None, number: int | None = None
    ) -> None:
        """Send signal ``number``, and SIGKILL after ``seconds``; returns when it has ended.

        Default for both: what the container was started with.
        """
        results = await self._call(local.stop, [container], number, seconds)
        if isinstance(results[0], CraterunError):
            raise results[0]

    async def remove(self, container: str, *, force: bool = False) -> None:
        """Remove the container with its logs.

        :raises ContainerRunningError: it runs and ``force`` is not set
        """
        await self._call(local.remove, container, force=force)

    def events(
        self,
        conditions: Iterable[str] = (),
        *,
        follow: bool = True,
        since: int | None = None,
        until: int | None = None,
    ) -> EventStream:
        """What happens to containers, whoever started them, from this call on.

            async with client.events(["type=oom"]) as events:
                async for event in events:
                    print(event.id, event.attributes["kills"])

        :param conditions: KEY=VALUE, as ``craterun events --filter`` takes them
        :param follow: wait for more; otherwise the iteration ends with what is known
        :param since: nanoseconds since the epoch: what happened from then on, too; default: only
            what happens from now on or, not to follow, all that is known
        :param until: the same; events from then on are left out, and the iteration ends
        :raises UsageError: a condition is malformed
        :raises StateError: the journal cannot be read
        """
        feed = EventFeed(
            self.store.root, Filter(conditions), since=since, until=until, follow=follow
        )
        return EventStream(feed, follow=follow)

    async def top(self, container: str) -> Sequence[ProcessInfo]:
        """The processes in the container, the oldest first.

        :raises ContainerNotRunningError: it has ended
        """
        from craterun.client import processes

        return await self._call(processes.top, container)

    @asynccontextmanager
    async def stats(
        self, *containers: str, interval: float = 1.0
    ) -> AsyncIterator[AsyncIterator[Sequence[Usage]]]:
        """Sample what containers use, at once and then every ``interval`` seconds.

            async with client.stats("worker") as samples:
                async for sample in samples:
                    print(sample[0].memory_bytes, sample[0].cpu_percent)

        :param containers: ids, prefixes or names; then the samples end when all of them have ended.
            None: whatever runs at the time of each sample, without end
        :raises ContainerNotRunningError: one that was asked for has ended
        :raises NoSuchContainerError: there is none
        """
        from craterun.client.usage import StatsMonitor

        monitor = await self._call(StatsMonitor, containers)
        try:
            if monitor.problems:
                raise monitor.problems[0]
            yield _samples(monitor, interval)
        finally:
            monitor.close()

    async def _call(
        self, function: Callable[Concatenate[Store, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await anyio.to_thread.run_sync(lambda: function(self.store, *args, **kwargs))

    def _list(self) -> list[Observed]:
        records = (r for r in self.store.records() if not isinstance(r, tuple))
        return [local.observe(self.store, record) for record in records]


def _read_log(store: Store, container: str, stream: Stream) -> bytes:
    log = OpenLog(store, container)
    try:
        cursor = LogCursor(log.directory, streams=[stream])
        try:
            cursor.stop_here()
            content = b"".join(piece.data for piece in cursor.read(final=True))
        finally:
            cursor.close()
        log.check_whole()
        return content
    finally:
        log.close()


def _options(spec: Spec) -> list[str]:
    """``spec`` as arguments of the command line."""
    if spec.interactive:
        raise CraterunError("a detached container has no input: interactive cannot be set")
    options = [f"--rootfs={spec.rootfs}", f"--workdir={spec.workdir}"]
    for name in ("name", "hostname", "user"):
        value = getattr(spec, name)
        if value is not None:
            options.append(f"--{name}={value}")
    options += [f"--env={key}={value}" for key, value in spec.env.items()]
    options += spec.limits.options()
    if spec.cgroup_parent is not None:
        options.append(f"--cgroup-parent={spec.cgroup_parent}")
    if spec.oom_score_adj is not None:
        options.append(f"--oom-score-adj={spec.oom_score_adj}")
    if spec.timeout is not None:
        options.append(f"--timeout={spec.timeout}")
    options += [f"--stop-signal={spec.stop_signal}", f"--stop-timeout={spec.stop_seconds}"]
    options += ["--tty"] if spec.terminal else []
    options += ["--restart", str(spec.restart)]
    options += ["--merge-output"] if spec.merge_output else []
    options += ["--init"] if spec.init else []
    options += ["--rm"] if spec.auto_remove else []
    options.append(f"--log-driver={spec.log.driver}")
    if spec.log.driver == "file":
        options.append(f"--log-max-size={spec.log.max_bytes}")
        options.append(f"--log-max-files={spec.log.max_files}")
    return [*options, "--", *spec.command]


async def _samples(monitor: StatsMonitor, interval: float) -> AsyncIterator[Sequence[Usage]]:
    due = anyio.current_time()
    while True:
        sample = await anyio.to_thread.run_sync(monitor.sample)
        if monitor.finished:
            return
        yield sample
        due = max(due + interval, anyio.current_time())
        await anyio.sleep_until(due)
