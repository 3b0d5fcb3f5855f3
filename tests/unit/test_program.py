"""Programs of system calls: the descriptors they count on are those that the kernel will give."""

from __future__ import annotations

import itertools
import marshal
from collections.abc import Iterator
from typing import Any

import pytest

from craterun.core import mount_steps as m
from craterun.core import opcodes as op
from craterun.core import steps as s
from craterun.core.launchplan import LaunchPlan, Part
from craterun.keeper import child, wire
from craterun.linux import calls
from tests.unit.builders import all_run_plans, make_exec_plan, make_run_plan

PLANS = {
    **all_run_plans(),
    "exec": make_exec_plan(),
    "exec -i": make_exec_plan(stdin=True),
    "exec -t": make_exec_plan(window=(24, 80), oom_score_adj=-5),
}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())

_CLOSE = [name for name, _ in op.CALLS].index("close")
_OPENING = {"openat", "socket", "open_tree", "fsopen", "fsmount", "openat2"}


def code_of(part: Part) -> tuple[Any, ...]:
    return marshal.loads(part.code) if isinstance(part.code, bytes) else part.code


def numbered(plan: LaunchPlan) -> Iterator[tuple[str, tuple[Any, ...], Any, Any, int]]:
    """Every call with its name and its place in its part."""
    for part in plan.parts:
        for place, (call, (_, name)) in enumerate(zip(code_of(part), part.origins, strict=True)):
            yield name, call[1], call[2], call[3], place


def walk(plan: LaunchPlan, fail: bool) -> set[int]:
    """Carry the plan out against a table of descriptors that behaves as open(2) says.

    :param fail: let every call fail that may
    :returns: what is open at the end
    """
    joins = any(isinstance(step, s.JoinNamespaces) for step in plan.steps)
    table = set(range(op.GIVEN_FD + joins + plan.blank + plan.terminal))
    for part in plan.parts:
        rest = iter(zip(code_of(part), part.origins, strict=True))
        for (code, arguments, wanted, lenient), (_, name) in rest:
            if lenient is not None and fail:
                for _ in range(lenient[1]):
                    next(rest)
                continue
            if name in _OPENING:
                assert wanted == next(n for n in itertools.count() if n not in table), name
                table.add(wanted)
            elif code == _CLOSE:
                table.remove(arguments[0])
            elif name == "open_terminal":
                table.remove(arguments[0])  # the socket, once the terminal has gone out by it
            elif name == "close_range":
                table -= set(range(op.ERROR_FD + 1, 1000))
    return table


@every_plan
@pytest.mark.parametrize("fail", [False, True], ids=["all there", "nothing there"])
def test_the_kernel_will_give_the_descriptors_that_a_program_counts_on(
    plan: LaunchPlan, fail: bool
) -> None:
    assert walk(plan, fail) == {0, 1, 2, op.ERROR_FD}


@every_plan
def test_what_may_fail_skips_no_further_than_to_the_end_of_its_part(plan: LaunchPlan) -> None:
    for part in plan.parts:
        code = code_of(part)
        for place, call in enumerate(code):
            if call[3] is not None:
                assert place + call[3][1] < len(code)


@every_plan
def test_a_program_holds_nothing_but_what_the_c_library_takes(plan: LaunchPlan) -> None:
    functions = child._FUNCTIONS
    for part in plan.parts:
        for code, arguments, wanted, _ in code_of(part):
            assert callable(functions[code])
            assert wanted is None or type(wanted) is int
            if code < len(op.CALLS):
                assert all(value is None or type(value) in (int, bytes) for value in arguments)
                # Without prototypes an integer is passed as a C int.
                numbers = [value for value in arguments if isinstance(value, int)]
                assert all(-(2**31) <= number < 2**32 for number in numbers)


def test_every_function_exists_and_has_a_number_of_its_own() -> None:
    assert len(child._FUNCTIONS) == len(op.CALLS) + len(op.SPECIAL)
    assert len({name for name, _ in op.CALLS}) == len(op.CALLS)
    for name, number in op.CALLS:
        assert number or calls.plain_function(name)


@every_plan
def test_a_plan_arrives_at_the_keeper_as_it_was_sent(plan: LaunchPlan) -> None:
    sent = tuple(part.code for part in plan.parts)
    data, memfd = wire.encode((op.MSG_LAUNCH, sent))
    assert memfd == -1
    assert marshal.loads(data[1:])[1] == sent


def test_what_containers_have_in_common_is_assembled_once() -> None:
    one, other = make_run_plan(hostname="a"), make_run_plan(hostname="b")
    shared = [part for part in one.parts if isinstance(part.code, bytes)]
    assert len(shared) >= 5
    assert all(any(part.code is same.code for same in other.parts) for part in shared)
    assert sum(len(part.origins) for part in shared) > 100
    # And what is their own differs in its values, not in its calls.
    assert [part.template for part in one.parts] == [part.template for part in other.parts]
    assert [part.own() for part in one.parts] != [part.own() for part in other.parts]


def test_everything_that_varies_is_in_parts_of_its_own() -> None:
    one, other = make_run_plan(hostname="aaaa"), make_run_plan(hostname="bbbb")
    for part in (*one.parts, *other.parts):
        for code in (part.template.code, *(part.template.native or ())):
            assert code is None or (b"aaaa" not in code and b"bbbb" not in code)


def test_only_absence_lets_a_protection_be_left_out() -> None:
    # A mask that fails for any other reason must end the start.
    for part in make_run_plan().parts:
        for call, (step, _) in zip(code_of(part), part.origins, strict=True):
            if isinstance(part.steps[step], m.Mask | m.RemountReadonly) and call[3] is not None:
                assert call[3][0] == (2,)
