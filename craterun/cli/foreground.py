"""A container in the foreground of a terminal or script: its streams and signals are ours."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, nullcontext
from typing import Protocol

import trio

from craterun.cli.console import OWN, Console
from craterun.cli.streams import OutputSink, copy_log, copy_output, feed_input
from craterun.cli.terminal import shown
from craterun.core.errors import ContainerNotRunningError
from craterun.core.execspec import ExecSpec
from craterun.core.life import ExitStatus
from craterun.core.oom import final_text, live_text
from craterun.core.spec import Spec
from craterun.core.units import signal_name
from craterun.keeper.spawn import SpawnedKeeper
from craterun.state.logs import Stream
from craterun.supervisor.container import Container
from craterun.supervisor.doorway import input_shared
from craterun.supervisor.execution import Execution
from craterun.supervisor.link import KeeperLink
from craterun.supervisor.main import Supervisor
from craterun.supervisor.reader import LogReader

logger = logging.getLogger("craterun")

INSIST_SECONDS = 1.0
"""The same signal twice within this time kills: PID 1 may be deaf to the first."""

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
UNKNOWN_EXIT = 125
TIMED_OUT = 124


class _Process(Protocol):
    """What a container and an exec have in common."""

    def send_signal(self, number: int) -> None: ...

    def kill(self) -> None: ...


async def run_container(
    spec: Spec,
    root: str,
    keeper: SpawnedKeeper,
    *,
    attach: bool,
    tell_oom: bool,
    started: Callable[[Container], None],
) -> int:
    """Start, stay until the end, and return the exit code.

    :param attach: copy the output to our stdout and stderr
    :param tell_oom: say on stderr when the kernel has killed processes for want of memory
    :param started: called once the command was executed and that is on record
    """
    with OWN.signals() as signals:
        async with Supervisor(root, link=KeeperLink(*keeper)) as supervisor:
            container = await supervisor.start(spec)
            with Output(container, OWN) if attach else nullcontext() as output:
                if not attach:
                    await container.recorded()
                started(container)
                await accompany(container, spec, signals, output, tell_oom=tell_oom, console=OWN)
    return final_code(container, tell_oom=tell_oom, console=OWN)


async def accompany(
    container: Container,
    spec: Spec,
    signals: AsyncIterator[int],
    output: Output | None,
    *,
    tell_oom: bool,
    console: Console,
) -> None:
    """Connect a container that has just been started with its user, until its end.

    :param output: of the container; None: the user does not see it
    """
    shows = spec.terminal and output is not None
    async with (
        forwarding(signals, container, "container", console),
        _terminal(container, shows, typing=spec.interactive, console=console),
        trio.open_nursery() as streams,
    ):
        if spec.interactive and not spec.terminal:
            streams.start_soon(_feed, container, console)
        if tell_oom:
            streams.start_soon(_tell_oom, container, console)
        if output is not None:
            await output.copy()
        await container.wait()
        streams.cancel_scope.cancel()
    # Also after a signal made us leave the block before the reader had taken everything.
    await container.wait()


def final_code(container: Container, *, tell_oom: bool, console: Console) -> int:
    """Say what there is to say of a container that has ended; our exit code."""
    record = container.record
    if tell_oom and record.oom_kills:
        text = final_text(record.oom_kills, container.memory_limit, record.init_oom_killed)
        console.complain(f"container {container.id}: {text}")
    if record.error:
        console.complain(f"container {container.id}: {record.error}")
    if record.timed_out:
        console.complain(
            f"container {container.id}: stopped, having run for {record.timeout:g} s (--timeout)"
        )
        return TIMED_OUT
    return exit_code(container.status or ExitStatus(None))


def _terminal(
    process: Container | Execution, wanted: bool, *, typing: bool, console: Console = OWN
) -> AbstractAsyncContextManager[None]:
    """Show the terminal of ``process`` on ours, if that is ``wanted``."""
    if not wanted:
        return nullcontext()
    return shown(process.resize, process.stdin if typing else None, console=console)


async def _feed(container: Container, console: Console) -> None:
    """Copy our stdin to the container; meanwhile, those who attach may type as well."""
    if container.stdin.closed:
        return  # it has ended before its start was on record
    async with input_shared(container.id, container.stdin):
        await feed_input(container.stdin, console.streams[0])


async def _tell_oom(container: Container, console: Console) -> None:
    """Of what the container survives, at once; its end is told of at its end."""
    kills = 0
    while True:
        kills = await container.wait_oom(kills)
        if container.survives_oom:
            text = live_text(kills, container.memory_limit)
            console.complain(f"container {container.id}: {text}")


class Output:
    """All output of a container on its way to its user. A context manager, to close it.

    Made right after the start, before anything is awaited, it misses nothing. Of a container that
    has ended by then, the log is closed, and with --rm there is none any more.
    """

    def __init__(self, container: Container, console: Console) -> None:
        self._console = console
        self._ways: list[tuple[LogReader, OutputSink]] = []
        self._open = ExitStack()
        with ExitStack() as opened:
            for stream in Stream:
                sink = OutputSink(console.streams[int(stream)], shared=console.shared)
                opened.callback(sink.close)
                direct = sink.write_now if sink.is_prompt else None
                reader = container.follow(stream, direct, sink.descriptor)
                opened.callback(reader.close)
                self._ways.append((reader, sink))
            self._open = opened.pop_all()

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    async def copy(self) -> None:
        """Until the end of both streams: that of the container, or of our readers."""
        async with trio.open_nursery() as copies:
            for reader, sink in self._ways:
                copies.start_soon(self._copy, reader, sink)

    async def _copy(self, reader: LogReader, sink: OutputSink) -> None:
        name = reader.stream.name.lower()
        try:
            await copy_log(reader, sink)
        except OSError as error:
            self._console.complain(f"{name} of the container cannot be read: {error}")
        finally:
            reader.close()
            sink.close()
        if sink.error is not None:
            self._console.complain(f"cannot write to {name}: {sink.error.strerror}")
        if reader.skipped_bytes:
            self._console.complain(f"{reader.skipped_bytes} bytes of {name} were skipped")


@asynccontextmanager
async def forwarding(
    signals: AsyncIterator[int], process: _Process, what: str, console: Console = OWN
) -> AsyncIterator[None]:
    """Forward signals to ``process`` for as long as the block runs.

    A second one of the same kind within `INSIST_SECONDS` kills the process. One that comes when the
    process has ended already, while a stopped reader still keeps us, ends the block.
    """
    async with trio.open_nursery() as nursery:

        async def forward() -> None:
            last: dict[int, float] = {}
            async for number in signals:
                now = trio.current_time()
                insisted = number in _ENDING and now - last.get(number, -1e9) < INSIST_SECONDS
                last[number] = now
                logger.debug("received %s", signal_name(number))
                try:
                    if insisted:
                        process.kill()
                    process.send_signal(number)
                except ContainerNotRunningError:
                    if number in _ENDING:
                        nursery.cancel_scope.cancel()
                        return
                if not insisted and number == signal.SIGINT and console.is_watched():
                    console.complain(
                        f"sent {signal_name(number)} to the {what}; "
                        "press Ctrl-C twice within a second to kill it"
                    )

        nursery.start_soon(forward)
        yield
        nursery.cancel_scope.cancel()


def exit_code(status: ExitStatus) -> int:
    """What our own process exits with."""
    return UNKNOWN_EXIT if status.exit_code is None else status.exit_code


async def exec_command(container: str, spec: ExecSpec, root: str, keeper: SpawnedKeeper) -> int:
    """Run a command in a running container, stay until its end, and return the exit code."""
    with OWN.signals() as signals:
        async with Supervisor(root, link=KeeperLink(*keeper)) as supervisor:
            execution = await supervisor.execute_spec(container, spec)
            await accompany_execution(execution, spec, signals, OWN)
            status = await execution.wait()
    return final_execution_code(execution, spec, status, OWN)


async def accompany_execution(
    execution: Execution, spec: ExecSpec, signals: AsyncIterator[int], console: Console
) -> None:
    """Connect a command that has just been started in a container with its user, until its end."""

    async def copy(stream: Stream) -> None:
        sink = OutputSink(console.streams[int(stream)], shared=console.shared)
        try:
            await copy_output(lambda: execution.receive(stream), sink)
            # A reader that went away must not leave the command blocked on a full pipe.
            while sink.gone and await execution.receive(stream):
                pass
        finally:
            sink.close()

    async with (
        forwarding(signals, execution, "command", console),
        _terminal(execution, spec.window is not None, typing=spec.stdin, console=console),
        trio.open_nursery() as streams,
    ):
        if spec.stdin and spec.window is None:
            streams.start_soon(feed_input, execution.stdin, console.streams[0])
        async with trio.open_nursery() as copies:
            for stream in execution.streams:
                copies.start_soon(copy, stream)
        await execution.wait()
        streams.cancel_scope.cancel()
    execution.stop_reading()  # if a signal made us leave before the end of the output


def final_execution_code(
    execution: Execution, spec: ExecSpec, status: ExitStatus, console: Console
) -> int:
    """Say what there is to say of a command that has ended in a container; our exit code."""
    if execution.timed_out:
        console.complain(
            f"command in container {execution.container_id}: stopped, having run for "
            f"{spec.timeout:g} s (--timeout)"
        )
        return TIMED_OUT
    return exit_code(status)
