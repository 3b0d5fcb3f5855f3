"""Detach keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craterun.core.errors import UsageError
from craterun.core.keys import KeyMatcher, parse_keys


@pytest.mark.parametrize(
    ("text", "keys"),
    [("ctrl-p,ctrl-q", b"\x10\x11"), ("ctrl-],d", b"\x1dd"), ("CTRL-A", b"\x01"), ("~,.", b"~."),
     ("ctrl-@", b"\0"), ("ctrl-\\", b"\x1c"), ("ctrl-^,ctrl-_", b"\x1e\x1f")],
)  # fmt: skip
def test_keys_are_read_as_they_are_pressed(text: str, keys: bytes) -> None:
    assert parse_keys(text) == keys


@given(st.text(max_size=8))
def test_any_other_text_is_refused_in_one_line(text: str) -> None:
    try:
        keys = parse_keys(text)
    except UsageError as error:
        keys, message = b"refused", str(error)
        assert message.isprintable()
    assert keys


chunks = st.lists(st.binary(min_size=1, max_size=4).map(lambda b: bytes(c % 3 for c in b)))


@given(chunks, st.binary(min_size=1, max_size=4).map(lambda b: bytes(c % 3 for c in b)))
def test_everything_before_the_sequence_passes_however_it_is_cut(
    typed: list[bytes], keys: bytes
) -> None:
    matcher, passed, left = KeyMatcher(keys), b"", False
    for chunk in typed:
        data, left = matcher.feed(chunk)
        passed += data
        if left:
            break
    whole = b"".join(typed)
    if left:
        assert passed == whole[: whole.index(keys)]
    else:
        assert keys not in whole
        assert passed + matcher.rest() == whole


def test_without_a_sequence_nothing_is_held_back() -> None:
    assert KeyMatcher(b"").feed(b"abc") == (b"abc", False)
