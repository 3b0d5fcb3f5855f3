"""A disk that is really full: a tiny tmpfs, and the limit on a file's size."""

from __future__ import annotations

import errno
import os
import resource
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from craterun.core.errors import StateError
from craterun.core.events import EventType, event
from craterun.core.life import Record, State
from craterun.state.journal import Journal, JournalReader
from craterun.state.logs import FILES, INDEX, LogWriter, Stream, read_index
from craterun.state.records import (
    encode_record,
    overwrite_record,
    read_record,
    write_record,
)
from craterun.state.store import Store
from tests.kernel.forked import in_child, mount_tmpfs, private_mounts
from tests.unit.builders import ID, make_record

CHUNK = bytes(range(256)) * 12
_PAGE = 4096


def fill(path: Path) -> None:
    """Use up all the room below ``path``."""
    fd = os.open(path / "filler", os.O_WRONLY | os.O_CREAT)
    for size in (_PAGE, 1):
        try:
            while True:
                os.write(fd, b"x" * size)
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
    os.close(fd)


def small_disk(path: Path, size: bytes = b"64k") -> int:
    """For a child: a tmpfs at ``path``, and a descriptor of it."""
    private_mounts()
    mount_tmpfs(os.fsencode(path), (b"size", size))
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def log_until_it_fails(path: Path, fd: int) -> tuple[int | None, int, bool, bool]:
    """(errno, bytes lost, whether every byte is accounted for, whether the index is true)."""
    writer = LogWriter(fd)
    sent = dict.fromkeys(Stream, b"")
    for number in range(200):
        stream = Stream.STDERR if number % 3 else Stream.STDOUT
        writer.append(stream, memoryview(CHUNK), number)
        sent[stream] += CHUNK
    writer.finish()
    there = {stream: (path / name).read_bytes() for stream, name in FILES.items()}
    accounted = writer.lost_bytes + sum(map(len, there.values())) == 200 * len(CHUNK)
    exact = all(sent[stream].startswith(there[stream]) for stream in Stream)
    true = all(
        there[entry.stream][entry.offset : entry.offset + entry.length] == CHUNK
        for entry in read_index(str(path / INDEX))
    )
    assert writer.error is not None
    return writer.error.errno, writer.lost_bytes, accounted and exact, true


def test_a_full_disk_ends_the_log_without_a_hole(tmp_path: Path) -> None:
    number, lost, exact, true = in_child(lambda: log_until_it_fails(tmp_path, small_disk(tmp_path)))
    assert number == errno.ENOSPC
    assert lost > 0
    assert exact
    assert true


def test_a_limit_on_the_size_of_files_ends_the_log_without_a_hole(tmp_path: Path) -> None:
    def log() -> tuple[int | None, int, bool, bool]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        return log_until_it_fails(tmp_path, os.open(tmp_path, os.O_RDONLY))

    number, lost, exact, true = in_child(log)
    assert number == errno.EFBIG
    assert lost > 0
    assert exact
    assert true


def test_a_record_that_cannot_be_replaced_can_be_overwritten(tmp_path: Path) -> None:
    def record() -> Record:
        fd = small_disk(tmp_path)
        write_record(fd, make_record())
        fill(tmp_path)
        with pytest.raises(OSError, match="No space left"):
            write_record(fd, make_record(exit_code=7, status=State.STOPPED))
        assert read_record(str(tmp_path), ID) == make_record()
        overwrite_record(fd, make_record(exit_code=7, status=State.STOPPED))
        return read_record(str(tmp_path), ID)

    assert in_child(record) == make_record(exit_code=7, status=State.STOPPED)


def test_a_record_that_outgrows_a_full_disk_is_not_silently_torn(tmp_path: Path) -> None:
    # The last record is longer than the first by its times and its error.
    started = make_record(error="", limits={})
    padding = _PAGE - len(encode_record(started))
    started = make_record(error="x" * padding, limits={})
    assert len(encode_record(started)) == _PAGE

    def outgrow() -> str:
        fd = small_disk(tmp_path)
        write_record(fd, started)
        fill(tmp_path)
        ended = make_record(error="x" * padding, limits={}, finished=datetime.now(UTC), signal=9)
        try:
            overwrite_record(fd, ended)
        except OSError:
            return "told"
        # If need be without its error, which is what made it too long.
        found = msgspec.structs.replace(read_record(str(tmp_path), ID), error=ended.error)
        return "written" if found == ended else "torn"

    assert in_child(outgrow) != "torn"


def test_a_process_out_of_descriptors_leaves_no_container_behind(tmp_path: Path) -> None:
    def create() -> list[str]:
        store = Store(tmp_path)
        held: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        while len(held) < 64:
            try:
                held.append(os.dup(0))
            except OSError:
                break
        with pytest.raises(OSError, match="Too many open files"):
            store.create(make_record())
        for fd in held:
            os.close(fd)
        return store.ids()

    assert in_child(create) == []


def test_a_container_that_finds_no_room_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    def create() -> tuple[str, list[str]]:
        small_disk(tmp_path)
        fill(tmp_path)
        store = Store(tmp_path)
        with pytest.raises(StateError) as caught:
            store.create(make_record())
        return str(caught.value), store.ids()

    message, left = in_child(create)
    assert "No space left on device; use --root" in message
    assert left == []


def journal_over_a_full_disk(path: Path, fd: int) -> tuple[list[str], int, bool]:
    """(types that are read in the end, events lost as told, whether any was lost or doubled)."""
    os.close(fd)
    journal = Journal(str(path))
    journal.append(event(EventType.CREATED, ID, n=-1))
    fill(path)
    for n in range(200):
        journal.append(event(EventType.STARTED, ID, n=n), event(EventType.PAUSED, ID, n=n))
    os.unlink(path / "filler")
    journal.append(event(EventType.EXITED, ID))
    journal.close()
    with JournalReader(str(path)) as reader:
        events = reader.read()
    lost = sum(int(e.attributes["count"] or 0) for e in events if e.type == EventType.EVENTS_LOST)
    written = [e.attributes["n"] for e in events if e.type in (EventType.STARTED, EventType.PAUSED)]
    in_order = written == sorted(written, key=lambda n: int(str(n)))
    return [e.type for e in events[:1] + events[-2:]], lost, in_order and len(written) + lost == 400


def test_a_journal_counts_what_a_full_disk_costs(tmp_path: Path) -> None:
    types, lost, exact = in_child(lambda: journal_over_a_full_disk(tmp_path, small_disk(tmp_path)))
    assert types == ["created", "events_lost", "exited"]
    assert lost > 300
    assert exact
