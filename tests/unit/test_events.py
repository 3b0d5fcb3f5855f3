"""Events as bytes, as lines, and as what a filter wants."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craterun.core.errors import UsageError
from craterun.core.events import (
    RECORD_SEPARATOR,
    Attribute,
    Event,
    EventType,
    Filter,
    decode_event,
    encode_event,
    event,
)

ID = "0123456789abcdef"
OOM = Event(1, "oom", ID, "web", {"kills": 2, "limit_bytes": None, "init_alive": True})

_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
_ATTRIBUTES: st.SearchStrategy[dict[str, Attribute]] = st.dictionaries(
    _TEXT, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | _TEXT, max_size=4
)


@given(st.builds(Event, st.integers(0, 2**62), _TEXT, _TEXT, st.none() | _TEXT, _ATTRIBUTES))
def test_any_event_survives_and_holds_no_separator_and_one_line_end(what: Event) -> None:
    element = encode_event(what)
    assert element[:1] == RECORD_SEPARATOR
    assert RECORD_SEPARATOR not in element[1:]
    assert element.count(b"\n") == 1
    assert decode_event(element[1:]) == what
    for size in range(len(element) - 1):
        assert decode_event(element[1 : 1 + size]) is None
    assert what.line().isprintable()
    assert json.loads(what.json_line())["time_ns"] == what.time


@given(st.binary(max_size=50))
def test_foreign_bytes_are_no_event(content: bytes) -> None:
    assert decode_event(content + b"\n") is None


def test_the_line_for_programs_is_what_the_documentation_says() -> None:
    assert json.loads(OOM.json_line()) == {
        "time": "1970-01-01T00:00:00.000000001Z",
        "time_ns": 1,
        "type": "oom",
        "id": ID,
        "name": "web",
        "attributes": {"kills": 2, "limit_bytes": None, "init_alive": True},
    }


def test_the_line_for_people_is_safe_for_a_terminal() -> None:
    line = event(EventType.CREATED, ID, "web", command="sh -c \x1b]0;x\x07\n").line()
    assert line.isprintable()
    assert "web  command='sh -c " in line


@pytest.mark.parametrize(
    "conditions",
    [
        [], ["type=oom"], ["type=exited", "type=oom"], ["name=web"], [f"id={ID}"], ["id=0123"],
        ["container=web"], ["container=01"], ["kills=2"], ["init_alive=true"], ["limit_bytes=null"],
        ["type=oom", "kills=1", "kills=2", "container=nope", "container=web"],
    ],
)  # fmt: skip
def test_wanted(conditions: list[str]) -> None:
    assert Filter(conditions).wants(OOM)


@pytest.mark.parametrize(
    "conditions",
    [["type=exited"], ["name=we"], ["id=123"], ["container=we"], ["kills=3"], ["nope=1"],
     ["init_alive=1"], ["type=oom", "name=other"]],
)  # fmt: skip
def test_unwanted(conditions: list[str]) -> None:
    assert not Filter(conditions).wants(OOM)


def test_that_events_were_lost_is_always_wanted() -> None:
    assert Filter(["type=oom"]).wants(Event(1, "events_lost", "", None, {"count": 1}))


@pytest.mark.parametrize("condition", ["", "type", "=oom", "type=", "type=ooom", "type=\x1b[2J"])
def test_a_filter_that_could_never_match_is_refused(condition: str) -> None:
    with pytest.raises(UsageError) as caught:
        Filter([condition])
    assert str(caught.value).isprintable()
