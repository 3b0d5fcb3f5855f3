"""What counters and /proc say about OOM kills, and what may be concluded from it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from craterun.core.oom import (
    OomCount,
    binary_size,
    final_text,
    is_doomed,
    kills_text,
    parse_limit,
    parse_oom_kills,
    was_init_killed,
)

V2 = b"low 0\nhigh 0\nmax 41\noom 7\noom_kill 3\noom_group_kill 1\n"
V1 = b"oom_kill_disable 0\nunder_oom 1\noom_kill 2\n"
EXITING = 0x4
UNINTERESTING = 0x400100
START = 8812


def stat(state: str = "S", flags: int = UNINTERESTING, start: int = START, code: int = 0) -> bytes:
    fields = ["0"] * 50
    fields[0], fields[6], fields[19], fields[49] = state, str(flags), str(start), str(code)
    return f"42 (a) b) S {' '.join(fields)}\n".encode().replace(b"b) S ", b"b) ")


def test_the_counter_is_the_one_of_kills_and_not_of_hits() -> None:
    assert parse_oom_kills(V2) == 3
    assert parse_oom_kills(V1) == 2


@pytest.mark.parametrize("content", [b"", b"oom 1\n", b"oom_kill_disable 0\nunder_oom 0\n"])
def test_a_kernel_that_does_not_count_is_no_zero(content: bytes) -> None:
    with pytest.raises(ValueError, match="oom_kill"):
        parse_oom_kills(content)


def test_limits_of_both_versions() -> None:
    assert parse_limit(b"max\n") is None
    assert parse_limit(b"9223372036854771712\n") is None
    assert parse_limit(b"16777216\n") == 16777216


def test_a_process_that_lives_is_not_doomed() -> None:
    assert not is_doomed(stat(), START)
    assert not is_doomed(stat("R"), START)
    assert not is_doomed(stat("T", code=signal.SIGSTOP), START)


@pytest.mark.parametrize(
    "content",
    [stat("Z"), stat("X"), stat(flags=UNINTERESTING | EXITING), stat("R", code=9), stat(start=1)],
)
def test_one_that_ends_or_was_condemned_or_replaced_is(content: bytes) -> None:
    assert is_doomed(content, START)


def test_this_process_is_read_right() -> None:
    content = Path("/proc/self/stat").read_bytes()
    start = int(content[content.rindex(b")") + 2 :].split()[19])
    assert os.getpid() == int(content.split()[0])
    assert not is_doomed(content, start)
    assert is_doomed(content, start + 1)


KILLED = signal.SIGKILL


@pytest.mark.parametrize(
    ("by", "count", "other", "known", "verdict"),
    [
        # It ended by itself, or by another signal: whatever was killed was somebody else.
        (None, OomCount(0), False, True, False),
        (None, OomCount(3), False, True, False),
        (signal.SIGTERM, OomCount(3), False, True, False),
        # SIGKILL without a kill by the kernel: somebody's kill -9.
        (KILLED, OomCount(0), False, True, False),
        (KILLED, OomCount(0), True, True, False),
        # SIGKILL and a kill that cannot have been another's.
        (KILLED, OomCount(1), False, True, True),
        (KILLED, OomCount(3, cleared=2), False, True, True),
        # A child was killed, and much later somebody killed the first process.
        (KILLED, OomCount(2, cleared=2), False, True, False),
        # Both at once, or nobody saw it.
        (KILLED, OomCount(1), True, True, None),
        (KILLED, OomCount(None), False, True, None),
        (None, OomCount(1), False, False, None),
        (None, OomCount(1, cleared=1), False, False, False),
    ],
)
def test_the_verdict(
    by: int | None, count: OomCount, other: bool, known: bool, verdict: bool | None
) -> None:
    assert was_init_killed(by, count, other_sigkill=other, status_known=known) is verdict


def test_sizes_and_counts_for_people() -> None:
    assert [binary_size(n) for n in (16 << 20, 3 << 29, 4096, 4000, 1 << 40)] == [
        "16 MiB", "1.5 GiB", "4 KiB", "3.9 KiB", "1024 GiB",
    ]  # fmt: skip
    assert binary_size(1000) == "1000 bytes"
    assert (kills_text(1), kills_text(2)) == ("1 OOM kill", "2 OOM kills")
    assert final_text(2, 16 << 20, init_killed=True) == (
        "the memory limit of 16 MiB was hit: 2 OOM kills; its first process was killed"
    )
    assert "host or a parent" in final_text(1, None, init_killed=False)
    assert "unknown" in final_text(1, None, init_killed=None)
