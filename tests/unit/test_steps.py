"""The plan's structs, their executor, and the wire between the two agree with each other."""

from __future__ import annotations

import inspect
import marshal
import typing
from typing import Any

import msgspec
import pytest

from craterun.core import opcodes as op
from craterun.core import steps as s
from craterun.keeper import child, wire
from tests.unit.builders import HOSTILE, all_run_plans, make_exec_plan

PLANS = {**all_run_plans(), "exec": make_exec_plan()}
KINDS = sorted(s.Step.__subclasses__(), key=lambda kind: kind.__name__)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
OPCODES = {name: value for name, value in vars(op).items() if name.startswith("OP_")}


def opcode(kind: type[s.Step]) -> int:
    tag = kind.__struct_config__.tag
    assert isinstance(tag, int)
    return tag


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
def test_every_step_has_an_executor_that_takes_its_fields(kind: type[s.Step]) -> None:
    executor = child._STEPS[opcode(kind)]
    parameters = list(inspect.signature(executor).parameters)[1:]
    assert parameters.__len__() == len(kind.__struct_fields__)


def test_there_is_one_step_and_one_executor_for_each_opcode() -> None:
    assert len(set(OPCODES.values())) == len(OPCODES)
    assert sorted(opcode(kind) for kind in KINDS) == sorted(OPCODES.values())
    assert sorted(child._STEPS) == sorted(OPCODES.values())
    assert len(set(child._STEPS.values())) == len(child._STEPS)


def test_every_step_is_used_by_some_plan() -> None:
    used = {type(step) for plan in PLANS.values() for step in plan.steps}
    assert used == set(KINDS)


def test_messages_of_both_directions_have_numbers_of_their_own() -> None:
    numbers = [value for name, value in vars(op).items() if name.startswith("MSG_")]
    assert len(numbers) == 7
    assert len(set(numbers)) == len(numbers)


def test_every_slot_is_one_that_the_child_has_room_for() -> None:
    slots = {value for name, value in vars(op).items() if name.startswith("SLOT_")}
    assert slots == set(range(op.SLOTS))


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


# --- on the wire ----------------------------------------------------------------------------------


def plain(value: object) -> bool:
    """Whether ``value`` holds nothing but what marshal gives back as it was."""
    if isinstance(value, list | tuple):
        return all(plain(item) for item in value)
    return value is None or type(value) in (int, bool, bytes)


def nested(value: object) -> object:
    """Lists and tuples alike as tuples, so that the two compare equal."""
    if isinstance(value, list | tuple):
        return tuple(nested(item) for item in value)
    return value


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_a_plan_arrives_at_the_keeper_with_the_same_opcodes_and_fields(plan: s.LaunchPlan) -> None:
    body = msgspec.to_builtins(plan, builtin_types=(bytes,))
    data, memfd = wire.encode((op.MSG_LAUNCH, 0, 0, b"", body))
    assert memfd == -1
    arrived = marshal.loads(data[1:])
    assert plain(arrived)
    steps, clone_flags, cgroup, stdin, owner = arrived[4]
    assert (clone_flags, cgroup, stdin, owner) == (
        plan.clone_flags,
        plan.cgroup,
        plan.stdin,
        plan.owner,
    )
    assert len(steps) == len(plan.steps)
    for (number, *fields), step in zip(steps, plan.steps, strict=True):
        assert number == opcode(type(step))
        assert nested(fields) == msgspec.structs.astuple(step)


def test_the_environment_arrives_in_pairs_as_the_child_makes_a_dict_of_it() -> None:
    body = msgspec.to_builtins(make_exec_plan(), builtin_types=(bytes,))
    arrived = marshal.loads(wire.encode((body,))[0][1:])[0]
    environment = dict(arrived[0][-1][3])
    assert environment[b"A"] == b"1"
    assert environment[b"HOME"] == b"/home/alice"
