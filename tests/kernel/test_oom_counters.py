"""The kernel's OOM counters: what they count, when they tell, and what /proc says meanwhile."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from craterun.core.spec import HostFacts
from craterun.linux import oom
from craterun.linux.host import probe
from craterun.linux.oom import MemoryCgroup, is_process_doomed
from tests.containers.oom_helpers import LIMIT, memory_hierarchy
from tests.unit.builders import no_leaked_descriptors

pytestmark = pytest.mark.cgroup_v2

_SECONDS = 60
_HOG = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
input()
x = bytearray(200 << 20)
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A memory cgroup of our own, limited."""
    hierarchy = memory_hierarchy()
    path = Path(hierarchy.mountpoint, f"craterun-test-{os.getpid()}")
    if hierarchy.version == 2:
        Path(hierarchy.mountpoint, "cgroup.subtree_control").write_text("+memory")
    path.mkdir()
    (path / oom._LIMITS[hierarchy.version]).write_text(str(LIMIT))
    yield path
    path.rmdir()


@pytest.fixture
def facts() -> HostFacts:
    return probe()


def hog(directory: Path) -> subprocess.Popen[bytes]:
    """A process in ``directory`` that runs out of memory when it gets a line."""
    return subprocess.Popen([sys.executable, "-c", _HOG, str(directory)], stdin=subprocess.PIPE)


def let_die(process: subprocess.Popen[bytes]) -> None:
    process.communicate(b"\n", timeout=_SECONDS)
    assert process.returncode == -signal.SIGKILL


def test_kills_are_counted_and_told(directory: Path, facts: HostFacts) -> None:
    with no_leaked_descriptors(), select.epoll() as epoll:
        memory = MemoryCgroup.of((str(directory),), facts)
        assert memory is not None
        key = memory.open_news(epoll)
        assert memory.kills() == 0
        assert memory.limit() == LIMIT
        assert epoll.poll(0) == [], "a file that is always readable is no news"
        for count in (1, 2):
            let_die(hog(directory))
            assert [number for number, _ in epoll.poll(_SECONDS)] == [key]
            memory.take_news()
            assert memory.kills() == count
            while epoll.poll(0.05):  # the kernel may tell of one kill in several parts
                memory.take_news()
                assert memory.kills() == count
        memory.close_news()
        assert memory.kills() == 2


def test_without_news_they_are_counted_all_the_same(directory: Path, facts: HostFacts) -> None:
    memory = MemoryCgroup.of(("/somewhere/else/x", str(directory)), facts)
    assert memory is not None
    let_die(hog(directory))
    assert memory.kills() == 1


def test_a_death_by_sigkill_is_not_counted(directory: Path, facts: HostFacts) -> None:
    memory = MemoryCgroup.of((str(directory),), facts)
    assert memory is not None
    with hog(directory) as process:
        process.kill()
    assert memory.kills() == 0


def test_a_cgroup_that_is_gone_is_an_error_and_no_zero(facts: HostFacts) -> None:
    gone = MemoryCgroup.of((f"{memory_hierarchy().mountpoint}/craterun-no-such",), facts)
    assert gone is not None
    with pytest.raises(FileNotFoundError):
        gone.kills()
    assert gone.limit() is None
    with no_leaked_descriptors(), select.epoll() as epoll, pytest.raises(FileNotFoundError):
        gone.open_news(epoll)


def test_there_may_be_no_memory_cgroup(facts: HostFacts) -> None:
    assert MemoryCgroup.of(("/somewhere/else",), facts) is None
    assert MemoryCgroup.of((), facts) is None


def test_a_process_is_doomed_from_its_sigkill_on() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        start = start_time(process.pid)
        assert not is_process_doomed(process.pid, start)
        assert is_process_doomed(process.pid, start - 1), (
            "that one has ended, and its pid is reused"
        )
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        assert not is_process_doomed(process.pid, start)
        process.kill()
        assert is_process_doomed(process.pid, start)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_process_doomed(process.pid, start)
    assert is_process_doomed(process.pid, start)


def start_time(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return int(stat[stat.rindex(b")") + 2 :].split()[19])
