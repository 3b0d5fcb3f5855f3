"""Every kind of step has what a step has to have."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest

from craterun.core import opcodes as op
from craterun.core import program
from craterun.core import steps as s
from tests.unit.builders import HOSTILE, all_run_plans, make_exec_plan

PLANS = {
    **all_run_plans(),
    "exec": make_exec_plan(),
    "exec --detach": make_exec_plan(output=False),
}
KINDS = sorted(s.Step.__subclasses__(), key=lambda kind: kind.__name__)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def hostile(kind: type[s.Step]) -> s.Step:
    """A step of ``kind`` whose every name would steer a terminal."""
    hints = typing.get_type_hints(kind)
    samples: dict[Any, Any] = {int: 1, bool: True, bytes: HOSTILE}
    values = [
        samples.get(hints[field.name], (HOSTILE,) if field.name == "arguments" else ())
        for field in msgspec.structs.fields(kind)
    ]
    return kind(*values)


@every_kind
def test_every_step_is_made_of_calls(kind: type[s.Step]) -> None:
    assert kind in program.TRANSLATIONS


def test_every_step_is_used_by_some_plan() -> None:
    used = {type(step) for plan in PLANS.values() for step in plan.steps}
    assert used == set(KINDS)


def test_messages_of_both_directions_have_numbers_of_their_own() -> None:
    numbers = [value for name, value in vars(op).items() if name.startswith("MSG_")]
    assert len(numbers) == 8
    assert len(set(numbers)) == len(numbers)


@every_kind
def test_what_a_step_says_about_itself_steers_no_terminal(kind: type[s.Step]) -> None:
    step = hostile(kind)
    assert step.doing()
    assert step.doing().isprintable()
    assert step.target().isprintable()


def test_a_step_that_names_no_purpose_is_no_step() -> None:
    with pytest.raises(NotImplementedError):
        s.Step().doing()
    assert s.Step().target() == ""
