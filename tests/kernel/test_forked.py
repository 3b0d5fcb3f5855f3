"""The helper that the other tests rely on: a failure in a child is a failure of the test."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from craterun.linux import calls
from tests.kernel import prepared
from tests.kernel.forked import enter_new, in_child, parked, private_mounts


def test_what_a_child_returns_arrives() -> None:
    pid = in_child(os.getpid)
    assert pid != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_a_child_raises_fails_the_test_and_tells_where() -> None:
    def fail() -> None:
        raise ZeroDivisionError("on purpose")

    with pytest.raises(AssertionError, match="ZeroDivisionError: on purpose"):
        in_child(fail)


def test_a_child_that_dies_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="without a word: wait status 2304"):
        in_child(lambda: os._exit(9))


def test_a_parked_child_lives_as_long_as_it_is_needed() -> None:
    with parked() as pid:
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_parked_child_that_could_not_be_set_up_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="could not be set up"), parked(lambda: os._exit(1)):
        pytest.fail("must not be reached")


@pytest.mark.parametrize("enter", [private_mounts, lambda: enter_new("uts")])
def test_nothing_is_done_to_the_host_if_a_namespace_was_not_made(
    enter: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "unshare", lambda flags: None)  # as if it had worked
    with pytest.raises(AssertionError, match="nothing more is done"):
        in_child(enter)


def test_nothing_is_mounted_while_mounts_propagate_to_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = 1 << 20
    propagate = prepared.mount_propagation
    monkeypatch.setattr(prepared, "mount_propagation", lambda path, flags: propagate(path, shared))
    with pytest.raises(AssertionError, match="nothing more is done"):
        in_child(private_mounts)
