"""What this host is short of: looked up after a refusal, with nothing left to look with."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from craterun.core import flags as f
from craterun.core.errors import KernelRefusedError
from craterun.linux import shortage
from craterun.linux.fd import is_plentiful, reserved_files


@contextmanager
def open_files_limit(number: int) -> Iterator[None]:
    """The soft limit, for a while."""
    had = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, had[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, had)


def test_a_process_without_any_descriptor_left_is_told_how_many_it_has() -> None:
    held = len(os.listdir("/proc/self/fd")) - 1
    refused = pytest.raises(KernelRefusedError)
    with open_files_limit(3), refused as caught, shortage.explained("open a file"):
        os.open("/dev/null", os.O_RDONLY)
    text = str(caught.value)
    assert text.startswith("cannot open a file: /dev/null: Too many open files (EMFILE); ")
    assert f"this process may have 3 descriptors and has {held}" in text
    assert caught.value.exit_code == 125


def test_another_process_is_looked_at_from_outside() -> None:
    with subprocess.Popen(["prlimit", "--nofile=77:77", "cat"], stdin=subprocess.PIPE) as process:
        had = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (50, had[1]))
        assert "the keeper may have 50 descriptors" in shortage.open_files(process.pid)
        process.communicate()


def test_only_shortages_are_explained() -> None:
    for error in (FileNotFoundError(errno.ENOENT, "x"), RuntimeError("x"), ValueError("x")):
        with pytest.raises(type(error)), shortage.explained("do something"):
            raise error


def test_a_thread_that_cannot_be_started_is_a_refusal_of_the_kernel() -> None:
    refused = pytest.raises(KernelRefusedError, match=r"start a thread: .*EAGAIN.*processes")
    with refused, shortage.explained("work"):
        raise RuntimeError(shortage.NO_THREAD)


@pytest.mark.parametrize(
    ("number", "options", "part"),
    [
        (errno.ENFILE, {}, "fs.file-max = "),
        (errno.EAGAIN, {}, "kernel.threads-max = "),
        (errno.ENOSPC, {"namespaces": f.CLONE_NEWNET}, "user.max_net_namespaces = "),
        (errno.ENOSPC, {"mounting": True}, "fs.mount-max = "),
        (errno.ENOMEM, {}, "memory"),
        (errno.ETOOMANYREFS, {}, "on their way"),
    ],
)
def test_the_limit_is_named_with_its_value(number: int, options: dict[str, int], part: str) -> None:
    assert part in shortage.cause(number, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"/proc/sys/vm/overcommit_memory": "2\n"},
            "the host promises no more memory than it has (vm.overcommit_memory = 2), and 9.54MiB "
            "of 9.77MiB are taken: end something, or raise it with: sysctl -w "
            "vm.overcommit_ratio=…",
        ),
        (
            {"/m/a/memory.max": "9000000\n", "/m/a/memory.current": "8999424\n"},
            "the cgroup /m/a has used up its memory limit, 8.58MiB: raise it, or end something in "
            "there",
        ),
        (
            {"/m/a/memory.max": "max\n", "/m/a/memory.current": "8999424\n"},
            "the host has 5.00MiB of its 20.0MiB of memory left: end something, or add memory",
        ),
        ({"/proc/meminfo": "nonsense\n"}, "there is no memory left for it"),
    ],
    ids=["promises", "cgroup", "host", "unknown"],
)
def test_memory_is_said_to_be_short_where_it_is(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], said: str
) -> None:
    meminfo = "MemTotal: 20480 kB\nMemAvailable: 5120 kB\nHugePages_Total: 0\n"
    there = {
        "/proc/meminfo": f"{meminfo}Committed_AS: 9765 kB\nCommitLimit: 10000 kB\n",
        "/proc/sys/vm/overcommit_memory": "0\n",
        **files,
    }

    def text(path: str) -> str:
        try:
            return there[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    monkeypatch.setattr(shortage, "_text", text)
    monkeypatch.setattr(shortage, "_own_cgroups", lambda *_: iter([(2, "/m/a")]))
    assert shortage.cause(errno.ENOMEM) == said


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EPERM, errno.EINVAL, errno.ENOSPC])
def test_what_tells_of_no_shortage_has_no_such_cause(number: int) -> None:
    assert shortage.cause(number) == ""


@pytest.mark.parametrize("limit", [64, 1024, 20_000])
def test_the_last_descriptors_are_kept_for_what_runs(limit: int) -> None:
    with open_files_limit(limit):
        last = limit - reserved_files(limit) - 1
        shortage.require_room(last - 6, 6)
        for number, others in ((last + 1, 0), (last, 1), (last - 6, 7)):
            with pytest.raises(OSError, match="Too many open files"):
                shortage.require_room(number, others)
        assert is_plentiful(last + 1), "what runs may take more of them than what is to start"
        assert not is_plentiful(limit - 1)


@pytest.mark.parametrize(
    ("uid_map", "exempt"),
    [
        ("         0          0 4294967295\n", True),
        ("         0      54321          1\n", False),
        ("         0     100000      65536\n", False),
        ("", False),
    ],
)
def test_a_limit_on_a_users_processes_is_named_to_all_but_the_hosts_root(
    monkeypatch: pytest.MonkeyPatch, uid_map: str, exempt: bool
) -> None:
    """Root in a user namespace is somebody else outside."""
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(shortage, "_full_pids_cgroups", lambda _: [])
    monkeypatch.setattr(shortage, "_limit", lambda *_: 7)
    read = shortage._text
    monkeypatch.setattr(
        shortage, "_text", lambda path: uid_map if path == "/proc/self/uid_map" else read(path)
    )
    assert ("this user may have 7 processes" in shortage.processes()) != exempt
