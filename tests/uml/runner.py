"""Boot the guest, pass its output on, and end with COMMAND's exit code."""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import resource
import secrets
import select
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from .guest import Plan, guest_environment, init_script, kernel_command, resolve_command
from .stream import READY, OutputSplitter, failure_reason, log_tail

KERNEL = "linux.uml"
_DISK_BYTES = 1024 * 1024
PACKAGE = "user-mode-linux"
#: The exit code of every failure that is not COMMAND's own.
EXIT_FAILURE = 125

#: A boot takes 2 seconds; on a busy machine let it be a good many more.
BOOT_SECONDS = 120.0
#: What the guest may take to power off once the exit code is there.
_POWEROFF_SECONDS = 20.0
_TAIL_LINES = 40
_PR_SET_CHILD_SUBREAPER = 36
#: What asks this process to end.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Reads the process group to kill; the second ``read`` ends with this process.
_WATCHDOG = 'read group && { read end; kill -s KILL -- "-$group"; }'


class UmlError(Exception):
    """The guest did not do its job; no exit code of COMMAND can be had."""

    #: The boot log, where there is one.
    log = b""


class _Ended(BaseException):
    """A signal asks this process to end; like KeyboardInterrupt, but any signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Parser(argparse.ArgumentParser):
    """A parser whose usage errors have our exit code: 2 may be COMMAND's."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_FAILURE, f"uml: error: {message}\n")


def _memory(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*[kKmMgG]", text):
        raise argparse.ArgumentTypeError(f"not a size like 1G or 512M: {text!r}")
    return text


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text!r}")
    return value


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse ``[--timeout SECONDS] [--mem SIZE] -- COMMAND...``.

    The split at the first ``--`` is done here, as argparse would also take a
    ``--`` away that is COMMAND's.
    """
    parser = _Parser(
        prog="python -m tests.uml",
        usage="%(prog)s [--timeout SECONDS] [--mem SIZE] -- COMMAND...",
        description="Run COMMAND in a User Mode Linux guest that has cgroup v2.",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=1800.0,
        metavar="SECONDS",
        help="kill the guest, and fail, after this time (default: 1800)",
    )
    parser.add_argument(
        "--mem", type=_memory, default="1G", metavar="SIZE", help="its memory (default: 1G)"
    )
    given = list(arguments)
    split = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:split])
    options.command = given[split + 1 :]
    if not options.command:
        parser.error("no COMMAND given after --")
    return options


def make_plan(command: Sequence[str], host: Mapping[str, str]) -> Plan:
    """Return the plan to run ``command`` here, with this interpreter."""
    here = os.path.dirname(os.path.abspath(__file__))
    return Plan(
        command=resolve_command(command, sys.executable),
        cwd=os.getcwd(),
        environment=guest_environment(host, sys.executable),
        token=secrets.token_hex(16),
        needed=(
            os.getcwd(),
            here,
            os.path.dirname(sys.executable),
            sys.prefix,
            sys.base_prefix,
        ),
        modprobe=(sys.executable, "-I", "-S", os.path.join(here, "modprobe.py")),
    )


class Guest:
    """A booted guest: its processes on the host and the two streams it writes.

    UML is several host processes: the kernel, two helpers, and one for each
    address space in the guest, all in one process group. A watchdog of ours, a
    shell, kills the group when this process ends, whatever ends it: then the
    shell's standard input ends. Both have sessions of their own, so that Ctrl-C
    reaches this process only. (UML would make one anyhow, if it could.)
    """

    def __init__(self, kernel: str, plan: Plan, memory: str, directory: Path) -> None:
        """Boot the guest; ``directory`` is for the init script and UML's own files."""
        init = directory / "init"
        init.write_bytes(os.fsencode(init_script(plan)))
        init.chmod(0o755)
        # Nothing is on it; it is there for limits to be set on.
        disk = directory / "disk"
        with disk.open("wb") as file:
            file.truncate(_DISK_BYTES)
        self._splitter = OutputSplitter(plan.token)
        self._output_fd, line_fd = os.pipe()
        self._log_fd, log_write_fd = os.pipe()
        #: The console's output: kernel messages and init's own.
        self.log = b""
        self._watchdog = subprocess.Popen(
            ["sh", "-c", _WATCHDOG],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._kernel = subprocess.Popen(
                kernel_command(
                    kernel,
                    memory=memory,
                    init=str(init),
                    line_fd=line_fd,
                    uml_dir=str(directory),
                    disk=str(disk),
                ),
                stdin=subprocess.DEVNULL,
                stdout=log_write_fd,
                stderr=subprocess.STDOUT,
                pass_fds=(line_fd,),
                start_new_session=True,
                # Not TMPDIR above all: the guest's memory is a file there, and
                # /dev/shm, the default, is in memory.
                env={"PATH": os.environ.get("PATH", os.defpath)},
            )
        except BaseException:
            self._end_watchdog()
            raise
        finally:
            os.close(line_fd)
            os.close(log_write_fd)
        assert self._watchdog.stdin is not None
        try:
            self._watchdog.stdin.write(b"%d\n" % self._kernel.pid)
            self._watchdog.stdin.flush()
        except OSError:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill all of the guest's processes, and wait until none is left."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        # In this order: until the kernel's process is waited for, its number
        # names no other group, so neither shot can hit anybody else.
        group = self._kernel.pid
        os.killpg(group, signal.SIGKILL)
        self._end_watchdog()
        self._kernel.wait()
        # The rest were children of the kernel's process. They are ours now, as
        # this process is a subreaper; on their way out since the SIGKILL.
        try:
            while True:
                os.waitpid(-group, 0)
        except ChildProcessError:
            pass
        os.close(self._output_fd)
        os.close(self._log_fd)

    def _end_watchdog(self) -> None:
        self._watchdog.kill()
        self._watchdog.wait()
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.close()

    def run(self, timeout: float) -> int:
        """Pass the output on until the guest has ended; return the exit code.

        Raise :class:`UmlError` when there is no exit code to return.
        """
        late = not self._pass_on(time.monotonic() + timeout)
        if self._splitter.code is not None:
            return self._splitter.code
        write(self._splitter.finish())
        raise UmlError(failure_reason(self.log, timeout if late else None))

    def _pass_on(self, deadline: float) -> bool:
        """Read both streams until they end; return False when time ran out first."""
        ready = False
        boot_deadline = time.monotonic() + BOOT_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self._output_fd, selectors.EVENT_READ)
            selector.register(self._log_fd, selectors.EVENT_READ)
            # The streams end when all of the guest's processes have.
            while selector.get_map():
                limit = deadline if ready else min(deadline, boot_deadline)
                left = limit - time.monotonic()
                if left <= 0:
                    return False
                for key, _ in selector.select(left):
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fd)
                    elif key.fd == self._output_fd:
                        write(self._splitter.feed(data))
                    else:
                        self.log += data
                        ready = ready or READY in self.log
                if self._splitter.code is not None:
                    deadline = min(deadline, time.monotonic() + _POWEROFF_SECONDS)
        return True


def write(data: bytes) -> None:
    """Write ``data`` to standard output, all of it and at once."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(1, view) :]
        except BlockingIOError:
            select.select([], [1], [])
        except BrokenPipeError:
            raise UmlError("standard output was closed") from None


class _EndSignals:
    """Turns the signals that ask for an end into :class:`_Ended`.

    At first they are held, until :meth:`release`: an exception in the middle of
    starting a process would leave that process to nobody.
    """

    def __init__(self) -> None:
        self._held = True
        self._number: int | None = None
        for number in _SIGNALS:
            # What the caller ignores (nohup) stays ignored.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        if not self._held:
            raise _Ended(number)

    def release(self) -> None:
        """Raise at once for a signal that was held, and from now on for any."""
        self._held = False
        if self._number is not None:
            raise _Ended(self._number)


def _prepare_process() -> None:
    """Set what this process must have before it starts a guest."""
    # UML's processes whose parent has ended become our children and not init's,
    # so that we can wait for their end.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A kernel panic ends UML by abort(); its core would be the guest's memory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def run_guest(options: argparse.Namespace) -> int:
    """Run ``options.command`` in a guest and return its exit code."""
    kernel = shutil.which(KERNEL)
    if kernel is None:
        raise UmlError(f"no {KERNEL} in PATH: install Debian's package {PACKAGE}")
    plan = make_plan(options.command, os.environ)
    signals = _EndSignals()
    with tempfile.TemporaryDirectory(prefix="craterun-uml-") as directory:
        guest = Guest(kernel, plan, options.mem, Path(directory))
        try:
            signals.release()
            return guest.run(options.timeout)
        except UmlError as error:
            error.log = guest.log
            raise
        finally:
            guest.kill()


def _say(line: str) -> None:
    """Print ``line`` on standard error; the exit code stands when that is closed."""
    with suppress(OSError):
        os.write(2, os.fsencode(line + "\n"))


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit code of this process."""
    options = parse_arguments(arguments)
    _prepare_process()
    try:
        return run_guest(options)
    except _Ended as ended:
        _say(f"uml: ended by {signal.Signals(ended.number).name}")
        return 128 + ended.number
    except (UmlError, OSError) as error:
        log = error.log if isinstance(error, UmlError) else b""
        for line in log_tail(log, _TAIL_LINES):
            _say(f"uml: log: {line}")
        _say(f"uml: error: {error}")
        return EXIT_FAILURE
