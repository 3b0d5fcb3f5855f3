"""The journal: many writers, many segments, torn elements, slow readers, full disks."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craterun.core.events import Event, EventType, encode_event, event
from craterun.state import journal
from craterun.state.journal import (
    Journal,
    JournalReader,
    Told,
    journal_directory,
    note,
    segments,
    signaled,
    was_sent_signal,
)
from tests.unit.builders import ID, no_leaked_descriptors

SMALL = 1000


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "state")


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """About ten events in each, and all of them kept."""
    monkeypatch.setattr(journal, "SEGMENT_BYTES", SMALL)
    monkeypatch.setattr(journal, "KEPT_SEGMENTS", 10**6)


def numbered(count: int, first: int = 0) -> list[Event]:
    return [Event(1, "created", ID, None, {"n": n}) for n in range(first, first + count)]


def numbers(events: list[Event]) -> list[object]:
    return [what.attributes["n"] for what in events]


def read_all(root: str) -> list[Event]:
    with JournalReader(root) as reader:
        return reader.read()


def newest(root: str) -> Path:
    directory = Path(journal_directory(root))
    return directory / str(segments(str(directory))[-1])


def test_what_was_written_is_read_in_order(root: str) -> None:
    with no_leaked_descriptors():
        note(root, *numbered(3))
        note(root, *numbered(2, 3))
        assert numbers(read_all(root)) == [0, 1, 2, 3, 4]


def test_there_is_nothing_to_read_before_the_first_event(root: str) -> None:
    with no_leaked_descriptors(), JournalReader(root) as reader:
        assert reader.read() == []
        note(root, *numbered(1))
        assert numbers(reader.read()) == [0]
        assert reader.read() == []


def test_a_reader_from_the_end_sees_only_what_comes(root: str) -> None:
    note(root, *numbered(3))
    with JournalReader(root, at_end=True) as reader:
        assert reader.read() == []
        note(root, *numbered(1, 3))
        assert numbers(reader.read()) == [3]


def test_only_the_owner_can_read_it(root: str) -> None:
    note(root, *numbered(1))
    assert newest(root).stat().st_mode & 0o777 == 0o600
    assert newest(root).parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("small_segments")
@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_no_batch_is_lost_or_doubled_at_a_border(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    root = str(tmp_path_factory.mktemp("journal"))
    writers = [Journal(root), Journal(root)]
    count = 0
    with JournalReader(root) as reader:
        seen: list[Event] = []
        for turn, size in enumerate(sizes):
            writers[turn % 2].append(*numbered(size, count))
            count += size
            seen += reader.read()
    for writer in writers:
        writer.close()
    assert numbers(seen) == list(range(count))
    assert seen == read_all(root)


def _write_many(root: str, who: int, count: int) -> None:
    writer = Journal(root)
    for n in range(count):
        writer.append(
            Event(1, "created", f"{who:016x}", None, {"n": n}),
            Event(1, "started", f"{who:016x}", None, {"n": n}),
        )
    writer.close()


@pytest.mark.usefixtures("small_segments")
def test_writers_side_by_side_lose_and_double_nothing(root: str) -> None:
    """Hundreds of borders, each raced for by six processes, and a reader behind them."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(root, n, 200)) for n in range(6)]
    seen: list[Event] = []
    with JournalReader(root) as reader:
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            seen += reader.read()
        seen += reader.read()
        assert reader.missed == 0
    for n, writer in enumerate(writers):
        writer.join()
        for kind in ("created", "started"):
            mine = [e for e in seen if (e.id, e.type) == (f"{n:016x}", kind)]
            assert numbers(mine) == list(range(200))
    assert len(seen) == 6 * 2 * 200
    assert seen == read_all(root)
    assert len(segments(journal_directory(root))) > 100


def test_the_size_is_bounded_and_a_slow_reader_knows_what_it_missed(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SEGMENT_BYTES", SMALL)
    writer = Journal(root)
    with JournalReader(root) as reader:
        writer.append(*numbered(1))
        assert numbers(reader.read()) == [0]
        for n in range(1, 500):
            writer.append(*numbered(1, n))
            total = sum(path.stat().st_size for path in newest(root).parent.iterdir())
            assert total < (journal.KEPT_SEGMENTS + 1) * SMALL
        seen = numbers(reader.read())
        # The segment that it had open it could read to its end.
        assert seen[0] == 1
        assert seen[-1] == 499
        assert reader.missed > 0
        assert len(seen) < 499
    writer.close()
    assert len(segments(journal_directory(root))) == journal.KEPT_SEGMENTS


@pytest.mark.usefixtures("small_segments")
def test_a_writer_that_slept_through_many_segments_finds_the_newest(root: str) -> None:
    sleeper, busy = Journal(root), Journal(root)
    sleeper.append(*numbered(1))
    busy.append(*numbered(100, 1))
    before = segments(journal_directory(root))
    sleeper.append(*numbered(1, 101))
    sleeper.append(*numbered(1, 102))
    sleeper.close()
    busy.close()
    assert numbers(read_all(root)) == list(range(103))
    assert segments(journal_directory(root)) in (before, [*before, before[-1] + 1])


@pytest.mark.parametrize("size", range(1, 60, 7))
def test_a_torn_element_hides_no_other(root: str, size: int) -> None:
    note(root, *numbered(1))
    with open(newest(root), "ab") as file:
        file.write(encode_event(numbered(1, 99)[0])[:size])
    with JournalReader(root) as reader:
        assert numbers(reader.read()) == [0]
        note(root, *numbered(1, 1))
        assert numbers(reader.read()) == [1]
    assert numbers(read_all(root)) == [0, 1]


def test_an_element_that_arrives_in_pieces_is_one(root: str) -> None:
    note(root, *numbered(1))
    with JournalReader(root) as reader, open(newest(root), "ab", buffering=0) as file:
        seen = reader.read()
        for byte in b"".join(map(encode_event, numbered(2, 1))):
            file.write(bytes([byte]))
            seen += reader.read()
    assert numbers(seen) == [0, 1, 2]


@pytest.mark.usefixtures("small_segments")
def test_a_writer_killed_while_it_crossed_the_border_stops_nobody(root: str) -> None:
    note(root, *numbered(1))
    with open(newest(root), "ab") as file:
        file.write(b"\x1e" + b"x" * SMALL)
    with JournalReader(root) as reader:
        assert numbers(reader.read()) == [0]
        note(root, *numbered(2, 1))
        assert numbers(reader.read()) == [1, 2]
    assert segments(journal_directory(root)) == [1, 2]


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_bytes_in_a_segment_are_passed_over(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes
) -> None:
    root = str(tmp_path_factory.mktemp("journal"))
    note(root, *numbered(1))
    with open(newest(root), "ab") as file:
        file.write(junk)
    note(root, *numbered(1, 1))
    assert numbers(read_all(root)) == [0, 1]


def test_foreign_files_beside_the_segments_are_left_alone(root: str) -> None:
    note(root, *numbered(1))
    directory = newest(root).parent
    for name in ("007", "0", "-1", "9" * 30, "notes", "1.old", "٣"):
        (directory / name).write_text("mine")
    note(root, *numbered(1, 1))
    assert numbers(read_all(root)) == [0, 1]
    os.mkfifo(directory / "2")
    note(root, *numbered(1, 2))  # goes nowhere, and returns
    with pytest.raises(OSError, match="seek"):
        read_all(root)


def test_a_disk_that_is_full_costs_events_which_are_counted(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Journal(root)
    writer.append(*numbered(1))
    write = os.write

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def nearly_full(fd: int, data: bytes) -> int:
        return write(fd, data[: len(encode_event(numbered(1)[0])) + 7])

    monkeypatch.setattr(os, "write", full)
    writer.append(*numbered(2, 1))
    monkeypatch.setattr(os, "write", nearly_full)
    writer.append(event(EventType.REMOVED, ID))
    monkeypatch.setattr(os, "write", write)
    writer.append(*numbered(1, 5))
    writer.append(*numbered(1, 6))
    writer.close()
    seen = read_all(root)
    assert [what.type for what in seen] == ["created", "events_lost", "created", "created"]
    assert seen[1].attributes == {"count": 3}


def test_the_part_of_a_batch_that_fitted_is_not_called_lost(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, write = len(encode_event(numbered(1)[0])), os.write
    writer = Journal(root)
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[: size + 7]))
    writer.append(*numbered(3))
    monkeypatch.setattr(os, "write", write)
    writer.append(*numbered(1, 3))
    writer.close()
    seen = read_all(root)
    assert [what.attributes for what in seen] == [{"n": 0}, {"count": 2}, {"n": 3}]


def test_a_directory_that_cannot_be_made_costs_events_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with no_leaked_descriptors():
        note(str(tmp_path / "state"), *numbered(1))


# --- what a successor and a verdict ask -----------------------------------------------------------


def test_what_was_told_is_known(root: str) -> None:
    start = event(EventType.STARTED, ID)
    first = event(EventType.OOM, ID, kills=1)
    assert not Told(root).has(start)
    note(root, start, first)
    told = Told(root)
    assert told.has(start)
    assert told.has(first)
    assert not told.has(event(EventType.OOM, ID, kills=2))
    assert not told.has(event(EventType.EXITED, ID))
    assert not told.has(event(EventType.STARTED, "f" * 16))


def test_what_is_older_than_the_journal_counts_as_told(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SEGMENT_BYTES", SMALL)
    start = event(EventType.STARTED, ID)
    note(root, start)
    for _ in range(100):
        note(root, event(EventType.CREATED, "f" * 16))
    assert start not in read_all(root)
    assert Told(root).has(start)
    assert not Told(root).has(event(EventType.EXITED, ID))


def test_a_signal_of_ours_is_found(root: str) -> None:
    assert not was_sent_signal(root, ID, 9)
    note(root, signaled(ID, None, 15), signaled("f" * 16, None, 9))
    assert not was_sent_signal(root, ID, 9)
    note(root, signaled(ID, "web", 9))
    assert was_sent_signal(root, ID, 9)
