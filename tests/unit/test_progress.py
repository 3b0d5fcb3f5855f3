"""What the line says to whoever waits."""

from __future__ import annotations

from craterun.cli.progress import describe


def test_one_and_several_are_named() -> None:
    assert describe("waiting for", ["a"], None, 0.0) == "waiting for a"
    assert describe("waiting for", ["a", "b", "c"], None, 0.0) == "waiting for a and 2 more"


def test_the_time_that_is_left_is_told_until_it_is_over() -> None:
    assert describe("stopping", ["a"], 10.0, 2.6) == "stopping a; SIGKILL in 7 s"
    assert describe("stopping", ["a"], 10.0, 10.0) == "stopping a; killed"


def test_a_name_cannot_draw_on_the_terminal() -> None:
    assert "\x1b" not in describe("removing", ["\x1b[2J"], None, 0.0)
