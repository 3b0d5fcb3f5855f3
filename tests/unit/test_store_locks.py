"""Locked means looked after by somebody alive; the lock is the description's, not the process's."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from craterun.core.errors import NameInUseError
from craterun.linux.fd import Fd
from craterun.state.store import Store
from tests.unit.builders import ID, make_record, no_leaked_descriptors

_SECONDS = 30


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


@pytest.fixture
def supervised(store: Store) -> Iterator[Fd]:
    """The descriptor with which container `ID` is supervised."""
    fd = Fd(store.create(make_record()))
    yield fd
    fd.close()


def blocked_on(path: str) -> bool:
    """Whether somebody waits for a lock on ``path``: proc(5), /proc/locks."""
    inode = os.stat(path).st_ino
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f":{inode} " in line for line in lines)


def look_until(wanted: Callable[[], bool], seconds: float = _SECONDS) -> bool:
    """Look until ``wanted`` holds; nothing tells when a thread begins to wait for a lock."""
    deadline = time.monotonic() + seconds
    while not (found := wanted()) and time.monotonic() < deadline:
        pass
    return found


def test_a_container_is_locked_from_its_creation(store: Store, supervised: Fd) -> None:
    with no_leaked_descriptors():
        assert store.is_locked(ID)
        assert store.is_locked(ID), "looking must not change it"


def test_a_lock_ends_with_its_last_holder(store: Store, supervised: Fd) -> None:
    # The keeper holds a duplicate, so that a dead supervisor's container stays looked after.
    duplicate = os.dup(supervised.fileno())
    supervised.close()
    assert store.is_locked(ID)
    os.close(duplicate)
    assert not store.is_locked(ID)


def test_another_description_of_the_folder_holds_nothing(store: Store, supervised: Fd) -> None:
    other = os.open(store.path(ID), os.O_RDONLY)
    supervised.close()
    assert not store.is_locked(ID)
    os.close(other)


def test_the_lock_is_not_inherited_by_programs(supervised: Fd) -> None:
    assert not os.get_inheritable(supervised.fileno())


def test_what_does_not_exist_is_not_locked(store: Store) -> None:
    assert not store.is_locked(ID)
    store.wait_unsupervised(ID)


def test_waiting_for_an_unsupervised_container_ends_at_once(store: Store, supervised: Fd) -> None:
    supervised.close()
    with no_leaked_descriptors():
        store.wait_unsupervised(ID)
        store.wait_unsupervised(ID)
        assert not store.is_locked(ID), "a waiter must not keep the lock"


def test_waiting_lasts_as_long_as_the_supervision_and_no_longer(
    store: Store, supervised: Fd
) -> None:
    waiters = [threading.Thread(target=store.wait_unsupervised, args=(ID,)) for _ in range(3)]
    for waiter in waiters:
        waiter.start()
    assert look_until(lambda: blocked_on(store.path(ID)))
    assert all(waiter.is_alive() for waiter in waiters)
    supervised.close()
    for waiter in waiters:
        waiter.join(_SECONDS)
    assert not any(waiter.is_alive() for waiter in waiters)


def test_a_container_that_is_removed_releases_those_who_wait(store: Store, supervised: Fd) -> None:
    waiter = threading.Thread(target=store.wait_unsupervised, args=(ID,))
    waiter.start()
    assert look_until(lambda: blocked_on(store.path(ID)))
    store.remove(ID)
    supervised.close()
    waiter.join(_SECONDS)
    assert not waiter.is_alive()


def test_somebody_who_looks_does_not_make_a_creation_fail(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `craterun ps` sees the folder before its maker has locked it, and asks whether it is locked:
    # for that moment it has a shared lock itself.
    looking: list[int] = []
    looks = threading.Event()
    created = threading.Event()
    mkdir = os.mkdir

    def mkdir_and_look(path: str, mode: int = 0o777) -> None:
        mkdir(path, mode)
        if os.path.basename(path) == ID:
            fd = os.open(path, os.O_RDONLY)
            fcntl.flock(fd, fcntl.LOCK_SH)
            looking.append(fd)
            looks.set()

    def look_away() -> None:
        if looks.wait(_SECONDS):
            path = store.path(ID)
            look_until(lambda: created.is_set() or blocked_on(path), seconds=2)
        for fd in looking:
            os.close(fd)

    os.mkdir(store.root)
    thread = threading.Thread(target=look_away)
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", mkdir_and_look)
        thread.start()
        try:
            os.close(store.create(make_record()))
        finally:
            created.set()
            looks.set()
            thread.join(_SECONDS)
    assert looking, "nobody looked: this test shows nothing"
    assert store.load(ID) == make_record()


def test_names_are_given_out_one_at_a_time(store: Store) -> None:
    os.close(store.create(make_record(id="f" * 16, name="first")))
    names = f"{store.root}/.names"
    holder = Fd(os.open(names, os.O_RDONLY))
    fcntl.flock(holder.fileno(), fcntl.LOCK_EX)
    made: list[int] = []
    thread = threading.Thread(target=lambda: made.append(store.create(make_record())))
    thread.start()
    waited = look_until(lambda: blocked_on(names))
    before = os.listdir(names)
    holder.close()
    thread.join(_SECONDS)
    os.close(made[0])
    assert (waited, before) == (True, ["first"])
    assert store.resolve("web") == ID


def test_of_many_who_want_a_name_at_once_one_gets_it(store: Store) -> None:
    ids = [f"{number:016x}" for number in range(12)]
    start = threading.Barrier(len(ids))
    won: list[str] = []
    lost: list[str] = []

    def claim(container_id: str) -> None:
        start.wait()
        try:
            os.close(store.create(make_record(id=container_id, name="web")))
        except NameInUseError:
            lost.append(container_id)
        else:
            won.append(container_id)

    threads = [threading.Thread(target=claim, args=(container_id,)) for container_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_SECONDS)
    assert len(won) == 1
    assert sorted(won + lost) == ids
    assert store.ids() == won
    assert store.resolve("web") == won[0]
