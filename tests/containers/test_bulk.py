"""Much output, on the way that it takes without a copy in our memory: every byte, for everybody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from craterun import Spec, Stream, Supervisor
from craterun.core.logoptions import LogOptions
from tests.containers.streams_helpers import Gate, add_noise, check_log, digest

SIZE = 2**24 + 1
SCRIPT = "read x </go; dd if=/out.bin bs=1M 2>/dev/null; dd if=/err.bin bs=300k >&2 2>/dev/null"


def count_splices(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each splice(2) of this process into a log moves from now on."""
    moved: list[int] = []
    real = os.splice

    def splice(*arguments: int, **options: int) -> int:
        size = real(*arguments, **options)
        if "offset_dst" in options:
            moved.append(size)
        return size

    monkeypatch.setattr(os, "splice", splice)
    return moved


@pytest.mark.parametrize("segment_bytes", [0, 3_000_001])
def test_what_is_spliced_reaches_log_and_readers_whole(
    rootfs: Path, state_root: Path, monkeypatch: pytest.MonkeyPatch, segment_bytes: int
) -> None:
    """A reader through the event loop, and one that takes little directly, beside the log."""
    out, err = add_noise(rootfs, SIZE)
    moved = count_splices(monkeypatch)
    seen = {stream: bytearray() for stream in Stream}
    direct = bytearray()

    def take_some(data: memoryview) -> int:
        part = data[:50_000]
        direct.extend(part)
        return len(part)

    async def run(go: Gate) -> Path:
        async with Supervisor(str(state_root)) as supervisor:
            log = LogOptions(max_bytes=segment_bytes, max_files=1000)
            spec = Spec(rootfs=str(rootfs), command=("sh", "-c", SCRIPT), log=log)
            container = await supervisor.start(spec)

            async def follow(stream: Stream) -> None:
                reader = container.follow(stream)
                while data := await reader.receive():
                    seen[stream] += data
                assert reader.skipped_bytes == 0
                reader.close()

            async def take_directly() -> None:
                reader = container.follow(Stream.STDERR, take_some)
                while data := await reader.receive():
                    direct.extend(data)
                assert reader.skipped_bytes == 0
                reader.close()

            async with trio.open_nursery() as readers:
                for stream in Stream:
                    readers.start_soon(follow, stream)
                readers.start_soon(take_directly)
                await trio.testing.wait_all_tasks_blocked()
                go.open()
            await container.wait()
            assert container.record.error is None
            return state_root / container.id

    with Gate(rootfs / "go") as go:
        directory = trio.run(run, go)
    assert sum(moved) > 0
    assert digest(bytes(seen[Stream.STDOUT])) == digest(out)
    assert digest(bytes(seen[Stream.STDERR])) == digest(err)
    assert digest(bytes(direct)) == digest(err)
    if segment_bytes:
        for stream, content in ((Stream.STDOUT, out), (Stream.STDERR, err)):
            name = f"{stream.name.lower()}.log"
            paths = [*sorted(directory.glob(f"{name}.*")), directory / name]
            assert max(path.stat().st_size for path in paths) <= segment_bytes
            assert digest(b"".join(path.read_bytes() for path in paths)) == digest(content)
    else:
        check_log(directory, out, err)
