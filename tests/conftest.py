"""Fixtures of all tests: a rootfs, a state directory, the command line, and the leak check."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.leaks import Footprint, reap_orphans, take_footprint
from tests.serving import Server, serving

_NOT_RUN = "TIER NOT RUN"
_PR_SET_CHILD_SUBREAPER = 36
APPLETS = (
    "sh", "true", "false", "echo", "cat", "ls", "sleep", "id", "mount", "umount", "ps", "dd",
    "head", "tail", "ip", "ping", "hostname", "stat", "find", "env", "pwd", "readlink", "kill",
    "wc", "touch", "mkdir", "rm", "ln", "chmod", "test", "seq", "yes", "tr", "grep", "printf",
    "sha256sum", "mknod", "mkfifo", "nproc", "whoami", "uname", "sync", "usleep", "nc", "trap",
)  # fmt: skip

CommandLine = Callable[..., subprocess.CompletedProcess[bytes]]


def pytest_configure(config: pytest.Config) -> None:
    # Whatever a test leaves behind becomes our child and can be found.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Started by nohup or with a shell's "&", we ignore these, and so would every process that we
    # start: craterun forwards nothing that it was told to ignore. A handler is reset by execve(2).
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Everything under containers/ and kernel/ needs root."""
    for item in items:
        if Path(str(item.path)).parent.name in ("containers", "kernel"):
            item.add_marker("root")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without root, the root tier cannot run."""
    if item.get_closest_marker("root") is not None and os.geteuid() != 0:
        tier_not_run("tests that run real containers need root")


def tier_not_run(reason: str) -> None:
    """Skip a test whose tier cannot run here, loudly; where it is provided for, fail."""
    if os.environ.get("CRATERUN_REQUIRE_TIERS"):
        pytest.fail(f"{_NOT_RUN}, though CRATERUN_REQUIRE_TIERS is set: {reason}", pytrace=False)
    pytest.skip(f"{_NOT_RUN}: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A tier that could not run is reported loudly."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = {report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)}
    for reason in sorted(reason for reason in reasons if _NOT_RUN in reason):
        terminalreporter.section(reason.removeprefix("Skipped: "), sep="!", red=True)


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test that ran containers: nothing of it is left on the host."""
    if request.node.get_closest_marker("root") is None:
        yield
        return
    before = take_footprint()
    yield
    reap_orphans()
    after = take_footprint()
    left = after.beyond(before)
    if left:
        _clean_up(after, before)
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


def _clean_up(after: Footprint, before: Footprint) -> None:
    """Kill what leaked, so that the next test is judged by its own deeds."""
    # Keepers first: one that outlives its supervisor starts another.
    left = after.processes - before.processes
    for pid in sorted(left, key=lambda pid: not _is_keeper(pid)):
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            continue
    reap_orphans()


def _is_keeper(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "craterun-keeper\n"
    except OSError:
        return False


@pytest.fixture
def state_root(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty state directory, not yet created.

    With CRATERUN_TESTS_SERVE=1 it has a server, and every command of the test goes there, unless
    the test is marked ``no_server``.
    """
    root = tmp_path / "state"
    unserved = request.node.get_closest_marker("no_server") is not None
    if os.environ.get("CRATERUN_TESTS_SERVE") == "1" and not unserved:
        with serving(root):
            yield root
    else:
        yield root


@pytest.fixture(scope="session")
def busybox() -> str:
    """Path of a static busybox (Debian: busybox-static)."""
    found = shutil.which("busybox")
    if found is None:
        pytest.fail("busybox is missing: apt-get install busybox-static")
    return found


@pytest.fixture
def make_rootfs(tmp_path: Path, busybox: str) -> Callable[[str], Path]:
    """Makes a small rootfs: busybox with its applets in bin/, a passwd and a group in etc/."""

    def make(name: str) -> Path:
        root = tmp_path / name
        (root / "bin").mkdir(parents=True)
        (root / "etc").mkdir()
        (root / "tmp").mkdir()
        (root / "tmp").chmod(0o1777)
        shutil.copy(busybox, root / "bin" / "busybox")
        for applet in APPLETS:
            (root / "bin" / applet).symlink_to("busybox")
        (root / "etc" / "passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000:Alice:/home/alice:/bin/sh\n"
        )
        (root / "etc" / "group").write_text("root:x:0:\nalice:x:1000:\nstaff:x:50:alice\n")
        return root

    return make


@pytest.fixture
def rootfs(make_rootfs: Callable[[str], Path]) -> Path:
    """One small rootfs."""
    return make_rootfs("rootfs")


@pytest.fixture
def craterun(state_root: Path) -> CommandLine:
    """Runs the command line: ``craterun("run", "--", "true", input=b"", env={...}, timeout=60)``.

    stdout and stderr are captured unless given. CRATERUN_ROOT is the test's own state directory.
    """

    def run(
        *arguments: str | bytes, env: dict[str, str] | None = None, **options: object
    ) -> subprocess.CompletedProcess[bytes]:
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        options.setdefault("timeout", 120)
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            [sys.executable, "-m", "craterun", *arguments],
            env=cli_environment(state_root, env),
            check=False,
            **options,
        )

    return run


def cli_environment(state_root: Path, env: dict[str, str] | None = None) -> dict[str, str]:
    """The environment for a command line that a test starts by itself (Popen)."""
    return {**os.environ, "CRATERUN_ROOT": str(state_root), **(env or {})}


settings.register_profile("craterun", deadline=None)  # the machine may be busy
settings.load_profile("craterun")


@pytest.fixture
def server(state_root: Path) -> Iterator[Server]:
    """One with the usual options."""
    with serving(state_root) as running:
        yield running
