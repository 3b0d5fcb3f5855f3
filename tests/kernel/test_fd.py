"""A descriptor has one owner, who closes it once."""

from __future__ import annotations

import gc
import os

import pytest

from craterun.linux.fd import Fd
from tests.kernel.forked import in_child


def is_open(number: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{number}")


def test_closing_closes() -> None:
    number = os.dup(0)
    fd = Fd(number)
    before = fd.closed
    assert fd.fileno() == number
    fd.close()
    assert (before, fd.closed) == (False, True)
    assert not is_open(number)


def test_a_second_close_does_not_hit_whoever_has_the_number_now() -> None:
    fd = Fd(os.dup(0))
    number = fd.fileno()
    fd.close()
    other = os.dup2(0, number)
    fd.close()
    assert is_open(other)
    os.close(other)


def test_a_late_user_gets_an_error_and_not_somebody_elses_file() -> None:
    fd = Fd(os.dup(0))
    fd.close()
    for late in (fd.fileno, fd.take):
        with pytest.raises(ValueError, match="closed or handed over"):
            late()


def test_what_was_taken_is_the_takers_to_close() -> None:
    fd = Fd(os.dup(0))
    number = fd.take()
    assert fd.closed
    fd.close()
    del fd
    gc.collect()
    assert is_open(number)
    os.close(number)


def test_nothing_is_owned_at_first_if_nothing_was_given() -> None:
    fd = Fd(-1)
    assert fd.closed
    fd.close()
    with pytest.raises(ValueError, match="closed or handed over"):
        fd.fileno()


def test_the_number_is_forgotten_even_if_closing_fails() -> None:
    number = os.dup(0)
    fd = Fd(number)
    os.close(number)
    with pytest.raises(OSError, match="Bad file descriptor"):
        fd.close()
    fd.close()


def test_a_forgotten_descriptor_is_closed_and_reported() -> None:
    number = os.dup(0)
    fd = Fd(number)
    with pytest.warns(ResourceWarning, match=f"descriptor {number} was never closed"):
        del fd
    assert not is_open(number)


def test_a_forgotten_descriptor_is_closed_even_where_warnings_are_errors() -> None:
    number = os.dup(0)
    fd = Fd(number)
    try:
        with pytest.raises(ResourceWarning):
            fd.__del__()  # as errors in it are only printed otherwise
        assert not is_open(number)
    finally:
        fd.close()


def test_an_owner_that_was_never_completed_can_still_be_deleted() -> None:
    Fd.__new__(Fd).__del__()


def test_zero_is_a_descriptor_like_any_other() -> None:
    def own() -> list[bool]:
        fd = Fd(0)
        found = [fd.closed, fd.fileno() == 0, is_open(0)]
        fd.close()
        found += [fd.closed, is_open(0)]
        assert os.open("/dev/null", os.O_RDONLY) == 0
        forgotten = Fd(0)
        with pytest.warns(ResourceWarning, match="descriptor 0 was never closed"):
            del forgotten
        return [*found, is_open(0)]

    assert in_child(own) == [False, True, True, True, False, False]
