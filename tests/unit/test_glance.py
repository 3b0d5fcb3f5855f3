"""A glance at a record sees what the record says, and takes nothing for plain that is not valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craterun.core.errors import StateError
from craterun.core.instants import instant
from craterun.core.life import Record, State
from craterun.core.logoptions import LogOptions
from craterun.core.phases import Phases
from craterun.core.restart import parse_restart
from craterun.state import glance
from craterun.state.glance import Glance, look, plain
from craterun.state.records import encode_record, read_record
from tests.unit.builders import make_record

ID = make_record().id
FULL = msgspec.structs.replace(
    make_record(),
    status=State.RESTARTING,
    started=instant(1_700_000_000_000_001_000),
    pid=17,
    start_time=12345,
    boot_id="b",
    limits={"memory": "64m"},
    cpu_seconds=0.25,
    restart=parse_restart("on-failure:3"),
    restarts=2,
    log=LogOptions(max_bytes=0),
    phases_us=Phases(queue=3),
    command=("sh", "-c", "é\n\x1b"),
    error='it "went" wrong\t',
)
KINDS = [
    FULL,
    make_record(),
    msgspec.structs.replace(FULL, status=State.STOPPED, exit_code=137, signal=9, oom_kills=None),
    msgspec.structs.replace(FULL, restart=parse_restart("always"), log=LogOptions(driver="none")),
]


def record_of(content: bytes) -> Record | None:
    try:
        return msgspec.json.decode(content, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def assert_same(seen: Glance, record: Record) -> None:
    for name in Glance._fields:
        assert getattr(seen, name) == getattr(record, name), name
    assert type(seen.status) is State


@pytest.mark.parametrize("record", KINDS)
def test_what_craterun_writes_is_plain_and_seen_as_it_is(record: Record) -> None:
    for content in (encode_record(record), msgspec.json.encode(record)):
        seen = plain(content)
        assert seen is not None
        assert_same(seen, record)


def test_every_field_of_a_record_is_known() -> None:
    assert set(glance._FIELDS) == set(Record.__struct_fields__)
    assert set(glance._LOG) == set(LogOptions.__struct_fields__)
    assert set(glance._PHASES) == set(Phases.__struct_fields__)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested lists and dictionaries."""
    found = [path] if path else []
    if isinstance(value, (dict, list)):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            found += places(value[key], (*path, key))
    return found


FIELDS = json.loads(encode_record(FULL))
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4),
    st.sampled_from(
        [
            "stopped", "running", "none", "always", "2026-01-31", "2026-01-31T12:00:00Z",
            "2026-01-31T24:00:00Z", "2026-13-31T12:00:00Z", "2026-01-31T12:00:60Z",
            "2026-01-31 12:00:00Z", "2026-01-31T12:00:00.5+00:00", "0000-01-31T12:00:00Z", "\ud800",
            1 << 70, -1, 1e300, 2.0, [], {}, ["x"], [1], {"x": "y"}, {"x": 1},
            {"condition": "no"}, {"most": 1}, {"driver": "x"},
        ]
    ),
)  # fmt: skip


@settings(max_examples=1500)
@given(st.sampled_from(places(FIELDS)), VALUES, st.sampled_from(["set", "remove", "add"]))
def test_what_is_taken_for_plain_is_valid_and_means_the_same(
    place: tuple[Any, ...], value: object, how: str
) -> None:
    fields = json.loads(encode_record(FULL))
    inner = fields
    for key in place[:-1]:
        inner = inner[key]
    if how == "set":
        inner[place[-1]] = value
    elif how == "remove":
        del inner[place[-1]]
    elif isinstance(inner, dict):
        inner["another"] = value
    for escaped in (True, False):
        content = json.dumps(fields, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
        seen, record = plain(content), record_of(content)
        if seen is not None:
            assert record is not None, content
            assert_same(seen, record)


@settings(max_examples=300)
@given(st.integers(0, 3000), st.binary(max_size=3))
def test_torn_and_overwritten_files_are_not_plain_unless_valid(at: int, put: bytes) -> None:
    content = encode_record(FULL)
    for damaged in (content[:at], content[:at] + put + content[at + len(put) :], put + content):
        seen, record = plain(damaged), record_of(damaged)
        if seen is not None:
            assert record is not None, damaged
            assert_same(seen, record)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "metadata.json").write_bytes(encode_record(FULL))
    return tmp_path


def test_a_look_at_a_plain_record_is_a_glance(folder: Path) -> None:
    assert isinstance(look(str(folder), FULL.id), Glance)


def test_a_look_at_anything_else_is_the_record_or_its_error(folder: Path) -> None:
    path = folder / "metadata.json"
    (folder / "limits.json").write_text('{"limits":{"pids":"7"},"updated":"2026-01-31T12:00:00Z"}')
    found = look(str(folder), FULL.id)
    assert isinstance(found, Record)
    assert found.limits == {"pids": "7"}
    (folder / "limits.json").unlink()
    with pytest.raises(StateError, match="belongs to another container"):
        look(str(folder), "f" * 16)
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "format": 2}))
    with pytest.raises(StateError, match="newer craterun"):
        look(str(folder), FULL.id)
    path.write_text(json.dumps({**fields, "stop_signal": "TERM"}))
    with pytest.raises(StateError) as told:
        look(str(folder), FULL.id)
    with pytest.raises(StateError) as expected:
        read_record(str(folder), FULL.id)
    assert str(told.value) == str(expected.value)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        look(str(folder), FULL.id)
