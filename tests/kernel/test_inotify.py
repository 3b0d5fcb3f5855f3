"""Changes of a directory are told, from the making of the watch on, and nothing else is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from craterun.linux.inotify import DirectoryWatch
from tests.leaks import open_descriptors
from tests.unit.builders import no_leaked_descriptors

_SECONDS = 30


def _move_in(path: Path) -> None:
    (path.parent / "outside").write_text("x")
    (path.parent / "outside").rename(path / "inside")


def _replace(path: Path) -> None:
    (path / "old").rename(path / "new")


CHANGES: dict[str, Callable[[Path], None]] = {
    "a file moved in": _move_in,
    "a file replaced by rename": _replace,
    "a file removed": lambda path: (path / "old").unlink(),
    "the directory removed": shutil.rmtree,
}


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    path = tmp_path / "watched"
    path.mkdir()
    (path / "old").write_text("")
    return path


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_ends_the_wait(watched: Path, change: Callable[[Path], None]) -> None:
    with no_leaked_descriptors(), DirectoryWatch(str(watched)) as watch:
        change(watched)
        assert watch.wait(_SECONDS)


def test_without_a_change_the_wait_ends_by_time(watched: Path) -> None:
    with DirectoryWatch(str(watched)) as watch:
        assert not watch.wait(0)


def test_a_change_is_told_once(watched: Path) -> None:
    with DirectoryWatch(str(watched)) as watch:
        for _ in range(20):
            _move_in(watched)
        assert watch.wait(_SECONDS)
        assert not watch.wait(0)
        (watched / "inside").unlink()
        assert watch.wait(_SECONDS)


def test_reading_and_writing_a_file_is_no_change_of_the_directory(watched: Path) -> None:
    with DirectoryWatch(str(watched)) as watch:
        (watched / "old").write_text("more")
        (watched / "old").read_text()
        os.listdir(watched)
        assert not watch.wait(0)


def test_a_directory_that_is_not_there_is_an_error_and_leaks_nothing(tmp_path: Path) -> None:
    with no_leaked_descriptors(), pytest.raises(FileNotFoundError, match="inotify_add_watch"):
        DirectoryWatch(str(tmp_path / "nowhere"))


def test_a_name_that_is_not_utf_8_can_be_watched(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(path)
    with DirectoryWatch(os.fsdecode(path)) as watch:
        os.mkdir(path + b"/sub")
        os.rmdir(path + b"/sub")
        assert watch.wait(_SECONDS)


def test_a_watch_is_not_inherited_by_programs(watched: Path) -> None:
    with DirectoryWatch(str(watched)):
        found = [number for number, to in open_descriptors().items() if to == "anon_inode:inotify"]
        inheritable = [os.get_inheritable(number) for number in found]
    assert inheritable
    assert not any(inheritable)
