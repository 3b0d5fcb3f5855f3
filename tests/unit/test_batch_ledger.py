"""The memory of a batch: what is done stays done, whatever was killed while it was written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craterun.batch.ledger import Known, Ledger
from craterun.batch.results import Failure, Outcome, encode_result, make_result
from craterun.core.errors import StateError, UsageError
from craterun.core.units import is_id

ROOT = "/state"


@contextmanager
def ledger(
    path: Path,
    *,
    resume: bool = False,
    rerun_failed: bool = False,
    root: str = ROOT,
    containers_left: bool = False,
) -> Iterator[Ledger]:
    opened = Ledger(str(path), root, resume=resume, rerun_failed=rerun_failed, attempts=3)
    try:
        yield opened
        if not containers_left:
            opened.forget_killed()
    finally:
        opened.close()


@contextmanager
def killed(path: Path, *, resume: bool = False, rerun_failed: bool = False) -> Iterator[Ledger]:
    """A ledger whose process is killed at the end of the block."""
    opened = Ledger(str(path), ROOT, resume=resume, rerun_failed=rerun_failed, attempts=3)
    yield opened
    opened._file.close()


def line(number: int, key: str | None, failure: Failure | None = None) -> bytes:
    outcome = Outcome(failure=failure, container=f"{number:016x}")
    return encode_result(make_result(number, key, outcome, 1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results"


def test_what_has_a_result_is_done_by_key_or_by_line(path: Path) -> None:
    with ledger(path) as first:
        assert first.look_up("a", 1) is Known.NEW
        first.append(line(1, "a"))
        first.append(line(2, "b", Failure.EXIT))
        first.append(line(7, None))
        first.append(line(8, None, Failure.TIMEOUT))
        first.append(line(9, "c", Failure.CANCELLED))
        first.append(line(10, "d", Failure.INVALID))
    with ledger(path, resume=True) as second:
        assert second.look_up("a", 100) is Known.SUCCEEDED
        assert second.look_up("b", 101) is Known.FAILED
        assert [second.look_up(None, n) for n in (1, 7, 8, 9)] == [
            Known.NEW, Known.SUCCEEDED, Known.FAILED, Known.NEW,
        ]  # fmt: skip
        assert second.look_up("c", 9) is Known.NEW  # cancelled is not done
        assert second.look_up("d", 10) is Known.NEW  # its line may have been mended
        assert [second.is_known_as_invalid(*job) for job in (("c", 10), ("d", 100))] == [
            False, True,
        ]  # fmt: skip
    with ledger(path, resume=True, rerun_failed=True) as third:
        assert third.look_up("a", 1) is Known.SUCCEEDED
        assert third.look_up("b", 2) is Known.NEW
        assert third.look_up(None, 8) is Known.NEW


def test_invalid_lines_are_known_by_their_keys_and_as_often_as_there_are_results(
    path: Path,
) -> None:
    with ledger(path) as first:
        for number, key in ((1, "a"), (2, "b"), (3, "b"), (4, None)):
            first.append(line(number, key, Failure.INVALID))
    with ledger(path, resume=True) as second:
        asked: list[tuple[str | None, int]] = [
            ("c", 1), ("b", 9), ("b", 10), ("b", 11), (None, 4), (None, 5), ("a", 4), ("a", 1),
        ]  # fmt: skip
        assert [second.is_known_as_invalid(*job) for job in asked] == [
            False, True, True, False, True, False, True, False,
        ]  # fmt: skip


def test_what_was_kept_of_a_job_is_known_only_if_it_is_run_again(path: Path) -> None:
    def kept(number: int, key: str | None, failure: Failure | None) -> bytes:
        outcome = Outcome(failure=failure, container=f"{number:016x}")
        return encode_result(make_result(number, key, outcome, 1, folder="/state/x"))

    with ledger(path) as first:
        first.append(kept(1, "a", Failure.CANCELLED))
        first.append(kept(2, "b", Failure.EXIT))
        first.append(kept(3, "c", Failure.CANCELLED))
        first.append(kept(4, "c", None))
        first.append(line(5, "d", Failure.CANCELLED))
        first.append(kept(6, None, Failure.CANCELLED))
    with ledger(path, resume=True) as second:
        jobs: list[tuple[str | None, int]] = [
            ("a", 9), ("a", 9), ("b", 2), ("c", 3), ("d", 5), (None, 6), (None, 1),
        ]  # fmt: skip
        assert [second.take_kept(*job) for job in jobs] == [
            f"{1:016x}", None, None, None, None, f"{6:016x}", None,
        ]  # fmt: skip
    with ledger(path, resume=True, rerun_failed=True) as third:
        assert third.take_kept("b", 2) == f"{2:016x}"


def test_a_key_is_taken_once(path: Path) -> None:
    with ledger(path) as first:
        assert [first.look_up("a", n) for n in (1, 2)] == [Known.NEW, Known.TAKEN]
        first.append(line(1, "a"))
    with ledger(path, resume=True) as second:
        assert [second.look_up("a", n) for n in (1, 2)] == [Known.SUCCEEDED, Known.TAKEN]


def test_a_key_that_looks_like_a_line_is_none(path: Path) -> None:
    with ledger(path) as first:
        first.append(line(1, "line 2"))
        assert first.container_id("line 2", 1, 1) != first.container_id(None, 2, 1)
    with ledger(path, resume=True) as second:
        assert second.look_up(None, 2) is Known.NEW
        assert second.look_up("2", 2) is Known.NEW


def test_results_are_never_overwritten_or_mixed(path: Path) -> None:
    with ledger(path) as first:
        first.append(line(1, "a"))
        with pytest.raises(UsageError, match="another batch is writing"), ledger(path, resume=True):
            pass
    content = path.read_bytes()
    with (
        pytest.raises(UsageError, match="not empty; go on where it ends by --resume"),
        ledger(path),
    ):
        pass
    with pytest.raises(UsageError, match="not a regular file"), ledger(Path(os.devnull)):
        pass
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_used_is_not_left_behind(tmp_path: Path) -> None:
    name = "x" * 250  # there is no room for what is appended to it
    with pytest.raises(OSError, match="File name too long"), ledger(tmp_path / name):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / name).touch()  # by somebody else
    with pytest.raises(OSError, match="File name too long"), ledger(tmp_path / name):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


@given(st.data())
def test_a_result_that_was_cut_short_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "results"
    lines = [line(n, f"key {n}") for n in range(1, 4)]
    content = b"".join(lines)
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    # One that lacks nothing but the line's end is a result, too.
    whole = (content[:cut] + b"\n").count(b"}\n")
    with ledger(path, resume=True) as second:
        assert path.read_bytes() == b"".join(lines[:whole])
        known = [second.look_up(f"key {n}", n) for n in range(1, 4)]
        assert known == [Known.SUCCEEDED] * whole + [Known.NEW] * (3 - whole)
        second.append(lines[0])
        assert path.read_bytes() == b"".join(lines[:whole]) + lines[0]


@pytest.mark.parametrize(
    "content",
    [
        b"hello\n",
        b"{}\n",
        b"\n",
        b'{"line": 0}\n',
        b"hello",
        b'{"command":["true"]}',
        b" ",
    ],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"line 1"), ledger(path, resume=True):
        pass
    assert path.read_bytes() == content


def test_only_the_batch_that_goes_on_for_one_that_was_killed_knows_its_containers(
    path: Path,
) -> None:
    with killed(path) as first:
        ids = {first.container_id(k, n, a) for k in ("a", None) for n in (1, 2) for a in (1, 2)}
        assert all(map(is_id, ids))
        assert len(ids) == 6  # with a key, the line is of no importance
        first.append(line(1, "a", Failure.CANCELLED))
        assert not first.crashed
        begun = [(2, first.container_id("b", 1, 2)), (1, first.container_id("b", 1, 1))]
    with pytest.raises(UsageError, match="--root /state"), ledger(path, resume=True, root="/other"):
        pass
    with ledger(path, resume=True) as second:
        assert second.crashed
        assert list(second.killed_ids("b", 5))[1:] == begun
        # There is a result already: what is looked for is another try of the same job.
        assert not ids.intersection(dict(second.killed_ids("a", 1)).values())
        assert second.container_id("b", 5, 2) not in ids  # its own containers are others
        assert second.take_removed() == [f"{1:016x}"]
    with ledger(path, resume=True) as third:
        assert not third.crashed
        assert list(third.killed_ids("b", 5)) == []
        assert third.take_removed() == []


def test_batches_that_were_killed_are_known_until_one_has_seen_all_of_the_input(path: Path) -> None:
    with killed(path) as first:
        ids = [first.container_id("a", 1, 1)]
    with killed(path, resume=True) as second:
        ids.append(second.container_id("a", 1, 1))
    with ledger(path, resume=True, containers_left=True) as third:
        assert [i for n, i in third.killed_ids("a", 1) if n == 1] == ids[::-1]
        own = third.container_id("a", 1, 1)
    with ledger(path, resume=True) as fourth:
        assert fourth.crashed
        assert [i for n, i in fourth.killed_ids("a", 1) if n == 1] == ids[::-1]
        assert own not in ids
    with ledger(path, resume=True) as fifth:
        assert not fifth.crashed


def test_a_failed_job_that_was_begun_again_is_known_without_being_asked_for(path: Path) -> None:
    with ledger(path) as first:
        first.append(line(1, "a", Failure.EXIT))
        first.append(line(2, None, Failure.EXIT))
    with killed(path, resume=True, rerun_failed=True) as second:
        ids = [second.container_id("a", 1, 1), second.container_id(None, 2, 1)]
    with ledger(path, resume=True) as third:
        assert (third.look_up("a", 1), third.look_up(None, 2)) == (Known.FAILED, Known.FAILED)
        assert [dict(third.killed_ids(*job))[1] for job in (("a", 1), (None, 2))] == ids


def test_a_symbolic_link_leads_to_the_same_batch(path: Path) -> None:
    with killed(path) as first:
        known = first.container_id("a", 1, 1)
    link = path.parent / "latest"
    link.symlink_to(path.name)
    with ledger(link, resume=True) as second:
        assert known in dict(second.killed_ids("a", 1)).values()
    assert sorted(path.parent.iterdir()) == [link, path]


def test_a_batch_that_was_killed_before_its_first_result_is_not_forgotten(path: Path) -> None:
    with killed(path):
        pass
    with pytest.raises(UsageError, match="was killed; go on with it by --resume"), ledger(path):
        pass
    with ledger(path, resume=True) as second:
        assert second.crashed
    assert list(path.parent.iterdir()) == [path]


def test_what_does_not_fit_on_the_disk_is_taken_back(path: Path) -> None:
    limit = 100
    with ledger(path) as first:
        first.append(b"x" * 60 + b"\n")
        pid = os.fork()
        if pid == 0:
            import resource
            import signal

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                first.append(b"y" * 60 + b"\n")
            except OSError:
                os._exit(path.stat().st_size)
            os._exit(255)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 61
