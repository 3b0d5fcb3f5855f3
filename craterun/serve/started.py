"""What a server has started for its clients, and what becomes of that at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from craterun.core.spec import Spec
from craterun.linux.hostwatch import HostWatch
from craterun.serve.ending import stop
from craterun.supervisor.container import Container
from craterun.supervisor.execution import Execution
from craterun.supervisor.main import Supervisor

if TYPE_CHECKING:
    from craterun.core.execspec import ExecSpec


class Change:
    """Something may be otherwise than before: whoever waits for that looks again."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def note(self) -> None:
        """It may."""
        self._event.set()
        self._event = trio.Event()

    async def wait(self) -> None:
        """Until the next `note`."""
        await self._event.wait()


class Started:
    """Containers, and commands in containers, of which some are other supervisors'.

    :ivar beginning: how many are being started
    :ivar killing: all are killed, also those that begin from now on
    """

    def __init__(self, supervisor: Supervisor, change: Change) -> None:
        """:param change: told when something has begun or ended"""
        self.beginning = 0
        self._supervisor = supervisor
        self._change = change
        self._host = HostWatch()
        self._containers: dict[str, Container] = {}
        self._executions: set[Execution] = set()
        self.killing = False

    def close(self) -> None:
        """Look at the host no more."""
        self._host.close()

    def __bool__(self) -> bool:
        """Whether anything runs."""
        return bool(self._containers or self._executions)

    async def begin(
        self,
        tasks: trio.Nursery,
        spec: Spec,
        *,
        container_id: str | None = None,
        look_again: bool = True,
    ) -> Container:
        """Start a container.

        :param look_again: the host and root directories may have changed
        :raises CraterunError: whatever `Supervisor.start` raises
        """
        if look_again:
            self._supervisor.look_again(at_host=self._host.has_changed())
        self.beginning += 1
        try:
            container = await self._supervisor.start(spec, container_id=container_id)
            self._containers[container.id] = container
            if self.killing:
                container.kill()
            tasks.start_soon(self._forget_at_end, container)
        finally:
            self.beginning -= 1
            self._change.note()
        return container

    async def _forget_at_end(self, container: Container) -> None:
        await container.wait()
        del self._containers[container.id]
        self._change.note()

    async def execute(self, tasks: trio.Nursery, container: str, spec: ExecSpec) -> Execution:
        """Run a command in a container.

        :param container: id, prefix or name
        :raises CraterunError: whatever `Supervisor.execute` raises
        """
        self.beginning += 1
        try:
            execution = await self._supervisor.execute_spec(container, spec)
            self._executions.add(execution)
            if self.killing:
                execution.kill()
            tasks.start_soon(self._forget_execution, execution)
        finally:
            self.beginning -= 1
            self._change.note()
        return execution

    async def _forget_execution(self, execution: Execution) -> None:
        await execution.wait()
        self._executions.remove(execution)
        self._change.note()

    def kill(self) -> None:
        """For when somebody does not want to wait for their ends, nor for what is yet to begin."""
        self.killing = True
        for container in self._containers.values():
            container.kill()
        for execution in self._executions:
            execution.kill()

    async def stop(self, asked: set[object], tasks: trio.Nursery) -> None:
        """As ``craterun stop`` does; returns at the next change.

        :param asked: who was asked already; added to
        """
        for container in self._containers.values():
            if container not in asked:
                asked.add(container)
                tasks.start_soon(stop, container, self._supervisor.store)
        for execution in self._executions:
            if execution not in asked:
                asked.add(execution)
                tasks.start_soon(execution.stop)
        await self._change.wait()

    async def record(self, recorded: set[str]) -> bool:
        """See to it that a successor finds each container.

        Returns whether there was anything to be done.

        :param recorded: those for which it was done already; added to
        """
        new = [one for one in self._containers.values() if one.id not in recorded]
        for container in new:
            recorded.add(container.id)
            await container.recorded()
        return bool(new)
