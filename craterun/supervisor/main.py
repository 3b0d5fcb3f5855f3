"""The supervisor: starts containers through the keeper and looks after each in its own task."""

from __future__ import annotations

import logging
import os
import resource
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING

import trio

from craterun.core.errors import CraterunError, KeeperDiedError
from craterun.core.phases import Asked
from craterun.core.restart import Condition
from craterun.core.spec import HostFacts, Spec
from craterun.linux import cgroup
from craterun.linux.shortage import explained
from craterun.linux.userns import require_root
from craterun.state.store import Store, default_root
from craterun.supervisor.admission import Admission
from craterun.supervisor.container import AtEnd, Container
from craterun.supervisor.execution import Execution, see_through
from craterun.supervisor.launched import Launched
from craterun.supervisor.link import KeeperLink
from craterun.supervisor.lives import Relaunch, launch_container, running_record
from craterun.supervisor.preparation import Preparation, Prepared
from craterun.supervisor.services import Services

if TYPE_CHECKING:
    from craterun.core.execspec import ExecSpec

logger = logging.getLogger("craterun")


class Supervisor:
    """Runs containers, as many as the host can carry, in one trio program.

    An async context manager: leaving it waits for the containers; leaving it by an exception or by
    cancellation kills them first. Either way all output is in the logs, all records are written and
    the keeper is gone afterwards.

    :param root: the state directory; default: CRATERUN_ROOT, or /var/lib/craterun for root, or
        ~/.craterun for others
    :param link: a keeper that was started earlier, to have it ready sooner; owned from now on
    :param max_parallel_starts: see `Admission`
    :raises UnsupportedHostError: the kernel is too old
    :raises UsageError: ``max_parallel_starts`` is less than 1
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        link: KeeperLink | None = None,
        max_parallel_starts: int | None = None,
    ) -> None:
        self._admission = Admission(max_parallel_starts)
        self.store = Store(root if root is not None else default_root())
        self._preparation = Preparation(self.store)
        self._keeper = link
        self._services: Services | None = None
        self._containers: set[Container] = set()
        self._ending = False
        self._hosted: trio.Nursery | None = None
        self._tasks: trio.Nursery | None = None
        self._context: AbstractAsyncContextManager[None] | None = None

    async def __aenter__(self) -> Supervisor:
        self._services = Services(self._keeper or KeeperLink.spawn(), self.store.root, self.facts)
        raise_open_files()  # after the keeper was started: containers get what we got
        self._context = self._serve(self._services)
        await self._context.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._context is not None
        try:
            return await self._context.__aexit__(kind, error, traceback)
        except BaseExceptionGroup as group:
            if error is not None and _only_leaf(group) is error:
                return False  # raised by the caller: let it go on as it is, not wrapped
            raise

    @asynccontextmanager
    async def _serve(self, services: Services) -> AsyncIterator[None]:
        try:
            async with services.serving(), trio.open_nursery() as outer:
                begun, leaving = trio.Event(), trio.Event()
                outer.start_soon(self._host, begun, leaving)
                with trio.CancelScope(shield=True):
                    await begun.wait()
                try:
                    async with trio.open_nursery() as self._tasks:
                        try:
                            yield
                        except BaseException:
                            self._kill_all()
                            raise
                finally:
                    leaving.set()
        finally:
            self._services = None
            cgroup.remove_parents(self.facts)

    async def _host(self, begun: trio.Event, leaving: trio.Event) -> None:
        """The containers' tasks, until the last one has ended after ``leaving``.

        Shielded: to be cancelled only means SIGKILL for the containers, and everything that follows
        an end happens all the same.
        """
        async with trio.open_nursery() as guard:
            guard.start_soon(self._kill_when_cancelled)
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as self._hosted:
                    begun.set()
                    await leaving.wait()
            guard.cancel_scope.cancel()

    async def _kill_when_cancelled(self) -> None:
        """For when the block has been left already and its end is being waited for."""
        try:
            await trio.sleep_forever()
        finally:
            self._kill_all()

    def _kill_all(self) -> None:
        self._ending = True
        for container in self._containers:
            container.kill()

    def _running(self) -> tuple[Services, trio.Nursery]:
        if self._services is None or self._hosted is None:
            raise CraterunError("this supervisor is not open: use it inside its async with block")
        return self._services, self._hosted

    @property
    def facts(self) -> HostFacts:
        """What this host can do."""
        return self._preparation.facts

    @property
    def keeper_died(self) -> bool:
        """Whether nothing can be started any more."""
        return self._services is not None and self._services.link.dead

    async def wait_keeper_death(self) -> KeeperDiedError:
        """Until `keeper_died`; what there is to say then."""
        services, _ = self._running()
        return await services.link.wait_death()

    def look_again(self, *, at_host: bool) -> None:
        """What was found out about root directories is forgotten, and the host is looked at again.

        For programs that live so long that either may have become another one.

        :param at_host: there is a reason to; it takes half a millisecond
        """
        self._preparation.look_again(at_host=at_host)

    # --- run --------------------------------------------------------------------------------------

    async def start(
        self, spec: Spec, *, at_end: AtEnd | None = None, container_id: str | None = None
    ) -> Container:
        """Start a container; returns when its command was executed.

        It may have to wait until fewer others are being started (``max_parallel_starts``); that can
        be cancelled, and nothing was begun. Starting itself is not cancelled half-way: it takes
        milliseconds, and ends with either a running container or nothing.

        :param at_end: called with the final record, which it may change before it is written
        :param container_id: an id that no other container has; default: a random one
        :raises NeedsRootError: this process is not root
        :raises UsageError: the spec makes no sense, or names a user or directory that is not there
        :raises RootfsError: the rootfs is not fit
        :raises NameInUseError: the name is taken
        :raises StateError: the state directory cannot be written
        :raises CommandNotFoundError: no such command in the container
        :raises CommandNotExecutableError: it is there but does not execute
        :raises LimitError: a limit cannot be enforced here; the message says why
        :raises KernelRefusedError: the kernel refused a step; the message says which
        :raises KeeperDiedError: the keeper is gone
        """
        asked = time.monotonic_ns()
        preparation = self._preparation
        kind = preparation.check(spec)
        require_root()
        self._running()
        async with self._admission:
            services, hosted = self._running()  # it may have been closed meanwhile
            with explained("start the container"), trio.CancelScope(shield=True):
                root, identity = await preparation.examine(spec)
                under_way = self._admission.under_way
                prepared = await services.clerk.do(
                    preparation.prepare, spec, kind, root, identity, container_id, under_way
                )
                sent = time.monotonic_ns()
                try:
                    launched = await self._launch(services, prepared)
                    times = Asked(asked, prepared.begun, sent)
                    container = await self._take_charge(services, prepared, launched, times, at_end)
                except BaseException:
                    await services.clerk.do(preparation.undo, prepared)
                    raise
                # From here on, nothing is awaited: it is looked after, or was never started.
                logger.debug("%s: pid %d executed %r", container.id, launched.pid, spec.command)
                self._containers.add(container)
                hosted.start_soon(self._look_after, container)
        if self._ending:
            container.kill()
        return container

    async def _take_charge(
        self,
        services: Services,
        prepared: Prepared,
        launched: Launched,
        times: Asked,
        at_end: AtEnd | None,
    ) -> Container:
        try:
            return Container(
                services,
                self.store,
                running_record(prepared.record, launched, times),
                launched,
                prepared.directory,
                at_end=at_end,
                relaunch=self._relaunch(services, prepared),
            )
        except BaseException:
            await services.link.drop(launched)
            raise

    # Ctrl-C, where a program leaves it to trio, is for the program and not for a container's task.
    @trio.lowlevel.enable_ki_protection
    async def _look_after(self, container: Container) -> None:
        await look_after(container)
        self._containers.discard(container)

    async def _launch(
        self, services: Services, prepared: Prepared, replacing: Launched | None = None
    ) -> Launched:
        record = prepared.record
        try:
            return await launch_container(
                services.link,
                prepared.plan,
                self.store.path(record.id),
                prepared.directory.fileno(),
                replacing,
            )
        except CraterunError as error:
            logger.debug("%s: %s", record.id, error)
            self._preparation.doubt(record.rootfs)
            raise

    def _relaunch(self, services: Services, prepared: Prepared) -> Relaunch | None:
        if prepared.record.restart.condition is Condition.NO:
            return None

        async def relaunch(ended: Launched) -> Launched:
            async with self._admission:
                return await self._launch(services, prepared, ended)

        return relaunch

    # --- exec -------------------------------------------------------------------------------------

    async def execute(
        self,
        container_id: str,
        command: tuple[str, ...],
        *,
        env: dict[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        stdin: bool = False,
        window: tuple[int, int] | None = None,
        detached: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109  # of the command, not of this call
        stop_signal: int = signal.SIGTERM,
        stop_seconds: float = 10.0,
    ) -> Execution:
        """Run a further command in a running container, whoever supervises that.

        :param container_id: id, prefix or name
        :param env: added to the container's own
        :param workdir: default: the container's own
        :param user: default: root
        :param window: (rows, columns) of a terminal to get instead of pipes
        :param detached: without any stream; it lives on if this process is killed, unless it has a
            ``timeout``
        :param timeout: seconds after which it is ended, with all that it has started
        :param stop_signal: what it gets first then
        :param stop_seconds: how long it has to end then, before SIGKILL
        :raises UsageError: the request makes no sense
        :raises ContainerNotRunningError: the container has ended
        :raises LimitError: the container's limits could not be made to hold for the command
        :raises ContainerPausedError: it is paused
        :raises CommandNotFoundError: no such command in the container
        :raises CommandNotExecutableError: it is there but does not execute
        :raises KernelRefusedError: the kernel refused a step; the message says which
        """
        # Imported here: most supervisors never execute a further command.
        from craterun.core.execspec import ExecSpec

        spec = ExecSpec(
            command=command,
            env=env or {},
            workdir=workdir,
            user=user,
            stdin=stdin,
            window=window,
            detached=detached,
            timeout=timeout,
            stop_signal=stop_signal,
            stop_seconds=stop_seconds,
        )
        return await self.execute_spec(container_id, spec)

    async def execute_spec(self, container_id: str, spec: ExecSpec) -> Execution:
        """As `execute`, of what is asked for in one piece."""
        from craterun.supervisor import executing

        spec.check()
        services, _ = self._running()
        assert self._tasks is not None
        with explained("run the command"), trio.CancelScope(shield=True):
            known = [container.record for container in self._containers]
            prepared = await trio.to_thread.run_sync(
                executing.prepare, self.store, self.facts, container_id, spec, known
            )
            execution = await executing.launch(services, prepared, spec)
        logger.debug("pid %d executes %r in a running container", execution.pid, spec.command)
        self._tasks.start_soon(
            see_through, execution, services, self.store.root, prepared.record, spec.command
        )
        return execution


def raise_open_files() -> None:
    """As many descriptors as the hard limit allows: a container takes five of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def look_after(container: Container) -> None:
    """Supervise; an error of ours ends this container and no other."""
    try:
        await container.supervise()
    except (Exception, ExceptionGroup) as error:
        logger.exception("supervision of container %s failed", container.id)
        container.kill()
        container.give_up(CraterunError(f"supervision failed: {error!r}"))


def _only_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """The single exception at the bottom of nested groups, if there is only one."""
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup):
        if len(inner.exceptions) != 1:
            return None
        inner = inner.exceptions[0]
    return inner
