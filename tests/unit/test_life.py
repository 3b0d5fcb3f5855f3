"""States and the order they come in, exit statuses, and the identity of a process."""

from __future__ import annotations

import os

import pytest

from craterun.core.life import ExitStatus, Process, State, may_follow
from tests.unit.builders import ID, make_record

_LEGAL = {
    ("created", "running"),
    ("created", "stopped"),
    ("running", "paused"),
    ("running", "restarting"),
    ("running", "stopped"),
    ("restarting", "running"),
    ("restarting", "stopped"),
    ("paused", "running"),
    ("paused", "stopped"),
}


@pytest.mark.parametrize("before", list(State))
@pytest.mark.parametrize("after", list(State))
def test_only_the_documented_transitions_are_legal(before: State, after: State) -> None:
    assert may_follow(before, after) == ((before.value, after.value) in _LEGAL)


@pytest.mark.parametrize("code", range(256))
def test_an_exit_code_is_passed_on_unchanged(code: int) -> None:
    status = ExitStatus.from_siginfo(os.CLD_EXITED, code)
    assert (status.exit_code, status.signal) == (code, None)
    assert str(status) == f"exit code {code}"


@pytest.mark.parametrize("si_code", [os.CLD_KILLED, os.CLD_DUMPED])
@pytest.mark.parametrize("number", range(1, 65))
def test_a_death_by_signal_is_128_plus_its_number(si_code: int, number: int) -> None:
    status = ExitStatus.from_siginfo(si_code, number)
    assert (status.exit_code, status.signal) == (128 + number, number)
    assert str(status).startswith("killed by ")


def test_an_exit_with_137_is_told_apart_from_a_kill() -> None:
    by_itself = ExitStatus.from_siginfo(os.CLD_EXITED, 137)
    killed = ExitStatus.from_siginfo(os.CLD_KILLED, 9)
    assert by_itself.exit_code == killed.exit_code
    assert (str(by_itself), str(killed)) == ("exit code 137", "killed by SIGKILL")


def test_an_unseen_exit_is_unknown_and_not_zero() -> None:
    assert str(ExitStatus(None)) == "unknown exit code"


def test_a_record_names_its_process_only_if_it_can_be_told_from_others() -> None:
    record = make_record(pid=7, start_time=8, boot_id="b")
    assert record.process == Process(7, 8, "b")
    for missing in ("pid", "start_time", "boot_id"):
        assert make_record(**{missing: None}).process is None


def test_a_process_that_started_at_boot_still_has_a_start_time() -> None:
    assert make_record(start_time=0).process is not None


def test_the_short_id_is_the_beginning_of_the_id() -> None:
    assert make_record().short_id == ID[:12]
