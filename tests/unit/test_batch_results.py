"""Results of a batch: which failure it was, and output that comes back as it was."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from craterun.batch.results import (
    Failure,
    Outcome,
    captured,
    encode_result,
    judge,
    judge_error,
    make_result,
)
from craterun.core.errors import CommandNotFoundError, KernelRefusedError, StateError, UsageError
from craterun.core.life import State
from craterun.core.logoptions import LogOptions
from craterun.core.phases import Phases
from craterun.state.loghead import Head
from craterun.state.logs import Stream
from tests.unit.builders import make_record


def head_of(output: bytes, limit: int, step: int = 7) -> Head:
    head = Head(limit)
    for start in range(0, len(output), step):
        head.add(Stream.STDOUT, memoryview(output)[start : start + step])
    return head


@given(st.binary() | st.text().map(str.encode), st.integers(0, 40))
@example("aä".encode(), 2)
@example("a€".encode(), 3)
@example("a\U0001f600".encode(), 4)
@example(b"a\xc3", 2)
@example(b"\x80\x80\x80\x80\x80", 4)
def test_captured_output_is_exact(output: bytes, limit: int) -> None:
    fields = captured(head_of(output, limit))
    assert fields["stdout_truncated"] == (len(output) > limit)
    assert ("stdout" in fields) != ("stdout_base64" in fields)
    if "stdout" in fields:
        back = str(fields["stdout"]).encode()
        assert output.startswith(back)
        # Nothing is missing but the character that the limit had cut.
        assert len(back) >= min(limit, len(output)) - 3
        assert len(output) > limit or back == output
    else:
        assert base64.b64decode(str(fields["stdout_base64"])) == output[:limit]
        with pytest.raises(UnicodeDecodeError):
            output[:limit].decode()
    assert (fields["stderr"], fields["stderr_truncated"]) == ("", False)


@given(st.text(min_size=1), st.integers(1, 40))
def test_text_that_was_cut_is_still_text(text: str, limit: int) -> None:
    assert "stdout" in captured(head_of(text.encode(), limit))


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"exit_code": 0}, None),
        ({"exit_code": 0, "oom_kills": 1}, None),  # it has survived the death of a child
        ({"exit_code": 3}, Failure.EXIT),
        ({"exit_code": 137, "signal": 9}, Failure.EXIT),
        ({"exit_code": 1, "oom_kills": 1}, Failure.OOM),
        ({"exit_code": 137, "signal": 9, "oom_kills": 1, "init_oom_killed": True}, Failure.OOM),
        ({"exit_code": 0, "timed_out": True}, Failure.TIMEOUT),
        ({"exit_code": None}, Failure.ERROR),
    ],
)
def test_failures_are_told_apart(changes: dict[str, Any], failure: Failure | None) -> None:
    assert judge(make_record(status=State.STOPPED, **changes)) is failure


def test_what_would_fail_again_is_told_apart_from_what_the_host_failed_at() -> None:
    for error in (UsageError("x"), CommandNotFoundError("x")):
        assert judge_error(error).failure is Failure.REFUSED
    for other in (StateError("x"), KernelRefusedError("x", "y"), OSError(28, "x")):
        assert judge_error(other).failure is Failure.ERROR


def test_a_result_is_one_line_with_every_field_and_no_bytes_that_json_cannot_have() -> None:
    record = make_record(
        status=State.STOPPED, exit_code=0, phases_us=Phases(exec=250_000, run=1_000_000)
    )
    outcome = Outcome(failure=None, container="0" * 16, record=record, head=head_of(b"\n", 9))
    result = make_result(3, "k\n", outcome, 1, folder="/r\udcff/0", capture=True)
    line = encode_result(result)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    fields = json.loads(line)
    assert (fields["line"], fields["key"], fields["ok"], fields["stdout"]) == (3, "k\n", True, "\n")
    assert fields["stdout_log"] == "/r\\xff/0/stdout.log"
    assert fields["wall_seconds"] == 1.25
    empty = json.loads(encode_result(make_result(1, None, judge_error(StateError("é\udcff")), 1)))
    assert fields.keys() - empty.keys() == {
        "stdout", "stdout_truncated", "stderr", "stderr_truncated",
    }  # fmt: skip
    assert (empty["failure"], empty["error"]) == ("error", "é\\udcff")


def test_no_log_is_named_that_is_not_there() -> None:
    record = make_record(status=State.STOPPED, exit_code=0, log=LogOptions(driver="none"))
    outcome = Outcome(failure=None, container="0" * 16, record=record)
    assert make_result(1, None, outcome, 1, folder="/r/0").stdout_log is None
    kept = make_result(1, None, outcome, 1, folder="/r/0").kept
    assert (kept, make_result(1, None, outcome, 1).kept) == (True, False)
