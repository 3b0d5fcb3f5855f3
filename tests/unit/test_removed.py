"""How containers that removed themselves ended: found by those who wait, and bounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from craterun.core.life import ExitStatus
from craterun.state import removed
from craterun.state.removed import find_removed, note_removed
from tests.unit.builders import no_leaked_descriptors

STATUSES = [ExitStatus(0), ExitStatus(255), ExitStatus(137, 9), ExitStatus(None)]


def make_id(number: int) -> str:
    return f"{number:016x}"


def total_size(root: Path) -> int:
    return sum(path.stat().st_size for path in root.iterdir())


@pytest.mark.parametrize("status", STATUSES, ids=str)
def test_a_status_is_found_as_it_was_noted(tmp_path: Path, status: ExitStatus) -> None:
    with no_leaked_descriptors():
        note_removed(str(tmp_path), make_id(1), status)
        assert find_removed(str(tmp_path), make_id(1)) == status


def test_each_container_has_its_own_status(tmp_path: Path) -> None:
    for number in range(50):
        note_removed(str(tmp_path), make_id(number), ExitStatus(number))
    for number in range(50):
        assert find_removed(str(tmp_path), make_id(number)) == ExitStatus(number)


def test_what_was_never_noted_is_not_found(tmp_path: Path) -> None:
    assert find_removed(str(tmp_path), make_id(1)) is None
    assert find_removed(str(tmp_path / "nowhere"), make_id(1)) is None
    note_removed(str(tmp_path), make_id(1), ExitStatus(0))
    assert find_removed(str(tmp_path), make_id(2)) is None
    assert find_removed(str(tmp_path), make_id(1)[:8]) is None


def test_the_last_note_counts(tmp_path: Path) -> None:
    note_removed(str(tmp_path), make_id(1), ExitStatus(1))
    note_removed(str(tmp_path), make_id(1), ExitStatus(2))
    assert find_removed(str(tmp_path), make_id(1)) == ExitStatus(2)


def test_only_the_owner_can_read_the_notes(tmp_path: Path) -> None:
    note_removed(str(tmp_path), make_id(1), ExitStatus(0))
    (noted,) = tmp_path.iterdir()
    assert noted.stat().st_mode & 0o777 == 0o600


def test_notes_are_bounded_and_the_recent_ones_survive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removed, "_MAX_BYTES", 400)
    for number in range(200):
        note_removed(str(tmp_path), make_id(number), ExitStatus(number))
        assert total_size(tmp_path) < 3 * 400
        for recent in range(max(0, number - 8), number + 1):
            assert find_removed(str(tmp_path), make_id(recent)) == ExitStatus(recent)
    assert find_removed(str(tmp_path), make_id(0)) is None
    assert len(list(tmp_path.iterdir())) <= 2


def test_the_bound_holds_thousands_of_notes() -> None:
    assert 1024 * 30 < removed._MAX_BYTES < 1024 * 1024


def test_a_note_is_not_written_through_a_symlink(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    note_removed(str(root), make_id(1), ExitStatus(0))
    (noted,) = root.iterdir()
    victim = tmp_path / "victim"
    noted.rename(victim)
    noted.symlink_to(victim)
    before = victim.read_bytes()
    with pytest.raises(OSError, match="symbolic links"):
        note_removed(str(root), make_id(2), ExitStatus(0))
    assert victim.read_bytes() == before


def torn(root: Path, size: int) -> None:
    """A note of container 1, of which only ``size`` bytes reached the disk."""
    note_removed(str(root), make_id(1), ExitStatus(137, 9))
    (noted,) = root.iterdir()
    os.truncate(noted, size)


def every_size(root: Path) -> range:
    """Sizes at which a crash or a full disk may have cut the note of container 1."""
    root.mkdir()
    note_removed(str(root), make_id(1), ExitStatus(137, 9))
    return range(total_size(root))


def test_a_torn_note_is_not_taken_for_another_status(tmp_path: Path) -> None:
    found = set()
    for size in every_size(tmp_path / "whole"):
        root = tmp_path / str(size)
        root.mkdir()
        torn(root, size)
        found.add(find_removed(str(root), make_id(1)))
    assert None in found
    assert found <= {None, ExitStatus(137, 9)}


def test_a_torn_note_does_not_swallow_the_next(tmp_path: Path) -> None:
    for size in every_size(tmp_path / "whole"):
        root = tmp_path / str(size)
        root.mkdir()
        torn(root, size)
        note_removed(str(root), make_id(2), ExitStatus(2))
        assert find_removed(str(root), make_id(2)) == ExitStatus(2), size


@pytest.mark.parametrize(
    "line",
    [b"", b"\xff\xfe", b"{}", b"[]", b"null", b'["0000000000000002"]', b"[1,2,3]", b"\0" * 99],
)
def test_foreign_lines_are_passed_over(tmp_path: Path, line: bytes) -> None:
    note_removed(str(tmp_path), make_id(1), ExitStatus(1))
    (noted,) = tmp_path.iterdir()
    noted.write_bytes(noted.read_bytes() + line + b"\n")
    note_removed(str(tmp_path), make_id(2), ExitStatus(2))
    assert find_removed(str(tmp_path), make_id(1)) == ExitStatus(1)
    assert find_removed(str(tmp_path), make_id(2)) == ExitStatus(2)
