"""metadata.json: complete at any instant, and never trusted to be what we wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from craterun.core.errors import StateError
from craterun.core.life import FORMAT, Record, State
from craterun.state.glance import METADATA
from craterun.state.records import (
    encode_record,
    overwrite_record,
    read_record,
    write_record,
)
from tests.unit.builders import ID, make_record, no_leaked_descriptors

Folder = tuple[Path, int]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """A container's folder, and a descriptor of it."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield tmp_path, fd
    os.close(fd)


def read(path: Path) -> Record:
    with no_leaked_descriptors():
        return read_record(str(path), ID)


def refused(path: Path) -> str:
    """The message with which the record there is refused."""
    with no_leaked_descriptors(), pytest.raises(StateError) as caught:
        read_record(str(path), ID)
    assert str(caught.value).isprintable()
    assert str(path / METADATA) in str(caught.value)
    return str(caught.value)


# --- healthy --------------------------------------------------------------------------------------

_TEXT = st.text(st.characters(codec="utf-8"))
_TIMES = st.datetimes(min_value=datetime(1971, 1, 1), timezones=st.just(UTC))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.fixed_dictionaries(
        {},
        optional={
            "name": st.none() | _TEXT,
            "status": st.sampled_from(State),
            "command": st.lists(_TEXT).map(tuple),
            "env": st.dictionaries(_TEXT, _TEXT),
            "workdir": _TEXT,
            "created": _TIMES,
            "finished": st.none() | _TIMES,
            "exit_code": st.none() | st.integers(0, 255),
            "oom_kills": st.none() | st.integers(0, 2**40),
            "init_oom_killed": st.none() | st.booleans(),
            "limits": st.dictionaries(_TEXT, _TEXT),
            "error": st.none() | _TEXT,
        },
    )
)
def test_a_record_is_read_as_it_was_written(folder: Folder, changes: dict[str, Any]) -> None:
    path, fd = folder
    record = make_record(**changes)
    write_record(fd, record)
    assert read(path) == record
    overwrite_record(fd, record)
    assert read(path) == record


def test_the_longest_command_there_can_be_is_read_as_it_was_written(folder: Folder) -> None:
    """Six MiB, with an unlimited stack; what is no UTF-8 is written as an escape."""
    path, fd = folder
    record = make_record(command=("echo", *["\\xff" * 120_000] * 50))
    write_record(fd, record)
    assert read(path) == record


def test_a_record_is_json_that_a_person_can_read(folder: Folder) -> None:
    path, fd = folder
    write_record(fd, make_record())
    text = (path / METADATA).read_text()
    assert text.endswith("}\n")
    assert '\n  "status": "running",\n' in text
    fields = json.loads(text)
    assert fields["created"] == "2024-02-29T12:30:15.123456Z"
    assert fields["finished"] is None
    assert fields["format"] == 1, "files of this version are out there"


def test_only_the_owner_can_read_a_record(folder: Folder) -> None:
    path, fd = folder
    write_record(fd, make_record())
    assert (path / METADATA).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("write", [write_record, overwrite_record])
def test_writing_leaves_nothing_but_the_record(folder: Folder, write: Any) -> None:
    path, fd = folder
    write_record(fd, make_record())
    (path / ".metadata.json.new").write_text("of a crash" * 10_000)
    with no_leaked_descriptors():
        write(fd, make_record(status=State.STOPPED))
    assert os.listdir(path) == [METADATA]
    assert read(path).status is State.STOPPED


def test_a_reader_who_has_the_file_open_keeps_seeing_the_old_record(folder: Folder) -> None:
    path, fd = folder
    write_record(fd, make_record())
    with (path / METADATA).open("rb") as reader:
        write_record(fd, make_record(status=State.STOPPED))
        assert reader.read() == encode_record(make_record())


def test_a_shorter_record_written_in_place_leaves_no_rest_of_the_longer_one(folder: Folder) -> None:
    path, fd = folder
    write_record(fd, make_record(error="x" * 5000))
    overwrite_record(fd, make_record())
    assert (path / METADATA).read_bytes() == encode_record(make_record())


def test_a_record_cannot_be_written_through_a_symlink(folder: Folder, tmp_path: Path) -> None:
    path, fd = folder
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (path / ".metadata.json.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        write_record(fd, make_record())
    (path / METADATA).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        overwrite_record(fd, make_record())
    assert victim.read_text() == "precious"


def test_a_failed_write_leaves_the_old_record(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fd = folder
    write_record(fd, make_record())
    with monkeypatch.context() as patch, no_leaked_descriptors():
        patch.setattr(os, "write", _disk_full)
        with pytest.raises(OSError, match="No space left"):
            write_record(fd, make_record(status=State.STOPPED))
    assert read(path) == make_record()


def test_a_record_that_cannot_be_overwritten_is_still_there(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fd = folder
    write_record(fd, make_record())
    room, pwrite = len(encode_record(make_record())), os.pwrite
    with monkeypatch.context() as patch, no_leaked_descriptors():
        patch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[: room - at], at))
        with pytest.raises(OSError, match="No space left"):
            overwrite_record(fd, make_record(limits={"memory": "x" * 2 * room}))
    assert read(path) == make_record()


def _disk_full(fd: int, data: bytes) -> int:
    raise OSError(28, "No space left on device")


# --- damaged --------------------------------------------------------------------------------------


def test_no_record_is_told_apart_from_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "no such folder")


def test_every_truncation_is_refused_or_harmless(tmp_path: Path) -> None:
    whole = encode_record(make_record())
    for size in range(len(whole)):
        (tmp_path / METADATA).write_bytes(whole[:size])
        if size == len(whole) - 1:  # only the final newline is missing
            assert read(tmp_path) == make_record()
        else:
            assert "damaged" in refused(tmp_path)


def test_a_damaged_record_says_how_to_get_rid_of_the_container(tmp_path: Path) -> None:
    (tmp_path / METADATA).write_text("{")
    assert refused(tmp_path).endswith(f"remove the container with: craterun rm --force {ID}")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 4096,
        b"\xff\xfe{}",
        b"null",
        b"[]",
        b"{}",
        b'"\x1b[2J"',
        b'{"id": "\xff"}',
        b'{"more": ' + b"[" * 200_000,
    ],
    ids=lambda content: repr(content[:20]),
)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / METADATA).write_bytes(content)
    refused(tmp_path)


def edit(path: Path, **fields: object) -> None:
    """Write a record in which somebody edited ``fields``."""
    edited = {**json.loads(encode_record(make_record())), **fields}
    (path / METADATA).write_text(json.dumps({k: v for k, v in edited.items() if v is not ...}))


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "sleeping"},
        {"status": None},
        {"status": ...},
        {"id": ...},
        {"command": "sh -c x"},
        {"command": [1]},
        {"env": []},
        {"env": {"A": None}},
        {"pid": "1"},
        {"pid": 1.5},
        {"exit_code": "\x1b[2J"},
        {"created": "yesterday"},
        {"created": 0},
        {"format": "1"},
        {"init_oom_killed": "no"},
        {"\x1b]0;x\x07": 1, "pid": []},
    ],
    ids=repr,
)
def test_a_field_of_the_wrong_kind_is_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    edit(tmp_path, **fields)
    refused(tmp_path)


def test_a_time_without_a_zone_is_refused(tmp_path: Path) -> None:
    # Compared with the present, it would raise a TypeError in every listing.
    edit(tmp_path, created="2024-02-29T12:30:15")
    refused(tmp_path)


def test_an_unknown_field_is_passed_over(tmp_path: Path) -> None:
    edit(tmp_path, note="by hand")
    assert read(tmp_path) == make_record()


def test_a_record_of_another_container_is_refused(tmp_path: Path) -> None:
    edit(tmp_path, id="f" * 16)
    assert "belongs to another container, ffffffffffffffff" in refused(tmp_path)


def test_a_hostile_id_in_a_record_steers_no_terminal(tmp_path: Path) -> None:
    edit(tmp_path, id="\x1b[2J\u202e")
    assert "belongs to another container" in refused(tmp_path)


def test_a_newer_format_is_refused_as_such(tmp_path: Path) -> None:
    edit(tmp_path, format=FORMAT + 1)
    assert "newer craterun" in refused(tmp_path)


def test_a_newer_format_with_other_fields_is_not_called_damaged(tmp_path: Path) -> None:
    # It would be followed by the advice to remove the container.
    edit(tmp_path, format=FORMAT + 1, status="checkpointed")
    message = refused(tmp_path)
    assert "newer craterun" in message
    assert "rm --force" not in message


# --- something else in its place ------------------------------------------------------------------


@pytest.mark.parametrize("target", ["real.json", "nowhere"])
def test_a_symlink_in_its_place_is_not_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "real.json").write_bytes(encode_record(make_record()))
    (tmp_path / METADATA).symlink_to(target)
    assert "symbolic links" in refused(tmp_path)


def test_a_directory_in_its_place_is_refused_and_leaks_nothing(tmp_path: Path) -> None:
    (tmp_path / METADATA).mkdir()
    refused(tmp_path)


def test_a_fifo_in_its_place_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / METADATA)
    refused(tmp_path)


def test_a_fifo_that_somebody_holds_open_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / METADATA)
    holder = os.open(tmp_path / METADATA, os.O_RDWR)
    try:
        refused(tmp_path)
    finally:
        os.close(holder)


def test_a_file_larger_than_any_record_is_refused(tmp_path: Path) -> None:
    with (tmp_path / METADATA).open("wb") as file:
        file.truncate(1 << 32)  # a sparse one
    refused(tmp_path)
