"""System calls as bytes: everything that machine code cannot ask about is settled before."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from craterun.core import native as n
from craterun.core import opcodes as op
from craterun.core.assembler import Assembler
from craterun.core.launchplan import LaunchPlan
from craterun.keeper import native as keeper
from tests.unit.assembled import assembled
from tests.unit.builders import all_run_plans, make_exec_plan, make_run_plan

pytestmark = pytest.mark.skipif(not n.SUPPORTED, reason="no machine code for this machine")
CALL = struct.Struct("=iI6qqHHHxx")
SOURCE = Path(keeper.__file__).with_name("native_x86_64.s")


def decoded(native: n.Native | None) -> list[tuple[int, ...]]:
    """The calls up to the end, which there must be."""
    assert native is not None
    found: list[tuple[int, ...]] = []
    for place in range(0, len(native[0]), n.CALL_BYTES):
        call = CALL.unpack_from(native[0], place)
        if call[0] == -1:
            return found
        found.append(call)
    pytest.fail("it has no end")


def places(native: n.Native | None) -> list[int]:
    """Where there are addresses."""
    assert native is not None
    return [place for (place,) in struct.iter_unpack("=I", native[1])]


def test_the_bytes_are_what_the_source_says(tmp_path: Path) -> None:
    assert assembled(SOURCE, tmp_path) == keeper._CODE


def test_the_machine_code_has_neither_stack_nor_calls() -> None:
    # Its memory is the arena; a push would end it, and only where a signal or a race decides so.
    instructions = [line.split()[0] for line in SOURCE.read_text().splitlines() if line.strip()]
    assert not {"push", "pop", "call", "enter", "leave"} & set(instructions)
    assert instructions.count("ret") == 1, "the parent's"


def test_the_source_has_the_same_layout_as_the_plans() -> None:
    text = SOURCE.read_text()
    said = dict(
        line.split("#")[0].split(".set")[1].replace(" ", "").strip().split(",")
        for line in text.splitlines()
        if ".set" in line
    )
    for name, value in {
        "CALL_SIZE": n.CALL_BYTES, "FAILED": n.FAILED, "RESULT": n.RESULT, "PARTS": n.PARTS,
        "WANTED_IS_VALUE": n._WANTED_IS_VALUE, "ANY_RESULT": n._ANY_RESULT,
        "LENIENT": n._LENIENT, "ANY_ERRNO": n._ANY_ERRNO, "COMPARE": n._COMPARE,
    }.items():  # fmt: skip
        assert int(said[name], 0) == value, name
    assert CALL.size == n.CALL_BYTES


def test_the_fields_of_a_slot_do_not_overlap() -> None:
    borders = [n.STAMP, n.FAILED, n.RESULT, n.PARTS, n.VALUES, n.CLONE_ARGS, n.PIDFD, n.SCRATCH]
    assert borders == sorted(set(borders))
    assert n.PIDFD + 8 <= n.SCRATCH
    assert n.DATA < n.SLOT_BYTES


def test_which_plans_are_machine_code() -> None:
    for name, plan in all_run_plans().items():
        python = "/init/" in f"/{name}/" or name == "terminal"
        assert plan.is_native is not python, name
    assert not make_exec_plan().is_native
    assert make_run_plan(interactive=True).is_native


@pytest.mark.parametrize("plan", [p for p in all_run_plans().values() if p.is_native])
def test_every_string_is_where_its_address_says(plan: LaunchPlan) -> None:
    for part in plan.parts:
        native = part.template.native
        assert native is not None
        assert len(native[0]) % 8 == 0
        end_of_calls = (len(decoded(native)) + 1) * n.CALL_BYTES
        for place in places(native):
            assert place < end_of_calls
            assert place % n.CALL_BYTES in range(8, 56, 8)
            (address,) = struct.unpack_from("=Q", native[0], place)
            assert end_of_calls <= address < len(native[0])
            assert 0 in native[0][address:], "no string ends there"


@pytest.mark.parametrize("plan", [p for p in all_run_plans().values() if p.is_native])
def test_skipping_stays_inside_a_part(plan: LaunchPlan) -> None:
    for part in plan.parts:
        calls = decoded(part.template.native)
        for place, call in enumerate(calls):
            assert place + call[-1] < len(calls)


def test_a_skip_counts_what_a_special_call_becomes() -> None:
    assembler = Assembler({}, n.FIRST_VALUE)
    assembler.call("chdir", b"/x")
    with assembler.if_it_worked(2):
        assembler.special("check_inside")
        assembler.call("chdir", b"/")
    calls = decoded(n.translate(assembler.calls))
    assert [call[0] for call in calls] == [80, 79, -2, 80]
    assert calls[0][-3:] == (2, 2, 3)


def test_a_value_is_a_place_in_the_slot() -> None:
    assembler = Assembler({}, n.FIRST_VALUE)
    first, size = assembler.own(0), assembler.length(0)
    assembler.call("write", 5, first, size, wanted=size)
    number, flags, *words, wanted, _, _, _ = decoded(n.translate(assembler.calls))[0]
    place = n.VALUES + 16 * n.FIRST_VALUE
    assert number == 1
    assert flags == 0b110 | n._WANTED_IS_VALUE
    assert words[:3] == [5, place, place + 8]
    assert wanted == place + 8


def test_more_values_than_there_is_room_for_take_python() -> None:
    path = ":".join(f"/opt/{number}/bin" for number in range(n.MAX_VALUES))
    assert not make_run_plan(env={"PATH": path}).is_native


def test_what_is_not_known_to_machine_code_takes_python() -> None:
    assembler = Assembler({}, n.FIRST_VALUE)
    assembler.special("start_init")
    assert n.translate(assembler.calls) is None


def test_every_call_of_plans_has_a_number() -> None:
    known = {name for name, number in op.CALLS if number} | {"syscall"} | set(n._NUMBERS)
    assert {name for name, _ in op.CALLS} <= known
