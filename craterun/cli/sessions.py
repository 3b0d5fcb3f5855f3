"""run and exec in a server: many of them in the foreground of many users, in one process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext

import trio

from craterun.cli.cidfile import CidFile
from craterun.cli.errors import explained, single_cause
from craterun.cli.foreground import (
    UNKNOWN_EXIT,
    Output,
    accompany,
    accompany_execution,
    final_code,
    final_execution_code,
)
from craterun.cli.served import ExecRequest, Request, decode
from craterun.cli.streams import OutputSink
from craterun.cli.window import our_window
from craterun.core.errors import printable
from craterun.serve.attendance import Peer
from craterun.serve.jobs import Answer
from craterun.serve.server import Server

_MAX_LINES = 256


class PeerConsole:
    """The console of a client. What is said on it is written by `write_lines`, at its pace."""

    shared = True

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        stdin, stdout, stderr = (fd.fileno() for fd in peer.streams)
        self.streams = (stdin, stdout, stderr)
        words = peer.hello.encodings.decode().split()
        self._encodings = {stdout: words[2:4], stderr: words[4:6]}
        self._lines, self._to_write = trio.open_memory_channel[tuple[int, bytes]](_MAX_LINES)

    def complain(self, message: str) -> None:
        """One line on stderr."""
        self._write(self.streams[2], f"craterun: {printable(message)}\n")

    def say(self, line: str) -> None:
        """One line on stdout."""
        self._write(self.streams[1], f"{line}\n")

    def _write(self, number: int, text: str) -> None:
        encoding, errors = self._encodings[number]
        try:
            self._lines.send_nowait((number, text.encode(encoding, errors)))
        except trio.WouldBlock:
            return  # nobody has read any of so many lines

    async def write_lines(self) -> None:
        """Until `close`, when all that was said is written."""
        async for number, line in self._to_write:
            sink = OutputSink(number, shared=True)
            try:
                await sink.write(line)
            finally:
                sink.close()

    def close(self) -> None:
        """Nothing more will be said."""
        self._lines.close()

    def is_watched(self) -> bool:
        """Whether stderr is a terminal."""
        return os.isatty(self.streams[2])

    def window(self) -> tuple[int, int]:
        """(rows, columns) of the terminal."""
        return our_window(self.streams)

    def signals(self) -> AbstractContextManager[AsyncIterator[int]]:
        """What the client was sent and passes on."""
        return nullcontext(self._peer.signals)

    def window_changes(self) -> AbstractContextManager[AsyncIterator[int]]:
        """The same for SIGWINCH."""
        return nullcontext(self._peer.window_changes)


class CommandLineSessions:
    """`serve.server.Sessions` as the command line's ``run`` has them."""

    async def start(self, house: Server, request: bytes) -> Answer:
        """Start a container, or a command in one, in the background."""
        try:
            started = await _start(house, decode(request))
        except Exception as error:
            text, code = explained(single_cause(error)) or (
                f"internal error: {error!r}",
                UNKNOWN_EXIT,
            )
            return Answer("", text, code)
        return Answer(started)

    async def run(self, house: Server, request: bytes, peer: Peer) -> int:
        """Run a container, or a command in one, in the foreground of ``peer``; the exit code."""
        console = PeerConsole(peer)
        code = UNKNOWN_EXIT
        async with trio.open_nursery() as tasks:

            async def leave_when_gone() -> None:
                await peer.gone.wait()
                tasks.cancel_scope.cancel()

            async def say_all() -> None:
                await console.write_lines()
                tasks.cancel_scope.cancel()

            tasks.start_soon(leave_when_gone)
            tasks.start_soon(say_all)
            try:
                code = await _run(house, decode(request), console)
            except Exception as error:
                text, code = explained(single_cause(error)) or (
                    f"internal error: {error!r}",
                    UNKNOWN_EXIT,
                )
                console.complain(text)
            console.close()
        return code


async def _start(house: Server, request: Request) -> str:
    if isinstance(request, ExecRequest):
        return str((await house.execute(request.container, request.spec)).pid)
    container = await house.begin(request.spec)
    await container.recorded()
    return container.id


async def _run(house: Server, request: Request, console: PeerConsole) -> int:
    if isinstance(request, ExecRequest):
        return await _execute(house, request, console)
    spec, attach = request.spec, request.attach
    with CidFile(request.cidfile, claimed=True) as cid, console.signals() as signals:
        container = await house.begin(spec)
        with Output(container, console) if attach else nullcontext() as output:
            if not attach:
                await container.recorded()
            try:
                if request.cidfile is not None:
                    await trio.to_thread.run_sync(cid.write, container.id)
            except Exception:
                container.kill()
                await container.wait()
                raise
            if not attach:
                console.say(container.id)
            tell_oom = attach and not request.quiet
            await accompany(container, spec, signals, output, tell_oom=tell_oom, console=console)
    return final_code(container, tell_oom=tell_oom, console=console)


async def _execute(house: Server, request: ExecRequest, console: PeerConsole) -> int:
    with console.signals() as signals:
        execution = await house.execute(request.container, request.spec)
        try:
            await accompany_execution(execution, request.spec, signals, console)
            status = await execution.wait()
        except BaseException:
            # The client is gone: what it has started ends with it, as without a server.
            execution.kill()
            execution.stop_reading()
            raise
    return final_execution_code(execution, request.spec, status, console)
