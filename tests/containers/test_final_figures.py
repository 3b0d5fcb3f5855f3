"""What a container has used at most, told after its end."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
import trio

from craterun import Spec, Supervisor
from craterun.core.life import Record
from craterun.core.limits import Limits
from tests.containers.streams_helpers import ids, metadata

BURN = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
MEBIBYTE = 1 << 20


@pytest.mark.cgroup_v2
async def test_the_final_record_tells_the_peak_of_memory_and_the_processor_time(
    rootfs: Path, state_root: Path
) -> None:
    script = f"head -c {16 * MEBIBYTE} /dev/zero | tail -c {16 * MEBIBYTE} >/dev/null; {BURN}"
    async with Supervisor(state_root) as supervisor:
        for command in (("sh", "-c", script), ("true",)):
            spec = Spec(rootfs=str(rootfs), command=command, limits=Limits(memory=64 * MEBIBYTE))
            await (await supervisor.start(spec)).wait()
    busy, idle = sorted(
        (metadata(state_root / name) for name in ids(state_root)),
        key=lambda record: -record["cpu_seconds"],
    )
    assert 16 * MEBIBYTE <= busy["memory_peak_bytes"] <= 64 * MEBIBYTE
    assert 0 < idle["memory_peak_bytes"] < 16 * MEBIBYTE
    assert 0 < idle["cpu_seconds"] < busy["cpu_seconds"]


async def test_whoever_sees_the_final_record_finds_the_whole_log_and_can_have_both_removed(
    rootfs: Path, state_root: Path
) -> None:
    seen: list[bytes] = []

    def at_end(record: Record, folder: int) -> Record:
        log = os.open("stdout.log", os.O_RDONLY, dir_fd=folder)
        seen.append(os.read(log, 100))
        os.close(log)
        assert record.exit_code == len(seen)
        return record if len(seen) == 1 else msgspec.structs.replace(record, auto_remove=True)

    async with Supervisor(state_root) as supervisor:
        for code in (1, 2):
            command = ("sh", "-c", f"echo {code}; exit {code}")
            with trio.fail_after(60):
                container = await supervisor.start(
                    Spec(rootfs=str(rootfs), command=command), at_end=at_end
                )
                await container.wait()
    assert seen == [b"1\n", b"2\n"]
    (kept,) = ids(state_root)
    assert metadata(state_root / kept)["exit_code"] == 1
