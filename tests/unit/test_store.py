"""The state directory: containers are found by id, prefix and name, and by nothing else."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from craterun.core.errors import (
    AmbiguousIdError,
    NameInUseError,
    NoSuchContainerError,
    StateError,
)
from craterun.core.life import Record
from craterun.state.store import SYSTEM_ROOT, Store, default_root
from tests.unit.builders import make_record, no_leaked_descriptors

A, B, C = "a" * 16, "ab" * 8, "c" * 16


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "deep" / "state")


def create(store: Store, container_id: str, name: str | None = None) -> Record:
    """A container that nobody supervises."""
    record = make_record(id=container_id, name=name)
    with no_leaked_descriptors():
        os.close(store.create(record))
    return record


def everything(store: Store) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in Path(store.root).rglob("*"))


# --- where ----------------------------------------------------------------------------------------


def test_the_root_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRATERUN_ROOT", "relative/place")
    assert default_root() == os.path.abspath("relative/place")
    monkeypatch.setenv("CRATERUN_ROOT", "")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_root() == SYSTEM_ROOT
    monkeypatch.delenv("CRATERUN_ROOT")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/alice")
    assert default_root() == "/home/alice/.craterun"


def test_a_store_does_not_move_with_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("state")
    monkeypatch.chdir("/")
    assert store.root == str(tmp_path / "state")


# --- making ---------------------------------------------------------------------------------------


def test_a_container_is_created_with_its_record_in_a_private_folder(store: Store) -> None:
    umask = os.umask(0)
    try:
        record = create(store, A, "web")
        create(store, B)
    finally:
        os.umask(umask)
    assert store.load(A) == record
    for path, mode in (
        (store.root, 0o711),  # those who may know an id can reach it, nobody lists them
        (store.path(A), 0o700),
        (store.path(B), 0o700),
        (f"{store.root}/.names", 0o700),
    ):
        assert os.stat(path).st_mode & 0o777 == mode, path
    store.remove(B)
    assert everything(store) == [".names", ".names/web", A, f"{A}/metadata.json"]


def test_a_store_without_containers_leaves_no_trace(store: Store) -> None:
    assert store.ids() == []
    assert list(store.records()) == []
    with pytest.raises(NoSuchContainerError):
        store.resolve(A)
    assert not os.path.exists(store.root)


def test_an_id_that_is_taken_is_refused_and_its_owner_unharmed(store: Store) -> None:
    record = create(store, A)
    with pytest.raises(StateError, match="File exists"), no_leaked_descriptors():
        store.create(make_record(id=A, name="other"))
    assert store.load(A) == record


def test_a_name_belongs_to_one_container(store: Store) -> None:
    create(store, A, "web")
    with pytest.raises(NameInUseError, match=A), no_leaked_descriptors():
        store.create(make_record(id=B, name="web"))
    assert store.ids() == [A]
    assert store.resolve("web") == A


def test_a_name_whose_container_was_removed_by_hand_is_free_again(store: Store) -> None:
    create(store, A, "web")
    os.unlink(f"{store.path(A)}/metadata.json")
    os.rmdir(store.path(A))
    create(store, B, "web")
    assert store.resolve("web") == B


def test_a_root_that_cannot_be_made_is_an_error_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="use --root or CRATERUN_ROOT"), no_leaked_descriptors():
        Store(tmp_path / "file" / "state").create(make_record())


def _refuse(number: int) -> Callable[..., Any]:
    def refuse(*arguments: object, **options: object) -> Any:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("call", ["open", "write", "rename", "symlink"])
def test_a_container_that_could_not_be_created_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    create(store, B, "other")
    before = everything(store)
    with monkeypatch.context() as patch, no_leaked_descriptors():
        patch.setattr(os, call, _refuse(errno.EMFILE if call == "open" else errno.ENOSPC))
        # Where it is this process that has no room, no other directory would do.
        with pytest.raises(OSError if call == "open" else StateError):
            store.create(make_record(id=A, name="web"))
    assert everything(store) == before


# --- finding --------------------------------------------------------------------------------------


def test_a_container_is_found_by_id_prefix_and_name(store: Store) -> None:
    create(store, A, "web")
    create(store, B)
    assert [store.resolve(text) for text in (A, A[:2], A[:15], "web")] == [A] * 4
    assert [store.resolve(text) for text in (B, "ab", B[:3])] == [B] * 3


def test_a_prefix_of_several_is_ambiguous_and_names_them(store: Store) -> None:
    create(store, A)
    create(store, B)
    with pytest.raises(AmbiguousIdError, match=f"{A}, {B}; give more digits"):
        store.resolve("a")


def test_an_ambiguity_of_many_is_told_in_a_few(store: Store) -> None:
    for number in range(20):
        create(store, f"f{number:015x}")
    with pytest.raises(AmbiguousIdError, match="and others") as caught:
        store.resolve("f")
    assert str(caught.value).count("f0") == 8


def test_an_ambiguity_of_eight_is_told_in_full(store: Store) -> None:
    for number in range(8):
        create(store, f"f{number:015x}")
    with pytest.raises(AmbiguousIdError) as caught:
        store.resolve("f")
    assert "and others" not in str(caught.value)
    assert str(caught.value).count("f0") == 8


def test_an_empty_id_is_told_as_such(store: Store) -> None:
    with pytest.raises(NoSuchContainerError, match="the container id is empty"):
        store.resolve("")


def test_a_name_comes_before_a_prefix_and_a_whole_id_before_a_name(store: Store) -> None:
    create(store, A)
    create(store, C, "aaaa")
    assert store.resolve("aaaa") == C
    os.symlink(C, f"{store.root}/.names/{A}")  # parse_name allows no such name
    assert store.resolve(A) == A


NOTHING = (
    "", ".", "..", "../x", "/", "/etc", "*", ".names", ".removed", "a b", "\0", "\x1b[2J",
    "x" * 300, "b", "A" * 16, f"{A}/", f"./{A}", f"../state/{A}", f"{A}a", "\udcff",
)  # fmt: skip


@pytest.mark.parametrize("text", NOTHING)
def test_what_is_neither_id_nor_prefix_nor_name_finds_nothing(store: Store, text: str) -> None:
    create(store, A, "web")
    with pytest.raises(NoSuchContainerError) as caught:
        store.resolve(text)
    assert str(caught.value).isprintable()


@given(st.text(st.one_of(st.characters(), st.sampled_from("./a"))))
@example("\ud800")
def test_no_text_leads_out_of_the_store(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "hypothesis-store"
    store = Store(root)
    if not store.ids():
        create(store, A)
    try:
        found = store.resolve(text)
    except NoSuchContainerError as error:
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert A.startswith(text)
        assert found == A


@pytest.mark.parametrize("target", ["..", "/etc", "nowhere", B, f"../{A}", ""])
def test_a_foreign_link_among_the_names_is_no_container(store: Store, target: str) -> None:
    create(store, A, "web")
    if target:
        os.symlink(target, f"{store.root}/.names/x")
    else:
        Path(f"{store.root}/.names/x").write_text(A)
    with pytest.raises(NoSuchContainerError):
        store.resolve("x")


def test_foreign_things_in_the_root_are_not_containers(store: Store, tmp_path: Path) -> None:
    create(store, A)
    root = Path(store.root)
    (root / B).write_text("a file")
    (root / C).symlink_to(tmp_path)
    (root / "lost+found").mkdir()
    (root / A[:15]).mkdir()
    (root / A.upper()).mkdir()
    assert store.ids() == [A]
    assert [record for record in store.records() if isinstance(record, Record)] == [store.load(A)]


def test_a_root_that_is_a_file_is_an_error_not_an_empty_list(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="Not a directory"):
        Store(tmp_path / "file").ids()


def test_one_broken_record_is_named_and_the_others_are_listed(store: Store) -> None:
    for container_id in (A, B, C):
        create(store, container_id)
    Path(store.path(B), "metadata.json").write_text("{")
    first, broken, last = store.records()
    assert (first, last) == (store.load(A), store.load(C))
    assert isinstance(broken, tuple)
    assert broken[0] == B
    assert "damaged" in str(broken[1])
    with pytest.raises(StateError, match="damaged"):
        store.load(B)


def test_a_folder_without_a_record_is_broken_unless_somebody_is_making_it(store: Store) -> None:
    fd = store.create(make_record(id=A, name=None))
    os.unlink(f"{store.path(A)}/metadata.json")
    assert list(store.records()) == []
    os.close(fd)
    assert list(store.records()) == [], "between mkdir and flock it looks like this"
    os.utime(store.path(A), (0, 0))
    ((container_id, error),) = (found for found in store.records() if isinstance(found, tuple))
    assert container_id == A
    assert f"has no metadata.json; remove it with: craterun rm --force {A}" in str(error)
    with pytest.raises(StateError, match=r"has no metadata\.json"):
        store.load(A)


def test_a_container_that_was_removed_meanwhile_is_not_found(store: Store) -> None:
    create(store, A)
    store.remove(A)
    with pytest.raises(NoSuchContainerError, match="has been removed"):
        store.load(A)


# --- removing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_id", [False, True])
def test_a_removed_container_leaves_neither_folder_nor_name(store: Store, by_id: bool) -> None:
    record = create(store, A, "web")
    create(store, B, "db")
    (Path(store.path(A)) / "stdout.log").write_text("x")
    store.remove(A if by_id else record)
    assert store.ids() == [B]
    assert everything(store) == [".names", ".names/db", B, f"{B}/metadata.json"]
    assert store.resolve("db") == B


def test_removing_twice_is_no_error(store: Store) -> None:
    record = create(store, A, "web")
    store.remove(record)
    store.remove(record)
    store.remove(A)
    assert everything(store) == [".names"]


def test_a_name_that_was_taken_over_stays_with_its_new_owner(store: Store) -> None:
    old = create(store, A, "web")
    os.unlink(f"{store.root}/.names/web")
    create(store, B, "web")
    store.remove(old)
    assert store.resolve("web") == B


def test_removing_follows_no_symlink(store: Store, tmp_path: Path) -> None:
    create(store, A)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (Path(store.path(A)) / "link").symlink_to(tmp_path / "precious")
    store.remove(A)
    assert (tmp_path / "precious" / "file").exists()


def test_a_folder_that_cannot_be_removed_is_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(store, A, "web")
    monkeypatch.setattr(shutil, "rmtree", _refuse(errno.EBUSY))
    with pytest.raises(StateError, match=f"cannot remove .*{A}: .*busy"):
        store.remove(A)
    assert not [x for x in store.records() if isinstance(x, Record)], "it is half a container now"


def test_a_container_whose_record_became_a_directory_can_still_be_removed(store: Store) -> None:
    create(store, A)
    record = Path(store.path(A), "metadata.json")
    record.unlink()
    record.mkdir()
    store.remove(A)
    assert store.ids() == []
