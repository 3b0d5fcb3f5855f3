"""Messages are safe to print, and each error has its exit code."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craterun.core import errors
from craterun.core.errors import CraterunError, KernelRefusedError, printable
from tests.unit.builders import HOSTILE


def _all_errors() -> list[type[CraterunError]]:
    found, queue = [], [CraterunError]
    while queue:
        one = queue.pop()
        found.append(one)
        queue += one.__subclasses__()
    return found


@given(
    st.one_of(
        st.binary(),
        st.text(st.one_of(st.characters(), st.characters(categories=["Cs", "Cc", "Cf"]))),
    )
)
def test_nothing_that_steers_a_terminal_survives(text: str | bytes) -> None:
    assert printable(text).isprintable()


@given(st.text().filter(str.isprintable))
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    assert printable(text) == text
    assert printable(text.encode()) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\0", r"\x00"),
        ("\x7f\x9b", r"\x7f\x9b"),
        ("\u202e\u2028", r"\u202e\u2028"),
        ("\udcff", r"\udcff"),
        (b"\xff", r"\xff"),
        ("grün ✓", "grün ✓"),
    ],
)
def test_what_is_not_printable_is_shown_as_an_escape(text: str | bytes, shown: str) -> None:
    assert printable(text) == shown


def test_the_hostile_bytes_of_these_tests_are_hostile() -> None:
    assert not HOSTILE.decode("utf-8", "replace").isprintable()
    assert printable(HOSTILE).isprintable()


def test_exit_codes_follow_the_convention() -> None:
    special = {"CommandNotFoundError": 127, "CommandNotExecutableError": 126}
    found = {kind.__name__: kind.exit_code for kind in _all_errors()}
    assert found == {name: special.get(name, 125) for name in found}
    assert found.keys() >= special.keys()


def test_every_error_of_the_module_belongs_to_the_tree() -> None:
    classes = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, BaseException)
    ]
    assert len(classes) > 10
    assert all(issubclass(kind, CraterunError) for kind in classes)


def test_a_refusal_says_what_was_done_by_which_call_on_what_and_why() -> None:
    error = KernelRefusedError("mount /proc", "move_mount", "/proc", errno.EPERM, "be root")
    assert str(error) == (
        "cannot mount /proc: move_mount /proc: Operation not permitted (EPERM); be root"
    )


def test_a_refusal_without_target_and_hint_leaves_nothing_dangling() -> None:
    error = KernelRefusedError("fork", "clone3", errno=errno.EAGAIN)
    assert str(error) == "cannot fork: clone3: Resource temporarily unavailable (EAGAIN)"


def test_an_errno_without_a_name_is_told_by_number() -> None:
    assert "(9999)" in str(KernelRefusedError("fork", "clone3", errno=9999))


def test_the_data_of_a_refusal_can_be_read_by_a_program() -> None:
    error = KernelRefusedError("d", "c", "t", errno.EIO, "h")
    assert (error.doing, error.call, error.target, error.errno, error.hint) == (
        "d",
        "c",
        "t",
        errno.EIO,
        "h",
    )
