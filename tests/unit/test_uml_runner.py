"""The runner of the cgroup v2 tier, without a guest: its pure parts, and a fake kernel."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.uml import guest, in_uml, modprobe, runner, stream
from tests.uml.fake import HELPERS, READY, is_alive, run_fake, start_fake

TOKEN = "0123456789abcdef"
END = b"\0craterun-uml " + TOKEN.encode() + b" exit "

TRICKY = (
    "",
    " two  spaces ",
    "it's",
    '"double"',
    "line\nbreak\n",
    "$HOME $(id) `id` ${x}",
    "back\\slash\\n",
    "*?[a]~!#;&|<>(){}",
    "@COMMAND@",
    "%s%d\\000",
    "--",
    "-x",
    "tab\t\rreturn",
    "üñí€",
    # Bytes that are no UTF-8, and those that dash uses as marks in its own memory.
    os.fsdecode(bytes(range(0x80, 0x90)) + b"\xff\xfe"),
)

text_without_nul = st.binary(max_size=40).map(lambda data: os.fsdecode(data.replace(b"\0", b"")))


def make_plan(
    command: tuple[str, ...] = ("true",),
    environment: dict[str, str] | None = None,
    cwd: str = "/srv",
    needed: tuple[str, ...] = (),
) -> guest.Plan:
    base = guest.guest_environment({"PATH": "/usr/bin:/bin"}, sys.executable)
    return guest.Plan(
        command=command,
        cwd=cwd,
        environment=base | (environment or {}),
        token=TOKEN,
        needed=needed,
        modprobe=(sys.executable, "/a dir/it's/modprobe.py"),
    )


def run_sh(script: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["sh", *options], input=os.fsencode(script), capture_output=True, check=False
    )


# The command line.


def test_arguments_after_the_first_dashes_are_the_commands() -> None:
    options = runner.parse_arguments(["--timeout", "5", "--", "x", "--mem", "y", "--", "-z"])
    assert options.timeout == 5
    assert options.mem == "1G"
    assert options.command == ["x", "--mem", "y", "--", "-z"]


def test_default_timeout() -> None:
    assert runner.parse_arguments(["--", "true"]).timeout == 1800


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--"],
        ["true"],
        ["--mem", "1", "--", "true"],
        ["--mem", "1G hostfs=/etc", "--", "true"],
        ["--timeout", "0", "--", "true"],
        ["--timeout", "nan", "--", "true"],
        ["--timeout", "inf", "--", "true"],
        ["--timeout", "soon", "--", "true"],
        ["--unknown", "--", "true"],
    ],
)
def test_usage_errors_are_loud(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        runner.parse_arguments(arguments)
    assert error.value.code == 125
    assert "uml: error: " in capsys.readouterr().err


def test_kernel_command_quotes_the_path_of_init() -> None:
    command = guest.kernel_command(
        "/usr/bin/linux.uml",
        memory="2G",
        init="/a b/init",
        line_fd=7,
        uml_dir="/a b",
        disk="/a b/disk",
    )
    assert command[0] == "/usr/bin/linux.uml"
    assert {"mem=2G", 'init="/a b/init"', "ssl0=null,fd:7", "hostfs=/"} <= set(command)


# The environment.


def test_python_is_this_interpreter() -> None:
    assert guest.resolve_command(["python", "-V"], "/v/bin/python") == ("/v/bin/python", "-V")
    assert guest.resolve_command(["python3"], "/v/bin/python") == ("/v/bin/python",)
    assert guest.resolve_command(["sh", "python"], "/v/bin/python") == ("sh", "python")


def test_environment_is_selected_and_state_is_in_the_guest() -> None:
    host = {
        "PATH": "/usr/bin",
        "HOME": "/home/me",
        "TMPDIR": "/home/me/tmp",
        "CRATERUN_ROOT": "/home/me/state",
        "CRATERUN_DEBUG": "1",
        "LC_ALL": "C",
        "PYTEST_ADDOPTS": "-x",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SECRET_TOKEN": "s",
    }
    environment = guest.guest_environment(host, "/v/bin/python")
    assert environment["PATH"] == "/v/bin:/usr/bin"
    assert environment["CRATERUN_DEBUG"] == "1"
    assert environment["LC_ALL"] == "C"
    assert environment["PYTEST_ADDOPTS"] == "-x"
    assert "SECRET_TOKEN" not in environment
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    for name in ("HOME", "TMPDIR", "CRATERUN_ROOT"):
        assert guest.covered_paths([environment[name]]), name


def test_in_uml_goes_by_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRATERUN_IN_UML", raising=False)
    assert not in_uml()
    environment = guest.guest_environment({}, sys.executable)
    monkeypatch.setenv("CRATERUN_IN_UML", environment["CRATERUN_IN_UML"])
    assert in_uml()


# The init script.


def run_command_part(plan: guest.Plan, *, directory: Path) -> tuple[list[str], dict[str, str]]:
    """Let sh run only what init runs as COMMAND; return its arguments and environment."""
    script = guest.init_script(plan)
    part = re.search(
        r"(env -i .*) </dev/null >&3 2>&1 3>&- 4>&-$", script, re.DOTALL | re.MULTILINE
    )
    assert part is not None
    seen = directory / "seen"
    done = run_sh(f"exec 3>{seen}\n{part[1]} >&3\n")
    assert done.returncode == 0, done.stderr
    arguments, environment = json.loads(seen.read_bytes())
    return arguments, environment


PRINT = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"


def test_tricky_words_reach_the_command(tmp_path: Path) -> None:
    variables = {f"TRICKY_{number}": value for number, value in enumerate(TRICKY)}
    plan = make_plan((sys.executable, "-c", PRINT, *TRICKY), variables)
    arguments, environment = run_command_part(plan, directory=tmp_path)
    assert arguments == list(TRICKY)
    for name, value in variables.items():
        assert environment[name] == value


@given(words=st.lists(text_without_nul, max_size=6))
def test_any_words_reach_the_command(
    words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    plan = make_plan((sys.executable, "-I", "-S", "-c", PRINT, *words))
    arguments, _ = run_command_part(plan, directory=tmp_path_factory.mktemp("words"))
    assert arguments == words


def test_script_is_sound_shell_whatever_it_holds() -> None:
    for tricky in TRICKY:
        plan = make_plan(
            ("cmd", tricky), {"X": tricky}, f"/tmp/{tricky}".rstrip("/"), (f"/tmp/{tricky}",)
        )
        done = run_sh(guest.init_script(plan), "-n")
        assert (done.returncode, done.stderr) == (0, b"")


def test_script_leaves_no_placeholder() -> None:
    assert not re.search(r"@[A-Z]+@", guest.init_script(make_plan()))


def test_script_writes_a_quoted_modprobe() -> None:
    script = guest.init_script(make_plan())
    line = next(line for line in script.splitlines() if line.lstrip().startswith("printf '#!/bin"))
    written = run_sh(line.partition(" >/run")[0])
    assert written.stdout.decode() == (
        f"#!/bin/sh\nexec {sys.executable} '/a dir/it'\"'\"'s/modprobe.py' \"$@\"\n"
    )


def test_only_covered_paths_are_bound_back() -> None:
    needed = ["/srv/x", "/tmp/work", "/tmp/work/venv", "/tmp/working", "/run/../tmp/work/a", "/tm"]
    assert guest.covered_paths(needed) == ["/tmp/work", "/tmp/working"]
    script = guest.init_script(make_plan(needed=("/srv/x", "/tmp/a b")))
    assert "mount --bind '/run/craterun-uml/host/tmp/a b' '/tmp/a b'" in script
    assert "/srv/x" not in script


# The output and the exit code.


def feed_all(chunks: list[bytes]) -> tuple[bytes, int | None]:
    splitter = stream.OutputSplitter(TOKEN)
    output = b"".join(splitter.feed(chunk) for chunk in chunks)
    return output + splitter.finish(), splitter.code


@pytest.mark.parametrize("code", [0, 1, 125, 139, 255])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_exit_code_ends_the_output(code: int, size: int) -> None:
    data = b"line\r\n\0\xff\0craterun" + END + b"%d\n" % code + b"late"
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    assert feed_all(chunks) == (b"line\r\n\0\xff\0craterun", code)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no end",
        END,
        END[:-3],
        END + b"0",
        END + b"\n",
        END + b"256\n",
        END + b"-1\n",
        END + b"0 \n",
        END + b"0000\n",
        END.replace(TOKEN.encode(), b"f" * len(TOKEN)) + b"0\n",
    ],
)
def test_no_exit_code_is_taken_from_anything_else(data: bytes) -> None:
    assert feed_all([data]) == (data, None)
    assert feed_all([bytes([byte]) for byte in data]) == (data, None)


def test_false_marker_before_the_true_one() -> None:
    data = END + b"x" + END + END + b"7\n"
    assert feed_all([bytes([byte]) for byte in data]) == (END + b"x" + END, 7)


@given(st.lists(st.one_of(st.binary(max_size=9), st.sampled_from([END, END[:5], b"3", b"\n"]))))
def test_no_byte_of_the_output_is_lost(chunks: list[bytes]) -> None:
    output, code = feed_all(chunks)
    whole = b"".join(chunks)
    assert whole == output if code is None else whole.startswith(output + END + b"%d" % code)


def test_output_is_not_held_back_without_need() -> None:
    splitter = stream.OutputSplitter(TOKEN)
    assert splitter.feed(b"prompt> ") == b"prompt> "


@pytest.mark.parametrize(
    ("log", "timeout", "reason"),
    [
        (b"", None, "the guest did not boot"),
        (b"Linux version\n", 5.0, "the guest did not boot in time; it was killed"),
        (stream.READY, None, "the guest stopped without an exit code"),
        (stream.READY, 5.0, "COMMAND did not end within 5 seconds; the guest was killed"),
        (
            b"x\n<0>Kernel panic - not syncing: y\r\nz",
            None,
            "the guest's kernel panicked: Kernel panic - not syncing: y",
        ),
        (
            stream.FAILED + b": mount\n",
            None,
            "the guest's init failed: craterun-uml: init failed: mount",
        ),
    ],
)
def test_failure_reason(log: bytes, timeout: float | None, reason: str) -> None:
    assert stream.failure_reason(log, timeout) == reason


def test_log_tail_is_printable() -> None:
    assert stream.log_tail(b"a\n\nb\r\n\x1b[31mc\xff\n", 2) == ["b", "[31mc\ufffd"]


# The guest's modprobe.


def test_modprobe_resolves_aliases_and_dependencies() -> None:
    aliases = "# comment\nalias fs-overlay overlay\nalias net-pf-10-proto-*-x ip-v6\n"
    assert modprobe.resolve("fs-overlay", aliases) == ["overlay"]
    assert modprobe.resolve("net-pf-10-proto-3-x", aliases) == ["ip_v6"]
    assert modprobe.resolve("some-name", aliases) == ["some_name"]
    files = modprobe.dependencies("a/x-y.ko: a/p.ko a/q.ko.xz\na/q.ko.xz:\n")
    assert files == {"x_y": ["a/q.ko.xz", "a/p.ko", "a/x-y.ko"], "q": ["a/q.ko.xz"]}


# The whole runner, with a script in the kernel's place.


def test_runner_passes_output_and_exit_code(tmp_path: Path) -> None:
    body = READY + "out(bytes(range(256)) * 9999)\nend(7)\nout(b'late')\n"
    code, output, errors = run_fake(tmp_path, body)
    assert (code, errors) == (7, "")
    assert output == bytes(range(256)) * 9999


def test_runner_streams_live(tmp_path: Path) -> None:
    body = READY + "out(b'first')\ntime.sleep(1000)\n"
    with start_fake(tmp_path, body) as process:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 99) == b"first"
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit(0)\n", "the guest did not boot"),
        (READY + "out(b'output')\n", "the guest stopped without an exit code"),
        (READY + "os.write(1, b'Kernel panic - x')\nos.abort()\n", "Kernel panic - x"),
    ],
)
def test_failures_are_loud(tmp_path: Path, body: str, message: str) -> None:
    code, _, errors = run_fake(tmp_path, body)
    assert code == 125
    assert "uml: log: Linux version fake" in errors
    assert errors.splitlines()[-1].startswith("uml: error: ")
    assert message in errors.splitlines()[-1]


def test_missing_kernel_names_the_package(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "_prepare_process", lambda: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert runner.main(["--", "true"]) == 125
    message = "uml: error: no linux.uml in PATH: install Debian's package user-mode-linux\n"
    assert capfd.readouterr().err == message


def test_hanging_guest_is_killed_with_all_its_processes(tmp_path: Path) -> None:
    code, output, errors = run_fake(tmp_path, READY + HELPERS, "--timeout", "2")
    assert code == 125
    assert "did not end within 2 seconds" in errors.splitlines()[-1]
    pids = [int(word) for word in output.split()]
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_ends_the_guest_wholly(tmp_path: Path, number: signal.Signals) -> None:
    with start_fake(tmp_path, READY + HELPERS) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert all(is_alive(pid) for pid in pids)
        process.send_signal(number)
        process.wait(timeout=60)
    expected = -number if number is signal.SIGKILL else 128 + number
    assert process.returncode == expected
    # After SIGKILL only the watchdog is there to do it, in its own time.
    deadline = time.monotonic() + (30 if number is signal.SIGKILL else 0)
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)


def test_closed_output_is_an_error(tmp_path: Path) -> None:
    body = READY + "while True: out(b'x' * 4096)\n"
    with start_fake(tmp_path, body) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == 125
    assert errors.endswith("uml: error: standard output was closed\n")
