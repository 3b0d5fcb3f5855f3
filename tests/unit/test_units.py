"""Ids, names, hostnames, environment entries, signals and ages."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from craterun.core.errors import UsageError
from craterun.core.units import (
    age,
    is_id,
    is_id_prefix,
    new_id,
    parse_env,
    parse_env_file,
    parse_hostname,
    parse_name,
    parse_signal,
    signal_name,
)

ANY_TEXT = st.text(st.one_of(st.characters(), st.characters(categories=["Cs"])))
"""Lone surrogates included: os.fsdecode makes them, and any Python string may hold them."""

NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


# --- ids ------------------------------------------------------------------------------------------


def test_a_new_id_is_an_id_and_no_other_has_it() -> None:
    made = {new_id() for _ in range(200)}
    assert len(made) == 200
    assert all(is_id(text) for text in made)


@given(st.integers(0, 2**64 - 1), st.integers(1, 16))
def test_every_beginning_of_an_id_is_a_prefix_and_only_the_whole_an_id(
    number: int, size: int
) -> None:
    whole = f"{number:016x}"
    assert is_id(whole)
    assert is_id_prefix(whole[:size])
    assert is_id(whole[:size]) == (size == 16)


@pytest.mark.parametrize(
    "text", ["", "g", "A", "0x1", " 1", "1 ", "1\n", "0123456789abcdef0", "0123456789abcdef\n", "²"]
)
def test_what_is_not_lower_case_hex_is_no_prefix_of_an_id(text: str) -> None:
    assert not is_id_prefix(text)
    assert not is_id(text)


# --- names ----------------------------------------------------------------------------------------


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", fullmatch=True))
def test_a_name_of_safe_characters_is_taken(text: str) -> None:
    assume(not is_id(text))
    assert parse_name(text) == text


def test_a_name_in_the_form_of_an_id_is_refused() -> None:
    with pytest.raises(UsageError, match="taken for an id"):
        parse_name("0123456789abcdef")


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", ".a", "-a", "_a", "a b", "a/b", "a\n", "a\0", "é", "a" * 129, "\ud800"],
)
def test_a_name_that_is_unsafe_as_a_file_or_argument_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_name(text)
    assert str(caught.value).isprintable()


def test_the_longest_name_has_128_characters() -> None:
    assert parse_name("a" * 128) == "a" * 128


def test_a_name_that_merely_begins_like_an_id_is_taken() -> None:
    assert parse_name("0123456789abcde") == "0123456789abcde"
    assert parse_name("0123456789ABCDEF") == "0123456789ABCDEF"


# --- hostnames ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a", "0", "db-1.example.org", "A_b", "x" * 64])
def test_a_proper_hostname_is_taken_as_it_is(text: str) -> None:
    assert parse_hostname(text) == text


@pytest.mark.parametrize(
    "text", ["", "-", "a-", ".a", "a.", "_a", "a b", "a\n", "a/b", "ü", "x" * 65, "ü" * 40]
)
def test_an_improper_hostname_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_hostname(text)
    assert str(caught.value).isprintable()


@given(ANY_TEXT)
@example("\ud800")
def test_any_text_is_a_hostname_or_a_usage_error_but_never_a_traceback(text: str) -> None:
    try:
        assert parse_hostname(text) == text
    except UsageError as error:
        assert str(error).isprintable()  # noqa: PT017


# --- environment ----------------------------------------------------------------------------------

_KEYS = st.text(st.characters(exclude_characters="=\0", codec="utf-8"), min_size=1)
_VALUES = st.text(st.characters(exclude_characters="\0", codec="utf-8"))


@given(_KEYS, _VALUES)
def test_an_environment_entry_splits_at_its_first_equals_sign(key: str, value: str) -> None:
    assert parse_env(f"{key}={value}") == (key, value)


@pytest.mark.parametrize("text", ["", "=", "=v", "KEY", "K\0=v", "K=v\0", "\x1b[2J"])
def test_a_malformed_environment_entry_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_env(text)
    assert str(caught.value).isprintable()


_LINE_KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True)
_LINE_VALUES = st.text(st.characters(exclude_characters="\0\n", codec="utf-8")).filter(
    lambda text: not text.endswith("\r")
)


@given(st.dictionaries(_LINE_KEYS, _LINE_VALUES), st.sampled_from(["\n", "\r\n"]))
def test_an_env_file_gives_back_the_values_as_they_stand(env: dict[str, str], end: str) -> None:
    lines = ["# comment", "", "   ", "  # indented comment"]
    lines += [f"{key}={value}" for key, value in env.items()]
    assert parse_env_file(end.join(lines), "x.env") == env


def test_an_env_file_expands_and_unquotes_nothing() -> None:
    content = "A=\"$HOME\"\nB='b' # not a comment\nC=\n"
    assert parse_env_file(content, "f") == {"A": '"$HOME"', "B": "'b' # not a comment", "C": ""}


def test_the_last_of_two_equal_keys_in_an_env_file_counts() -> None:
    assert parse_env_file("A=1\nA=2", "f") == {"A": "2"}


def test_an_error_in_an_env_file_names_the_file_and_the_line() -> None:
    with pytest.raises(UsageError, match=r"^app\.env, line 3: .*'BROKEN'"):
        parse_env_file("A=1\n# x\nBROKEN\nB=2", "app.env")


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", list(signal.Signals), ids=lambda known: known.name)
def test_a_signal_is_known_by_number_and_by_name_in_any_case(known: signal.Signals) -> None:
    short = known.name.removeprefix("SIG")
    spellings = (known.name, short, known.name.lower(), short.lower(), str(int(known)))
    assert {parse_signal(text) for text in spellings} == {int(known)}


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "65", "SIG", "SIGNAL", "TERM ", "9.0", "٩", "1\n", "\x1b", "RTMIN+1"],
)
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_signal(text)
    assert str(caught.value).isprintable()


def test_a_number_too_long_for_python_to_convert_is_no_signal() -> None:
    with pytest.raises(UsageError):
        parse_signal("1" * 5000)


@pytest.mark.parametrize("number", range(1, 65))
def test_a_signal_number_is_spelled_by_name_if_it_has_one(number: int) -> None:
    name = signal_name(number)
    if name.startswith("SIG"):
        assert parse_signal(name) == number
    else:
        assert name == f"signal {number}"
        assert number not in set(signal.Signals)


# --- ages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds ago"),
        (0.9, "0 seconds ago"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (60, "1 minute ago"),
        (3599, "59 minutes ago"),
        (3600, "1 hour ago"),
        (86399, "23 hours ago"),
        (86400, "1 day ago"),
        (86400 * 400, "400 days ago"),
    ],
)
def test_an_age_is_told_in_the_largest_unit_that_fits(seconds: float, text: str) -> None:
    assert age(NOW - timedelta(seconds=seconds), NOW) == text


def test_a_time_in_the_future_is_now() -> None:
    assert age(NOW + timedelta(days=3), NOW) == "0 seconds ago"


def test_without_a_second_time_the_age_is_measured_from_the_present() -> None:
    assert age(datetime.now(UTC) - timedelta(days=2, hours=1)) == "2 days ago"
