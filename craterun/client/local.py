"""Manage containers that some other process supervises: through their files, locks and pidfds.

Synchronous, and without trio: these are what short commands do. Nothing here waits on another
container's operation, so listing is never held up.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from craterun.client import observing, pausing
from craterun.client.observing import Observation
from craterun.core.cgroups import possible_paths
from craterun.core.errors import (
    ContainerNotRunningError,
    ContainerRunningError,
    CraterunError,
    NoSuchContainerError,
    StateError,
)
from craterun.core.events import EventType, event
from craterun.core.life import ExitStatus, Process, Record, State
from craterun.core.restart import Condition, ends_for_good
from craterun.linux import cgroup, host
from craterun.linux.fd import Fd
from craterun.linux.inotify import DirectoryWatch
from craterun.linux.oom import is_process_doomed
from craterun.linux.proc import open_process, parse_state
from craterun.state.journal import note, signaled
from craterun.state.removed import find_removed
from craterun.state.restart import request_end
from craterun.state.store import Store

KILL_SECONDS = 10.0
"""How long a killed process may take to disappear before it counts as stuck."""


Observed = Observation[Record]


def observe(store: Store, record: Record) -> Observed:
    """Compare ``record`` with the processes that exist."""
    return observing.observe(store, record, store.load)


def running_process(store: Store, text: str) -> tuple[Record, Process]:
    """The running container that ``text`` means, and its first process.

    :raises NoSuchContainerError: none
    :raises ContainerNotRunningError: it has ended, or not begun
    """
    record = store.load(store.resolve(text))
    if record.process is None or not observe(store, record).running:
        raise ContainerNotRunningError(f"container {record.id} is not running")
    return record, record.process


def send_signal(store: Store, text: str, number: int) -> str:
    """Send signal ``number`` to the container's first process. Returns the id.

    :raises ContainerNotRunningError: it has ended
    """
    record, process = running_process(store, text)
    record = _end_for_good(store, record, number)
    try:
        pidfd = Fd(open_process(record.process or process))
    except ProcessLookupError:
        if record.status is State.RESTARTING and ends_for_good(number, record.stop_signal):
            return record.id  # it would have come back, and does not
        raise ContainerNotRunningError(f"container {record.id} is not running") from None
    try:
        _send(store, record, pidfd, number)
        if number == signal.SIGKILL:
            pausing.let_die(record)
    except ProcessLookupError:
        raise ContainerNotRunningError(f"container {record.id} is not running") from None
    finally:
        pidfd.close()
    return record.id


def _end_for_good(store: Store, record: Record, number: int) -> Record:
    """If a container that is started again is to get a signal that means its end, see that it is
    not. Returns the record as it is after that: there may be another process already.
    """
    if record.restart.condition is Condition.NO or not ends_for_good(number, record.stop_signal):
        return record
    request_end(store.path(record.id))
    try:
        return store.load(record.id)
    except NoSuchContainerError:
        return record


def _send(store: Store, record: Record, pidfd: Fd, number: int) -> None:
    """Send a signal to the first process, which is noted before.

    :raises ProcessLookupError: it has ended
    """
    note_signal(store, record, number)
    signal.pidfd_send_signal(pidfd.fileno(), number)


def note_signal(store: Store, record: Record, number: int) -> None:
    """Note in the journal that the first process is about to be sent a signal.

    Before it is, since the container's supervisor looks there when it has to tell whether a SIGKILL
    was ours or the OOM killer's; so it is not noted for a process that was dying already.
    """
    process = record.process
    if process is not None and not is_process_doomed(process.pid, process.start_time):
        note(store.root, signaled(record.id, record.name, number))


def wake(store: Store, record: Record) -> None:
    """Let a container go on if it is paused: otherwise it could not handle a signal."""
    if pausing.wake(record):
        note(store.root, event(EventType.UNPAUSED, record.id, record.name))


def pause(store: Store, text: str) -> str:
    """Stop all processes of a container (`pausing.pause` tells the errors). Returns the id."""
    record, _ = running_process(store, text)
    pausing.pause(record)
    note(store.root, event(EventType.PAUSED, record.id, record.name))
    return record.id


def unpause(store: Store, text: str) -> str:
    """Let a paused container go on (`pausing.unpause` tells the errors). Returns the id."""
    record, _ = running_process(store, text)
    pausing.unpause(record)
    note(store.root, event(EventType.UNPAUSED, record.id, record.name))
    return record.id


def kill_and_wait(store: Store, record: Record) -> None:
    """SIGKILL the container; return when it is gone and its end is on record.

    :raises CraterunError: its process does not go away
    """
    record = _end_for_good(store, _until_started(store, record), signal.SIGKILL)
    if record.process is not None:
        try:
            pidfd = Fd(open_process(record.process))
        except ProcessLookupError:
            pass
        else:
            try:
                with suppress(ProcessLookupError):
                    _send(store, record, pidfd, signal.SIGKILL)
                pausing.let_die(record)
                _wait_process(pidfd.fileno(), record.process)
            finally:
                pidfd.close()
    store.wait_unsupervised(record.id)


def _until_started(store: Store, record: Record) -> Record:
    """``record``, or a later one that has a process: a container that is just being started, or
    taken over from a supervisor that died while it started it, cannot be killed yet.
    """
    while record.process is None and record.status is State.CREATED:
        try:
            with DirectoryWatch(store.path(record.id)) as watch:
                record = store.load(record.id)
                if record.process is not None or not store.is_locked(record.id):
                    break
                if not watch.wait(KILL_SECONDS):
                    raise CraterunError(
                        f"container {record.id} has been starting for more than {KILL_SECONDS:g} s"
                    )
        except (FileNotFoundError, NoSuchContainerError):
            break  # the start failed, and nothing of it is left
    return record


def _wait_process(pidfd: int, process: Process) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(KILL_SECONDS * 1000):
        raise CraterunError(
            f"process {process.pid} was killed but is still there after {KILL_SECONDS:g} s "
            f"(state {_process_state(process)}); D: it waits for a device or a file server"
        )


def _process_state(process: Process) -> str:
    try:
        with open(f"/proc/{process.pid}/stat", "rb") as file:
            return parse_state(file.read())
    except OSError:
        return "?"


def stop(
    store: Store,
    texts: Iterable[str],
    number: int | None = None,
    seconds: float | None = None,
    tell: Callable[[list[str], float], None] | None = None,
) -> list[str | CraterunError]:
    """Send ``number`` to all, give each ``seconds``, kill those that have not ended then.

    Default for both: what the container was started with.

    :param tell: called with the names of those that may still have to be waited for, and when, by
        `time.monotonic`, the first of them will be killed

    A paused container goes on: with the signal, which it could not handle otherwise.

    Returns for each its id, or what went wrong with it. One that has ended already counts as
    stopped.
    """
    results: list[str | CraterunError] = []
    stopping: dict[int, tuple[Record, Fd]] = {}
    for text in texts:
        try:
            record = store.load(store.resolve(text))
            results.append(record.id)
            if record.process is None or not observe(store, record).running:
                continue
            record = _end_for_good(store, record, record.stop_signal)
            assert record.process is not None
            pidfd = Fd(open_process(record.process))
            stopping[len(results) - 1] = (record, pidfd)
            _send(store, record, pidfd, record.stop_signal if number is None else number)
            wake(store, record)
        except ProcessLookupError:
            if record.status is State.RESTARTING:
                store.wait_unsupervised(record.id)  # it has no process, and gets none any more
        except CraterunError as error:
            results.append(error)
    begun = time.monotonic()
    names = [record.name or record.id for record, _ in stopping.values()]
    for position, (record, pidfd) in stopping.items():
        deadline = begun + (record.stop_seconds if seconds is None else seconds)
        if tell is not None:
            tell(names, deadline)
        names = names[1:]
        try:
            poll = select.poll()
            poll.register(pidfd.fileno(), select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                kill_and_wait(store, record)
            store.wait_unsupervised(record.id)
        except CraterunError as error:
            results[position] = error
        finally:
            pidfd.close()
    return results


def wait(store: Store, text: str) -> ExitStatus:
    """Until the container has ended and its end is on record. None as exit code: nobody saw it.

    :raises NoSuchContainerError: there is none, and none of this whole id has removed itself lately
    """
    try:
        container_id = store.resolve(text)
    except NoSuchContainerError:
        noted = find_removed(store.root, text)
        if noted is None:
            raise
        return noted
    store.wait_unsupervised(container_id)
    try:
        record = store.load(container_id)
    except NoSuchContainerError:
        return find_removed(store.root, container_id) or ExitStatus(None)
    return ExitStatus(record.exit_code, record.signal)


def remove(store: Store, text: str, *, force: bool) -> str:
    """Remove a container with its logs and whatever is left of its cgroups. Returns the id.

    :param force: kill it first if it runs; remove it even if its record is damaged
    :raises ContainerRunningError: it runs and ``force`` is not set
    """
    container_id = store.resolve(text)
    try:
        record = store.load(container_id)
    except StateError:
        if not force:
            raise
        _remove_damaged(store, container_id)
        return container_id
    observed = observe(store, record)
    if observed.running:
        if not force:
            raise ContainerRunningError(
                f"container {container_id} is {observed.status}; stop it first, or use rm --force"
            )
        kill_and_wait(store, record)
    store.wait_unsupervised(container_id)
    _remove_cgroups(record)
    store.remove(record)
    note(store.root, event(EventType.REMOVED, container_id, record.name))
    return container_id


def _remove_damaged(store: Store, container_id: str) -> None:
    # Without a record there is no pid to trust: the container is what is in its cgroups.
    paths = possible_paths(container_id, host.probe())
    cgroup.kill(paths)
    store.wait_unsupervised(container_id)
    cgroup.remove(paths)
    store.remove(container_id)
    note(store.root, event(EventType.REMOVED, container_id))


def _remove_cgroups(record: Record) -> None:
    """Left by a supervisor that was killed. Of an editable file only plausible paths are taken."""
    facts = host.probe()
    possible = possible_paths(record.id, facts, record.cgroups)
    paths = [path for path in possible if os.path.isdir(path)]
    if paths:
        cgroup.kill(paths)
        cgroup.remove(paths)
        cgroup.remove_parents(facts)
