"""A table refreshed in place, on a terminal that pyte emulates."""

from __future__ import annotations

import os

import pyte
from hypothesis import given
from hypothesis import strategies as st

from craterun.cli.screen import Screen


class Terminal:
    """A screen on an emulated terminal, with a line above that is not ours."""

    def __init__(self, columns: int = 40, rows: int = 10) -> None:
        self.emulated = pyte.Screen(columns, rows)
        stream = pyte.Stream(self.emulated)
        stream.feed("$ above\r\n")
        self.screen = Screen(stream.feed, lambda: os.terminal_size((self.columns, self.rows)))
        self.columns, self.rows = columns, rows

    def resize(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.emulated.resize(rows, columns)

    def shows(self) -> list[str]:
        lines = [line.rstrip() for line in self.emulated.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def test_the_second_drawing_replaces_the_first() -> None:
    terminal = Terminal()
    terminal.screen.draw(["HEAD", "a long line", "b"])
    assert terminal.shows() == ["$ above", "HEAD", "a long line", "b"]
    terminal.screen.draw(["HEAD", "c"])
    assert terminal.shows() == ["$ above", "HEAD", "c"]
    terminal.screen.draw(["HEAD", "1", "2", "3"])
    assert terminal.shows() == ["$ above", "HEAD", "1", "2", "3"]


def test_lines_are_cut_to_the_width() -> None:
    terminal = Terminal(columns=10)
    for _ in range(3):
        terminal.screen.draw(["0123456789abcdef", "x"])
    assert terminal.shows() == ["$ above", "012345678", "x"]


def test_what_does_not_fit_is_counted() -> None:
    terminal = Terminal(rows=5)
    for _ in range(2):
        terminal.screen.draw(["HEAD", *(f"line {n}" for n in range(10))])
    assert terminal.shows() == ["HEAD", "line 0", "line 1", "… and 8 more"]


def test_a_narrower_terminal_starts_afresh_and_a_wider_one_does_not() -> None:
    terminal = Terminal(columns=40)
    terminal.screen.draw(["x" * 30, "y"])
    terminal.resize(60, 10)
    terminal.screen.draw(["x" * 50, "y"])
    assert terminal.shows() == ["$ above", "x" * 50, "y"]
    terminal.resize(20, 10)
    terminal.screen.draw(["x" * 50, "z"])
    assert terminal.shows() == ["x" * 19, "z"]
    terminal.screen.draw(["short"])
    assert terminal.shows() == ["short"]


@given(
    st.lists(
        st.tuples(
            st.integers(2, 50),
            st.lists(st.text("abc ", max_size=60), max_size=20),
        ),
        min_size=1,
    )
)
def test_the_last_drawing_is_all_there_is_below(
    drawings: list[tuple[int, list[str]]],
) -> None:
    terminal = Terminal()
    for columns, lines in drawings:
        if columns != terminal.columns:  # heights are the terminal's own affair: it scrolls
            terminal.resize(columns, terminal.rows)
        terminal.screen.draw([*lines, "LAST"][-terminal.rows + 1 :])
    shown = [line for line in terminal.shows() if line != "$ above"]
    expected = [*drawings[-1][1], "LAST"][-terminal.rows + 1 :]
    width = terminal.columns - 1
    assert shown[-len(expected) :] == [line[:width].rstrip() for line in expected]
    assert shown.count("LAST"[:width]) == 1 or width < 4
