"""The server's process, from the moment on when it has an event loop."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import msgspec
import trio

from craterun.cli.sessions import CommandLineSessions
from craterun.keeper.spawn import spawn_keeper
from craterun.serve.listener import Listener, notify
from craterun.serve.server import Ours, Server
from craterun.serve.workers import Workers
from craterun.supervisor.link import KeeperLink
from craterun.supervisor.main import Supervisor


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """What a server is to be like.

    :ivar root: the state directory
    :ivar program: see `serve.hello.Hello`
    :ivar essence: see `serve.hello.Circumstances`
    :ivar leave: what a signal means for containers
    """

    root: str
    program: bytes
    essence: tuple[bytes, ...]
    idle_seconds: float | None
    max_starts: int | None
    leave: bool

    def run(
        self, listener: Listener, pid: int, sock: socket.socket, ready: Callable[[], None]
    ) -> None:
        """Serve to the end. If containers are left running, that is the end of this process.

        :param pid: the spawner, with the socket to it; all three are taken
        :param ready: called when clients can come
        """
        workers = Workers(pid, sock)
        ours = Ours(self.program, os.fsencode(os.path.realpath(self.root)), self.essence)
        try:
            trio.run(self._run, ours, listener, workers, ready)
        finally:
            workers.close()

    async def _run(
        self, ours: Ours, listener: Listener, workers: Workers, ready: Callable[[], None]
    ) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            link = KeeperLink(*spawn_keeper())
            async with Supervisor(
                self.root, link=link, max_parallel_starts=self.max_starts
            ) as supervisor:
                server = Server(
                    listener,
                    workers,
                    supervisor,
                    CommandLineSessions(),
                    ours,
                    idle_seconds=self.idle_seconds,
                )
                async with trio.open_nursery() as tasks:

                    async def heed() -> None:
                        async for _ in signals:
                            notify("STOPPING=1")
                            server.end(leave=self.leave)
                            break
                        async for _ in signals:
                            server.kill()

                    tasks.start_soon(heed)
                    ready()
                    if await server.serve():
                        os._exit(0)  # the keeper sees us go without a word: it starts a successor
                    tasks.cancel_scope.cancel()
