"""The state directory: one folder for each container, found by id, prefix or name.

    <root>/<id>/metadata.json   the record (`state.records`)
    <root>/<id>/stdout.log …    the output (`state.logs`)
    <root>/.names/<name>        symlink to the id: names are claimed by creating it
    <root>/.trash/<id>          removed, but somebody still reads its log (`state.readers`)
    <root>/.removed             how containers run with --rm ended, for those who wait for them

Whoever supervises a container holds flock(2) on its folder. The kernel drops the lock with the last
holder, so that "locked" means "looked after by somebody alive", and waiting for the lock means
waiting for the end of the supervision, in whatever process that is. Anything else found in the
root is not ours and left alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from craterun.core.errors import (
    AmbiguousIdError,
    NameInUseError,
    NoSuchContainerError,
    StateError,
    printable,
)
from craterun.core.units import is_id, is_id_prefix, is_name
from craterun.state import readers
from craterun.state.glance import look

if TYPE_CHECKING:
    from craterun.core.life import Record
    from craterun.state.glance import Glance

    Known = Record | Glance

T = TypeVar("T")
_NAMES = ".names"
_MAKING_SECONDS = 1.0
_NO_ROOM_HERE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Not the fault of the directory: no other one would do."""
_REMOVALS = 3
"""Attempts at removing a folder in which an update of the limits may just be writing a file."""
SYSTEM_ROOT = "/var/lib/craterun"


def default_root() -> str:
    """``CRATERUN_ROOT``, or /var/lib/craterun for root, or ~/.craterun for others."""
    chosen = os.environ.get("CRATERUN_ROOT")
    if chosen:
        return os.path.abspath(chosen)
    if os.geteuid() == 0:
        return SYSTEM_ROOT
    return os.path.expanduser("~/.craterun")


class Damaged(NamedTuple):
    """A container whose record cannot be read, and why."""

    container_id: str
    error: StateError


class Store:
    """All containers below one root. Holds no state of its own besides the path."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(os.fspath(root))

    def path(self, container_id: str) -> str:
        """The container's folder."""
        return os.path.join(self.root, container_id)

    # --- making and removing ------------------------------------------------------------------

    def create(self, record: Record) -> int:
        """Make a container's folder with its first record. Returns the locked folder's descriptor,
        which the caller owns. After an error nothing is left there.

        :raises NameInUseError: another container has the name
        :raises StateError: the state directory cannot be written to
        :raises OSError: this process has no descriptor or memory left for it
        """
        from craterun.state.records import write_record

        path = self.path(record.id)
        fd, made = -1, False
        try:
            try:
                os.mkdir(path, 0o700)
            except FileNotFoundError:
                os.makedirs(self.root, 0o711, exist_ok=True)
                os.mkdir(path, 0o700)
            made = True
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            # Waits for nobody but a `ps` that looks at this very moment whether it is locked.
            fcntl.flock(fd, fcntl.LOCK_EX)
            write_record(fd, record)
            if record.name is not None:
                self._claim(record.name, record.id)
        except BaseException as error:
            if fd >= 0:
                os.close(fd)
            if made:
                _discard(path)
            if isinstance(error, OSError) and error.errno not in _NO_ROOM_HERE:
                raise self._unusable(error.errno or 0) from error
            raise
        return fd

    def make_root(self) -> None:
        """Make the state directory, if there is none.

        :raises StateError: it cannot be made, or something else is there
        """
        try:
            os.makedirs(self.root, 0o711, exist_ok=True)
        except FileExistsError as error:
            raise self._unusable(errno.ENOTDIR) from error
        except OSError as error:
            raise self._unusable(error.errno or 0) from error

    def _unusable(self, number: int) -> StateError:
        return StateError(
            f"cannot create container state in {printable(self.root)}: {os.strerror(number)}; "
            "use --root or CRATERUN_ROOT to keep it elsewhere"
        )

    def remove(self, record_or_id: Record | str) -> None:
        """Remove a container's folder and name. Its processes and cgroups are the caller's affair.

        :raises StateError: something in the folder cannot be removed
        """
        container_id = record_or_id if isinstance(record_or_id, str) else record_or_id.id
        name = None if isinstance(record_or_id, str) else record_or_id.name
        try:
            # metadata.json goes first: from then on, no list shows the container.
            with suppress(IsADirectoryError):
                _unlink(os.path.join(self.path(container_id), "metadata.json"))
            path = self.path(container_id)
            if not (readers.has_readers(path) and readers.put_aside(self.root, container_id)):
                _remove_tree(path)
            readers.sweep(self.root)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StateError(
                f"cannot remove {printable(self.path(container_id))}: "
                f"{os.strerror(error.errno or 0)}"
            ) from error
        # A name in a record that somebody edited is not to be trusted with being a file name.
        known = name is not None and is_name(name)
        for claimed, owner in [(name, container_id)] if known else self._names():
            if owner == container_id and claimed is not None:
                with self._names_locked() as names:
                    if _read_link(os.path.join(names, claimed)) == container_id:
                        _unlink(os.path.join(names, claimed))

    # --- finding ------------------------------------------------------------------------------

    def ids(self) -> list[str]:
        """Ids of all containers, sorted."""
        try:
            with os.scandir(self.root) as entries:
                return sorted(
                    e.name for e in entries if is_id(e.name) and e.is_dir(follow_symlinks=False)
                )
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StateError(
                f"cannot read {printable(self.root)}: {os.strerror(error.errno or 0)}; --root or "
                "CRATERUN_ROOT names the state directory"
            ) from error

    def records(self) -> Iterator[Record | Damaged]:
        """Every readable record; for an unreadable one its id and what is wrong with it. Of which
        containers: see `glances`.
        """
        from craterun.state.records import read_record

        yield from self._read_all(read_record)

    def glances(self) -> Iterator[Known | Damaged]:
        """Every readable record; for an unreadable one its id and what is wrong with it.

        A folder without a record whose lock is held is just being made, and left out; so is one
        that is so young that its maker may be about to lock it.
        """
        yield from self._read_all(look)

    def _read_all(self, read: Callable[[str, str], T]) -> Iterator[T | Damaged]:
        for container_id in self.ids():
            try:
                yield read(self.path(container_id), container_id)
            except FileNotFoundError:
                if self._age(container_id) > _MAKING_SECONDS and not self.is_locked(container_id):
                    yield Damaged(
                        container_id,
                        StateError(
                            f"{printable(self.path(container_id))} has no metadata.json; "
                            f"remove it with: craterun rm --force {container_id}"
                        ),
                    )
            except StateError as error:
                yield Damaged(container_id, error)

    def resolve(self, text: str) -> str:
        """The id that ``text`` means: a whole id, a name, or a prefix that only one id has.

        :raises NoSuchContainerError: none
        :raises AmbiguousIdError: several
        """
        if not text:
            raise NoSuchContainerError("the container id is empty: give an id, a prefix or a name")
        if is_id(text) and self._exists(text):
            return text
        named = self._owner(text)
        if named is not None:
            return named
        if is_id_prefix(text):
            found = [container_id for container_id in self.ids() if container_id.startswith(text)]
            if len(found) == 1:
                return found[0]
            if found:
                raise AmbiguousIdError(
                    f"{text!r} is ambiguous: it begins {', '.join(found[:8])}"
                    f"{' and others' if len(found) > 8 else ''}; give more digits"
                )
        raise NoSuchContainerError(
            f"no container '{printable(text)}' in {printable(self.root)}; craterun ps lists them"
        )

    def load(self, container_id: str) -> Record:
        """The record of an id that `resolve` gave.

        :raises StateError: it is damaged
        :raises NoSuchContainerError: it has gone meanwhile
        """
        from craterun.state.records import read_record

        return self._read(read_record, container_id)

    def look(self, container_id: str) -> Known:
        """The same, or as much of it as lists show."""
        return self._read(look, container_id)

    def _read(self, read: Callable[[str, str], T], container_id: str) -> T:
        try:
            return read(self.path(container_id), container_id)
        except FileNotFoundError:
            if self._exists(container_id):
                raise StateError(
                    f"{printable(self.path(container_id))} has no metadata.json; "
                    f"remove it with: craterun rm --force {container_id}"
                ) from None
            raise NoSuchContainerError(f"container {container_id} has been removed") from None

    # --- locks --------------------------------------------------------------------------------

    def is_locked(self, container_id: str) -> bool:
        """Whether somebody alive supervises this container."""
        try:
            fd = self._open(container_id)
        except OSError:
            return False
        return is_supervised(fd)

    def wait_unsupervised(self, container_id: str) -> None:
        """Block until nobody supervises this container any more; at once if it is gone."""
        try:
            fd = self._open(container_id)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

    def _exists(self, container_id: str) -> bool:
        """Whether there is such a folder; a symlink to one elsewhere is not ours."""
        try:
            return stat.S_ISDIR(os.lstat(self.path(container_id)).st_mode)
        except OSError:
            return False

    def _age(self, container_id: str) -> float:
        """Seconds since anything in the container's folder was made or removed; negative: gone."""
        try:
            return time.time() - os.lstat(self.path(container_id)).st_mtime
        except OSError:
            return -1.0

    def _open(self, container_id: str) -> int:
        return os.open(
            self.path(container_id), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        )

    # --- names --------------------------------------------------------------------------------

    def _claim(self, name: str, container_id: str) -> None:
        with self._names_locked() as names:
            link = os.path.join(names, name)
            owner = _read_link(link)
            if owner is not None:
                if is_id(owner) and self._exists(owner):
                    raise NameInUseError(
                        f"the name {name!r} is used by container {printable(owner)}; choose "
                        f"another, or remove that one with: craterun rm {name}"
                    )
                os.unlink(link)  # its container's folder was removed by hand
            try:
                os.symlink(container_id, link)
            except FileExistsError:
                raise NameInUseError(
                    f"the name {name!r} cannot be claimed: something else is at {printable(link)}"
                ) from None

    def _owner(self, name: str) -> str | None:
        if not is_name(name):
            return None
        owner = _read_link(os.path.join(self.root, _NAMES, name))
        if owner is None or not is_id(owner) or not self._exists(owner):
            return None
        return owner

    def _names(self) -> list[tuple[str, str | None]]:
        names = os.path.join(self.root, _NAMES)
        try:
            return [(name, _read_link(os.path.join(names, name))) for name in os.listdir(names)]
        except OSError:
            return []

    @contextmanager
    def _names_locked(self) -> Iterator[str]:
        names = os.path.join(self.root, _NAMES)
        os.makedirs(names, 0o700, exist_ok=True)
        fd = os.open(names, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield names
        finally:
            os.close(fd)


def is_supervised(directory: int) -> bool:
    """Whether somebody alive holds the lock of a container's folder. Takes the descriptor."""
    try:
        fcntl.flock(directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(directory)


def _read_link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _discard(path: str) -> None:
    """Remove a folder that was just made, without needing a descriptor: there may be none left."""
    from craterun.state.records import FILE_NAMES

    for name in FILE_NAMES:
        with suppress(OSError):
            os.unlink(os.path.join(path, name))
    with suppress(OSError):
        os.rmdir(path)


def _remove_tree(path: str) -> None:
    import shutil  # a slow import (compression modules), needed by few commands

    for _ in range(_REMOVALS):
        try:
            shutil.rmtree(path)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
        else:
            return
    shutil.rmtree(path)
