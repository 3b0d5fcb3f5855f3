"""Attached readers are served by the pump's thread, with every byte once, and without harm."""

from __future__ import annotations

import fcntl
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
import trio

from craterun import Spec, Stream, Supervisor
from craterun.cli.streams import OutputSink, copy_log
from craterun.core import native
from craterun.core import opcodes as op
from craterun.core.logoptions import LogOptions
from craterun.supervisor.container import Container
from craterun.supervisor.pumps import OutputLog
from tests.containers.streams_helpers import (
    Gate,
    add_noise,
    background,
    check_log,
    digest,
    drain,
    output_of,
    read_until,
)

SIZE = 2**21 + 1
TWO_STREAMS = """
i=0
while [ $i -lt 2000 ]; do
    echo "line $i"; echo "a line on the other stream, to have the log rotated" >&2
    i=$((i + 1))
    case $i in *5) sleep 0.002;; esac
done
"""


class Taker:
    """Takes at most so many bytes of what it is offered directly; the rest comes by `receive`."""

    def __init__(self, most: int) -> None:
        self.seen = bytearray()
        self.direct = 0
        self._most = most

    def write_now(self, data: memoryview) -> int:
        """In the pump's thread."""
        part = data[: self._most]
        self.seen += part
        self.direct += len(part)
        return len(part)

    async def take_all(self, container: Container, stream: Stream) -> None:
        """Until the end."""
        reader = container.follow(stream, self.write_now)
        while data := await reader.receive():
            self.seen += data
        assert reader.skipped_bytes == 0
        reader.close()


@pytest.mark.parametrize("most", [0, 1, 1000, 65536, 2**30])
def test_whatever_a_reader_takes_directly_it_gets_every_byte_once(
    rootfs: Path, state_root: Path, most: int
) -> None:
    """Also one that comes when the output has begun, beside others that wait for the log."""
    out, _ = add_noise(rootfs, SIZE)
    script = "head -c 5000 /out.bin; read x </go; tail -c +5001 /out.bin | head -c 1000; "
    script += "read x </go; tail -c +6001 /out.bin"
    takers, plain = [Taker(most), Taker(most)], bytearray()

    async def run(go: Gate) -> Path:
        async with Supervisor(str(state_root)) as supervisor:
            spec = Spec(rootfs=str(rootfs), command=("sh", "-c", script))
            container = await supervisor.start(spec)

            async def follow_plainly() -> None:
                reader = container.follow(Stream.STDOUT)
                while data := await reader.receive():
                    plain.extend(data)
                    if len(plain) == 5000:
                        tasks.start_soon(takers[1].take_all, container, Stream.STDOUT)
                    if len(plain) in (5000, 6000):
                        go.open()
                reader.close()

            async with trio.open_nursery() as tasks:
                tasks.start_soon(takers[0].take_all, container, Stream.STDOUT)
                tasks.start_soon(follow_plainly)
            await container.wait()
            return state_root / container.id

    with Gate(rootfs / "go") as go:
        directory = trio.run(run, go)
    for seen in (takers[0].seen, takers[1].seen, plain):
        assert digest(bytes(seen)) == digest(out)
    check_log(directory, out, b"")
    if most:
        assert takers[0].direct > 0


def test_a_reader_that_leaves_amid_everything_stops_being_served(
    rootfs: Path, state_root: Path
) -> None:
    """What it said its bytes go to may be closed by then, and the number be another file's."""
    closed = False
    late: list[int] = []

    def write_now(data: memoryview) -> int:
        if closed:
            late.append(len(data))
        return len(data)

    async def run() -> Path:
        nonlocal closed
        async with Supervisor(str(state_root)) as supervisor:
            spec = Spec(rootfs=str(rootfs), command=("sh", "-c", "cat /out.bin; cat /out.bin"))
            container = await supervisor.start(spec)
            reader = container.follow(Stream.STDOUT, write_now)
            with trio.move_on_after(0):
                await reader.receive()
            reader.close()
            closed = True
            await container.wait()
            return state_root / container.id

    out, _ = add_noise(rootfs, SIZE)
    directory = trio.run(run)
    assert late == []
    check_log(directory, out + out, b"")


@pytest.mark.skipif(not native.SUPPORTED, reason="no machine code for this machine")
def test_readers_that_come_and_go_get_each_byte_once_from_a_relay(
    rootfs: Path, state_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the log is rotated by what is written to the other stream."""
    relayed = 0
    relay = OutputLog.relayed

    def counted(self: OutputLog, *arguments: Any) -> None:
        nonlocal relayed
        relay(self, *arguments)
        relayed += 1

    async def one(container: Container, seconds: float) -> bytes:
        """What a reader saw that left after so long."""
        outlet, inlet = os.pipe()
        os.set_blocking(outlet, False)
        fcntl.fcntl(inlet, fcntl.F_SETPIPE_SZ, 1 << 20)
        sink = OutputSink(inlet)
        reader = container.follow(Stream.STDOUT, sink.write_now, sink.descriptor)
        with trio.move_on_after(seconds):
            await copy_log(reader, sink)
        assert reader.skipped_bytes == 0
        reader.close()
        sink.close()
        os.close(inlet)
        seen = b""
        while part := os.read(outlet, 1 << 20):
            seen += part
        os.close(outlet)
        return seen

    async def run() -> tuple[list[bytes], list[bytes]]:
        chance = random.Random(3)
        left: list[bytes] = []
        whole: list[bytes] = []
        async with Supervisor(str(state_root)) as supervisor, trio.open_nursery() as tasks:
            options = LogOptions(max_bytes=4096, max_files=1000)
            command = ("sh", "-c", TWO_STREAMS)
            container = await supervisor.start(
                Spec(rootfs=str(rootfs), command=command, log=options)
            )

            async def come_and_go() -> None:
                while container.status is None:
                    await trio.lowlevel.checkpoint()  # there may be nothing to wait for in `one`
                    left.append(await one(container, chance.choice([0, 0.001, 0.01, 0.05])))

            async def stay() -> None:
                whole.append(await one(container, math.inf))

            tasks.start_soon(come_and_go)
            await trio.sleep(0.2)  # there is one reader only in this time
            tasks.start_soon(stay)
            await container.wait()
        return left, whole

    monkeypatch.setattr(OutputLog, "relayed", counted)
    left, (whole,) = trio.run(run)
    assert whole == b"".join(b"line %d\n" % number for number in range(2000))
    assert all(whole.startswith(part) for part in left)
    assert any(left)
    assert relayed > 0


def test_a_supervisor_that_is_cancelled_ends_its_threads(rootfs: Path, state_root: Path) -> None:
    async def run() -> None:
        with trio.fail_after(60):
            async with Supervisor(str(state_root)) as supervisor:
                command = ("sh", "-c", "echo up; read x </go")
                container = await supervisor.start(Spec(rootfs=str(rootfs), command=command))
                taker = Taker(2**30)
                async with trio.open_nursery() as tasks:
                    tasks.start_soon(taker.take_all, container, Stream.STDOUT)
                    while not taker.seen:
                        await trio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
                container.kill()
                await container.wait()

    os.mkfifo(rootfs / "go")
    trio.run(run)


@pytest.mark.parametrize("native_code", ["1", "0"])
def test_output_and_errors_to_one_pipe_that_is_full_reach_the_log(
    rootfs: Path, state_root: Path, monkeypatch: pytest.MonkeyPatch, native_code: str
) -> None:
    """Both streams go directly to one pipe, and each finds it filled by the other (``2>&1``)."""
    monkeypatch.setenv(op.SWITCH, native_code)
    out, err = add_noise(rootfs, SIZE)
    script = "cat /out.bin & cat /err.bin >&2; wait; echo >/written; read x </go; exit 4"
    run = ("run", "--attach", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    read_end, write_end = os.pipe()
    with (
        Gate(rootfs / "go") as go,
        Gate(rootfs / "written") as written,
        background(state_root, *run, stdout=write_end, stderr=write_end) as process,
    ):
        os.close(write_end)
        written.wait()
        go.open()
        ((size, _),) = drain(read_end)
    os.close(read_end)
    assert (process.returncode, size) == (4, len(out) + len(err))
    (directory,) = [path for path in state_root.iterdir() if not path.name.startswith(".")]
    check_log(directory, out, err)


@pytest.mark.parametrize("native_code", ["1", "0"])
def test_a_reader_that_fell_behind_catches_up(
    rootfs: Path, state_root: Path, monkeypatch: pytest.MonkeyPatch, native_code: str
) -> None:
    """Directly, then from the log while the reader sleeps, then directly again."""
    monkeypatch.setenv(op.SWITCH, native_code)
    out, _ = add_noise(rootfs, SIZE)
    script = "echo a; read x </go; cat /out.bin; echo >/written; read x </go; echo b"
    run = ("run", "--attach", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    with (
        Gate(rootfs / "go") as go,
        Gate(rootfs / "written") as written,
        background(state_root, *run) as process,
    ):
        read_until(output_of(process), b"a\n")
        go.open()
        written.wait()
        go.open()
        assert drain(output_of(process)) == [digest(out + b"b\n")]
    assert process.returncode == 0
