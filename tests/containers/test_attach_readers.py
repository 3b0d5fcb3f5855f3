"""A reader that is closed, slow or stopped disturbs neither container, nor log, nor the other."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import CommandLine, cli_environment
from tests.containers.streams_helpers import (
    LARGEST,
    PATIENCE_SECONDS,
    Gate,
    add_noise,
    background,
    check_log,
    command,
    digest,
    drain,
    errors_of,
    ids,
    metadata,
    output_of,
    read_until,
    running_pid,
    sleeper,
    the_container,
    wait_readable,
    wait_stopped,
)

MUCH = 2**21 + 1
"""More than any pipe between container and reader can hold."""


def attached(rootfs: Path, script: str) -> tuple[str, ...]:
    """Arguments that run ``script`` in a shell, attached."""
    return ("run", "--attach", "--rootfs", str(rootfs), "--", "sh", "-c", script)


def in_shell(state_root: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the shell ``script``, in which "$@" is our command line, as people type it."""
    return subprocess.run(
        ["bash", "-c", script, "bash", *command(*arguments)],
        env=cli_environment(state_root),
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


# --- gone readers -------------------------------------------------------------------------------


def test_a_reader_that_takes_one_byte_and_leaves_disturbs_nothing(
    rootfs: Path, state_root: Path
) -> None:
    """``| head -c 1``: the exit code is passed on, the log is whole, nobody complains."""
    out, err = add_noise(rootfs, MUCH)
    script = "cat /err.bin >&2; cat /out.bin; exit 9"
    pipeline = '"$@" 2>/dev/null | head -c 1; exit ${PIPESTATUS[0]}'
    result = in_shell(state_root, pipeline, *attached(rootfs, script))
    assert (result.returncode, result.stdout, result.stderr) == (9, out[:1], b"")
    check_log(the_container(state_root), out, err)


def test_readers_that_leave_while_much_is_unread_disturb_nothing(
    rootfs: Path, state_root: Path
) -> None:
    """Both pipes are full and the command line waits for them when both readers go."""
    out, err = add_noise(rootfs, MUCH)
    script = "cat /out.bin; cat /err.bin >&2; echo >/written; read x </go; exit 9"
    with (
        Gate(rootfs / "written") as written,
        Gate(rootfs / "go") as go,
        background(state_root, *attached(rootfs, script)) as process,
    ):
        written.wait()
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stderr.close()
        go.open()
    assert process.returncode == 9
    check_log(the_container(state_root), out, err)


def test_a_container_goes_on_for_long_after_its_reader_has_left(
    rootfs: Path, state_root: Path
) -> None:
    """What it writes later finds the reader gone: it must not be killed by that (SIGPIPE)."""
    script = "echo first; read x </go; cat /out.bin; echo last; exit 3"
    out, _ = add_noise(rootfs, MUCH)
    with Gate(rootfs / "go") as go, background(state_root, *attached(rootfs, script)) as process:
        read_until(output_of(process), b"first\n")
        assert process.stdout is not None
        process.stdout.close()
        go.open()
        assert drain(errors_of(process)) == [digest(b"")]
    assert process.returncode == 3
    check_log(the_container(state_root), b"first\n" + out + b"last\n", b"")


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_standard_streams_closed_from_the_start_disturb_nothing(
    rootfs: Path, state_root: Path, closed: str, attach: bool
) -> None:
    out, err = add_noise(rootfs, 100_000)
    run, option, *rest = attached(rootfs, "cat /out.bin; cat /err.bin >&2; exit 9")
    arguments = (run, *([option] if attach else []), *rest)
    result = in_shell(state_root, f'"$@" {closed}', *arguments)
    directory = the_container(state_root)
    name = f"{directory.name}\n".encode()
    expected_out = b"" if "1>" in closed else out if attach else name
    expected_err = b"" if "2>" in closed or not attach else err
    assert result.returncode == 9
    assert digest(result.stderr) == digest(expected_err), result.stderr[:300]
    assert digest(result.stdout) == digest(expected_out)
    check_log(directory, out, err)
    assert metadata(directory)["error"] is None


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_exec_with_standard_streams_closed_runs_to_its_end(
    rootfs: Path, state_root: Path, closed: str
) -> None:
    out, err = add_noise(rootfs, 100_000)
    with sleeper(rootfs, state_root) as container_id:
        script = "cat /out.bin; cat /err.bin >&2; echo whole >/tmp/end; exit 9"
        arguments = ("exec", container_id, "--", "sh", "-c", script)
        result = in_shell(state_root, f'"$@" {closed}', *arguments)
    assert result.returncode == 9
    assert digest(result.stdout) == digest(b"" if "1>" in closed else out)
    assert digest(result.stderr) == digest(b"" if "2>" in closed else err)
    assert (rootfs / "tmp" / "end").read_text() == "whole\n"


def test_exec_whose_reader_has_left_runs_to_its_end(rootfs: Path, state_root: Path) -> None:
    out, _ = add_noise(rootfs, MUCH)
    with sleeper(rootfs, state_root) as container_id:
        script = "cat /out.bin; echo whole >/tmp/end; exit 9"
        pipeline = '"$@" | head -c 1; exit ${PIPESTATUS[0]}'
        result = in_shell(state_root, pipeline, "exec", container_id, "--", "sh", "-c", script)
    assert (result.returncode, result.stdout, result.stderr) == (9, out[:1], b"")
    assert (rootfs / "tmp" / "end").read_text() == "whole\n"


def test_a_full_disk_behind_stdout_is_told_and_disturbs_nothing(
    craterun: CommandLine, rootfs: Path, state_root: Path
) -> None:
    out, _ = add_noise(rootfs, 100_000)
    with open("/dev/full", "wb") as full:
        arguments = attached(rootfs, "cat /out.bin; exit 9")
        result = craterun(*arguments, stdout=full)
    assert result.returncode == 9
    assert result.stderr == b"craterun: cannot write to stdout: No space left on device\n"
    check_log(the_container(state_root), out, b"")


# --- slow and stopped readers -------------------------------------------------------------------


@pytest.mark.parametrize(("stopped", "followed"), [("2", "1"), ("1", "2")])
def test_a_stream_that_nobody_reads_does_not_hold_up_the_other(
    rootfs: Path, state_root: Path, stopped: str, followed: str
) -> None:
    """moby#22502: back-pressure from one reader froze containers."""
    content, _ = add_noise(rootfs, MUCH)
    script = f"cat /out.bin >&{stopped}; echo done >&{followed}; read x </go; exit 4"
    with Gate(rootfs / "go") as go, background(state_root, *attached(rootfs, script)) as process:
        streams = {"1": output_of(process), "2": errors_of(process)}
        assert read_until(streams[followed], b"\n") == b"done\n"
        go.open()
        assert drain(streams[stopped], streams[followed]) == [digest(content), digest(b"")]
    assert process.returncode == 4
    out, err = (b"done\n", content) if stopped == "2" else (content, b"done\n")
    check_log(the_container(state_root), out, err)


def test_a_reader_stopped_by_a_signal_goes_on_where_it_was(rootfs: Path, state_root: Path) -> None:
    """``| cat`` under job control, stopped until the container is over (moby#43022)."""
    out, _ = add_noise(rootfs, MUCH)
    script = "read x </go; cat /out.bin; exit 4"
    read_end, write_end = os.pipe()
    with (
        Gate(rootfs / "go") as go,
        subprocess.Popen(["cat"], stdin=read_end, stdout=subprocess.PIPE) as cat,
        background(state_root, *attached(rootfs, script), stdout=write_end) as process,
    ):
        os.close(read_end)
        os.close(write_end)
        cat.send_signal(signal.SIGSTOP)
        os.waitpid(cat.pid, os.WUNTRACED)
        go.open()
        wait_stopped(state_root)
        assert process.poll() is None
        cat.send_signal(signal.SIGCONT)
        assert drain(output_of(cat)) == [digest(out)]
    assert (process.returncode, cat.returncode) == (4, 0)
    check_log(the_container(state_root), out, b"")


def test_the_end_is_on_record_while_a_reader_is_stopped(
    craterun: CommandLine, rootfs: Path, state_root: Path
) -> None:
    """For ``ps``, ``wait`` and ``rm``, a reader that does not read is no part of the container."""
    add_noise(rootfs, MUCH)
    arguments = attached(rootfs, "echo >/started; cat /out.bin; exit 4")
    with Gate(rootfs / "started") as started, background(state_root, *arguments) as process:
        started.wait()
        container_id = the_container(state_root).name
        assert craterun("wait", container_id).stdout == b"4\n"
        assert b"stopped (4)" in craterun("ps").stdout
        assert craterun("rm", container_id).returncode == 0
        assert ids(state_root) == []
        assert process.poll() is None
        (received,) = drain(output_of(process))
        # What was logged before its file was removed can still be read through the open file.
        assert received == digest((rootfs / "out.bin").read_bytes())
    assert process.returncode == 4


def test_unread_output_does_not_pile_up_in_memory(rootfs: Path, state_root: Path) -> None:
    """moby#9139, moby#14460: the log is the only buffer."""
    add_noise(rootfs)
    four_times = " ".join(["/out.bin"] * 4)
    script = f"echo up; read x </go; cat {four_times}; echo >/written; read x </go; exit 4"
    with (
        Gate(rootfs / "go") as go,
        Gate(rootfs / "written") as written,
        background(state_root, *attached(rootfs, script)) as process,
    ):
        read_until(output_of(process), b"up\n")
        before = resident_bytes(process.pid)
        go.open()
        written.wait()
        assert resident_bytes(process.pid) - before < 16 * 2**20, "of 64 MiB written"
        go.open()
        assert drain(output_of(process))[0][0] == 4 * LARGEST
    assert process.returncode == 4


def resident_bytes(pid: int) -> int:
    """Memory that process ``pid`` occupies."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def test_a_stranger_who_holds_a_stream_open_delays_the_end_but_does_not_prevent_it(
    rootfs: Path, state_root: Path
) -> None:
    """ctrd#2823, moby#26995: waiting for end-of-file for ever. What he wrote in time is kept."""
    script = "echo first; read x </go; exit 4"
    with Gate(rootfs / "go") as go, background(state_root, *attached(rootfs, script)) as process:
        read_until(output_of(process), b"first\n")
        directory = the_container(state_root)
        pid = running_pid(directory)
        stranger = os.open(f"/proc/{pid}/fd/1", os.O_WRONLY)
        try:
            pidfd = os.pidfd_open(pid)
            go.open()
            wait_readable(pidfd)
            os.close(pidfd)
            os.write(stranger, b"from outside\n")
            assert process.wait(PATIENCE_SECONDS) == 4
        finally:
            os.close(stranger)
        assert b"held open" in read_until(errors_of(process), b"\n")
    assert "held open" in metadata(directory)["error"]
    check_log(directory, b"first\nfrom outside\n", b"")


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_the_mode_of_our_streams_is_left_alone(rootfs: Path, state_root: Path, kind: str) -> None:
    """O_NONBLOCK belongs to the open file, which the shell and its other jobs share with us."""
    ours, theirs = os.pipe() if kind == "pipe" else os.openpty()
    stdin, feeder = (theirs, -1) if kind == "terminal" else os.pipe()
    run, *rest = attached(rootfs, "echo ready; read x; echo $x; read x </go")
    shared = {ours, theirs, stdin}
    try:
        before = {fd: fcntl.fcntl(fd, fcntl.F_GETFL) for fd in shared}
        with (
            Gate(rootfs / "go") as go,
            background(state_root, run, "-i", *rest, stdin=stdin, stdout=theirs) as process,
        ):
            read_until(ours, b"ready")
            os.write(ours if kind == "terminal" else feeder, b"typed\n")
            read_until(ours, b"typed\n" if kind == "pipe" else b"typed\r\ntyped\r\n")
            assert {fd: fcntl.fcntl(fd, fcntl.F_GETFL) for fd in shared} == before
            go.open()
            assert drain(errors_of(process)) == [digest(b"")]
        assert process.returncode == 0
        assert {fd: fcntl.fcntl(fd, fcntl.F_GETFL) for fd in shared} == before
    finally:
        for fd in shared | ({feeder} if kind == "pipe" else set()):
            os.close(fd)
