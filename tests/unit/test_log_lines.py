"""Prefixes before lines, and who may interrupt whom; readers that keep a folder alive."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craterun.cli.logs import Lines, Output
from craterun.core.errors import CraterunError, NoSuchContainerError
from craterun.core.instants import rfc3339
from craterun.core.logoptions import LogOptions
from craterun.state import readers
from craterun.state.openlog import OpenLog
from craterun.state.store import Store
from tests.unit.builders import ID, make_record, no_leaked_descriptors

DATA = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"d\ne", b"\n\n"]), min_size=1, max_size=5)
CHUNKS = st.lists(st.tuples(st.integers(0, 1), DATA.map(b"".join)), max_size=12)


def printed(chunks: list[tuple[int, bytes]], *, whole: bool, timestamps: bool = False) -> bytes:
    """What two sources with the labels ``0|`` and ``1|`` make of it on one descriptor."""
    with tempfile.TemporaryFile() as file:
        output = Output()
        sources = [
            Lines(output, file.fileno(), b"%d|" % n, timestamps=timestamps, whole=whole)
            for n in range(2)
        ]
        for number, (source, data) in enumerate(chunks):
            sources[source].put(number, data)
        for lines in sources:
            lines.finish()
        output.flush()
        file.seek(0)
        return file.read()


@given(CHUNKS)
def test_whole_lines_are_never_mixed(chunks: list[tuple[int, bytes]]) -> None:
    result = printed(chunks, whole=True)
    for source in range(2):
        text = b"".join(data for who, data in chunks if who == source)
        lines = text.split(b"\n")
        lines = lines if lines[-1] else lines[:-1]
        mine = [line[2:] for line in result.split(b"\n") if line.startswith(b"%d|" % source)]
        assert mine == lines


@given(CHUNKS)
def test_one_source_comes_out_as_it_went_in(chunks: list[tuple[int, bytes]]) -> None:
    """Also a last line without a newline, and at once."""
    text = b"".join(data for _, data in chunks)
    lines = text.split(b"\n")
    expected = b"\n".join(b"0|" + line for line in lines[:-1]) + (b"\n" if lines[:-1] else b"")
    expected += b"0|" + lines[-1] if lines[-1] else b""
    for whole in (False, True):
        assert printed([(0, data) for _, data in chunks], whole=whole) == expected


def test_a_line_has_the_time_of_the_chunk_that_it_began_in() -> None:
    result = printed([(0, b"a"), (0, b"b\nc"), (0, b"\nd\n")], whole=False, timestamps=True)
    assert result.decode() == "".join(
        f"0|{rfc3339(time)} {line}\n" for time, line in [(0, "ab"), (1, "c"), (2, "d")]
    )


def test_a_line_too_long_to_be_kept_is_printed_and_ended_before_another(tmp_path: Path) -> None:
    result = printed([(0, b"x" * 70_000), (1, b"y\n"), (0, b"z\n")], whole=True)
    assert result == b"0|" + b"x" * 70_000 + b"\n1|y\nz\n"


# --- readers and removal --------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "state")
    os.close(store.create(make_record()))
    (tmp_path / "state" / ID / "stdout.log").write_bytes(b"text\n")
    return store


def folders(store: Store) -> list[str]:
    """What is in the state directory, names left out."""
    return [name for name in os.listdir(store.root) if name != ".names"]


def test_a_folder_that_nobody_reads_is_deleted_at_once(store: Store) -> None:
    with no_leaked_descriptors():
        store.remove(make_record())
        assert not folders(store)


def test_a_folder_that_is_read_lives_until_its_last_reader_leaves(store: Store) -> None:
    with no_leaked_descriptors():
        one, other = OpenLog(store, ID), OpenLog(store, ID)
        store.remove(make_record())
        assert folders(store) == [readers.TRASH]
        with pytest.raises(NoSuchContainerError):
            OpenLog(store, ID)
        for log in (one, other):
            fd = os.open("stdout.log", os.O_RDONLY, dir_fd=log.directory)
            assert os.read(fd, 10) == b"text\n"
            os.close(fd)
            log.check_whole()
            log.close()
        assert not folders(store)


def test_a_reader_that_comes_amid_the_removal_learns_of_it(store: Store) -> None:
    os.unlink(os.path.join(store.path(ID), "metadata.json"))  # what removing begins with
    log = OpenLog(store, ID)
    log.check_whole()
    readers._remove_tree(store.path(ID))
    with pytest.raises(NoSuchContainerError, match="before its log could be read"):
        log.check_whole()
    log.close()


def test_a_lock_is_seen_by_others_and_not_by_its_holder(tmp_path: Path) -> None:
    one, other = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    assert readers.hold(one)
    assert (readers.is_held(one), readers.is_held(other)) == (False, True)
    assert readers.has_readers(str(tmp_path))
    readers.release(one)
    assert not readers.has_readers(str(tmp_path))
    os.close(one)
    os.close(other)


def test_foreign_files_in_the_trash_are_left_alone(store: Store) -> None:
    trash = Path(store.root, readers.TRASH)
    trash.mkdir()
    (trash / "mine").mkdir()
    (trash / ("0" * 16)).mkdir()
    readers.sweep(store.root)
    assert os.listdir(trash) == ["mine"]


def test_a_container_without_log_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    os.close(store.create(make_record(log=LogOptions(driver="none"))))
    with no_leaked_descriptors(), pytest.raises(CraterunError, match="keeps no log"):
        OpenLog(store, ID)
