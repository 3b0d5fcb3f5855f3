"""What bad input gets: one clear line on stderr, the right exit code, and nothing half-created.

Commands that cannot be executed are in test_exec, damaged state in test_state_damage, full disks in
test_disk_full.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from craterun import CraterunError, Spec, Supervisor
from craterun.core.spec import MAX_ARGUMENT_BYTES
from tests.containers import helpers
from tests.containers.helpers import SLEEP, Cli, mount_namespace, the_complaint, wait_exit
from tests.leaks import take_footprint

cli = helpers.cli


@pytest.fixture(autouse=True)
def nothing_half_created(cli: Cli) -> Iterator[None]:
    """After every refusal: no container in the state directory, no process."""
    before = take_footprint().processes
    yield
    kept = {i for i in cli.ids() if cli.metadata(i).is_file() and cli.record(i)["pid"] is not None}
    assert cli.ids() == kept
    if not kept:
        if os.environ.get("CRATERUN_TESTS_SERVE") == "1":
            return  # what is left is the server's, which goes on
        for pid in take_footprint().processes - before:
            wait_exit(pid)  # a supervisor in the background, about to go


# --- not root -------------------------------------------------------------------------------------


@pytest.mark.no_server
@pytest.mark.parametrize("command", [("run", "--", "true"), ("run", "-d", "--", "true")])
def test_without_root_and_without_a_way_to_be_it_is_refused(
    command: tuple[str, ...], cli: Cli
) -> None:
    # In a user namespace that maps nobody, the caller is uid 65534 and may not make another one.
    nobody = cli.behind("unshare", "--user", "--")
    message = nobody.refused(*command)
    assert "root" in message
    assert "65534" in message


# --- rootfs ---------------------------------------------------------------------------------------


def test_missing_rootfs(cli: Cli, tmp_path: Path) -> None:
    for path in (tmp_path / "nope", tmp_path / "no" / "pe"):
        message = cli.refused("run", "--rootfs", str(path), "--", "true")
        assert str(path) in message
        assert "No such file" in message


def test_rootfs_without_bin_usr_etc(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "files/home").mkdir(parents=True)
    for name in ("bin", "usr", "etc"):
        (tmp_path / "files" / name).write_text("a file, not a directory")
    for name in ("empty", "files"):
        message = cli.refused("run", "--rootfs", str(tmp_path / name), "--", "true")
        assert name in message
        assert "bin/" in message


@pytest.mark.parametrize("path", ["", ".", "rootfs", "./rootfs", "../rootfs", "~/rootfs"])
def test_empty_or_relative_rootfs(path: str, cli: Cli, rootfs: Path) -> None:
    message = cli.refused("run", "--rootfs", path, "--", "true", cwd=rootfs.parent)
    assert ("empty" if not path else "absolute") in message


def test_rootfs_that_is_not_a_directory(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "file", tmp_path / "file/below", tmp_path / "fifo", "/dev/null"):
        assert "Not a directory" in cli.refused("run", "--rootfs", str(path), "--", "true")


def test_rootfs_path_that_cannot_be_followed(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path, why in ((str(tmp_path / "loop"), "symbolic links"), ("/" + "a" * 300, "too long")):
        assert why in cli.refused("run", "--rootfs", path, "--", "true")


def test_unreadable_rootfs(cli: Cli, rootfs: Path) -> None:
    # Root reads everything, unless it lacks two capabilities.
    locked = rootfs.parent / "locked"
    locked.mkdir(mode=0o000)
    shutil.move(rootfs, locked / "rootfs")
    os.chown(locked, 1000, 1000)
    weak = cli.behind("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")
    message = weak.refused("run", "--rootfs", str(locked / "rootfs"), "--", "true")
    assert "Permission denied" in message
    assert "locked" in message


DISGUISES = (
    "/",
    "//",
    "/.",
    "/../",
    "/usr/..",
    "/proc/self/root",
    "/proc/thread-self/root/",
    "/./../usr/../",
)


@pytest.mark.parametrize("path", DISGUISES)
def test_the_hosts_root_is_refused_by_every_name(path: str, cli: Cli) -> None:
    message = cli.refused("run", "--rootfs", path, "--", "true")
    assert "host" in message
    assert "root directory" in message


def test_the_hosts_root_is_refused_behind_symlinks(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "absolute").symlink_to("/")
    (tmp_path / "relative").symlink_to("../" * 20)
    (tmp_path / "twice").symlink_to("absolute")
    (tmp_path / "magic").symlink_to("/proc/self/root")
    for name in ("absolute", "relative", "twice", "magic"):
        assert "host" in cli.refused("run", "--rootfs", str(tmp_path / name), "--", "true")


@pytest.mark.parametrize("bind", ["--bind", "--rbind"])
def test_the_hosts_root_is_refused_when_bind_mounted(bind: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bound").mkdir()
    (tmp_path / "link").symlink_to("bound")
    script = f'mount {bind} / "$1/bound"; mount -o remount,bind,ro "$1/bound"'
    with mount_namespace(script, tmp_path) as aside:
        for name in ("bound", "link", "bound/usr/.."):
            message = cli.behind(*aside.enter).refused(
                "run", "--rootfs", str(tmp_path / name), "--", "true"
            )
            assert "host" in message


# --- names, ids, hostnames, settings --------------------------------------------------------------

BAD_NAMES = ("", ".", "..", "../x", "a/b", "/", "-x", "--rm", ".x", "_x", "a b", "a\nb", "a\tb",
             "ü", "a" * 129, "0123456789abcdef", "a:b", "*", "\x1b[31m")  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_malformed_name_is_refused(name: str, cli: Cli) -> None:
    assert "name" in cli.refused("run", f"--name={name}", "--", "true")


@pytest.mark.parametrize("name", ["a", "9", "web-1_x.y", "a" * 128, "0123456789abcde"])
def test_a_well_formed_name_is_taken(name: str, cli: Cli) -> None:
    cli.ok("run", "--name", name, "--", "true")
    assert cli.ok("wait", name) == "0\n"


@pytest.mark.parametrize(
    "hostname", ["", "h" * 65, "ü" * 33, "-x", "x-", "a b", "a\nb", "a/b", "."]
)
def test_a_malformed_hostname_is_refused(hostname: str, cli: Cli) -> None:
    message = cli.refused("run", f"--hostname={hostname}", "--", "true")
    assert "hostname" in message
    if len(hostname.encode()) > 64:
        assert str(len(hostname.encode())) in message
        assert "64" in message


BAD_IDS = ("", "..", "../x", "/", "/etc", "a/b", ".names", "nosuch", "0123456789abcdef", "ABC",
           "-x", "a\nb", "a" * 5000, "\x1b[31m", "metadata.json")  # fmt: skip


@pytest.mark.parametrize("command", ["inspect", "logs", "wait", "stop", "kill", "rm", "exec"])
def test_an_unknown_or_malformed_id_is_refused(command: str, cli: Cli, rootfs: Path) -> None:
    cli.ok("run", "--rootfs", str(rootfs), "--name", "other", "--", "true")
    after = ("true",) if command == "exec" else ()
    for text in BAD_IDS:
        result = cli(command, "--", text, *after)
        if command == "inspect":
            assert result.stdout == b"[]\n"
            result.stdout = b""
        message = the_complaint(result, 125)
        assert ("empty" if not text else "no container") in message


@pytest.mark.parametrize("entry", ["", "novalue", "=", "=x"])
def test_a_malformed_env_entry_is_refused(entry: str, cli: Cli, tmp_path: Path) -> None:
    assert "KEY=VALUE" in cli.refused("run", "-e", entry, "--", "true")
    live = cli.detach("--", *SLEEP)
    assert "KEY=VALUE" in cli.refused("exec", "-e", entry, live.id, "--", "true")
    if entry:
        (tmp_path / "env").write_text(f"# comment\nA=1\n{entry}\n")
        message = cli.refused("run", "--env-file", str(tmp_path / "env"), "--", "true")
        assert f"{tmp_path / 'env'}, line 3" in message


def test_an_env_file_that_cannot_be_read_is_refused(cli: Cli, tmp_path: Path) -> None:
    for path, why in ((tmp_path / "nope", "No such file"), (tmp_path, "directory")):
        message = cli.refused("run", "--env-file", str(path), "--", "true")
        assert str(path) in message
        assert why in message


@pytest.mark.parametrize(
    "user", ["", ":", "nosuch", "alice:", ":alice", "alice:nosuch", "1:2:3", "-1", "4294967295",
             "99999999999", "../etc", "al ice", "1000:4294967295"],
)  # fmt: skip
def test_an_unknown_or_malformed_user_is_refused(user: str, cli: Cli, rootfs: Path) -> None:
    message = cli.refused("run", "--rootfs", str(rootfs), f"--user={user}", "--", "true")
    assert ("group" if user in ("alice:nosuch", "1:2:3") else "user") in message
    live = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    cli.refused("exec", f"--user={user}", live.id, "--", "true")


@pytest.mark.parametrize(
    ("workdir", "why"),
    [("/nope", "does not exist"), ("/bin/sh", "not a directory"), ("tmp", "absolute"),
     ("", "absolute"), ("../..", "absolute"), ("/locked", "may not be entered"),
     ("/dangling", "does not exist"), ("/loop", "symbolic links")],
)  # fmt: skip
def test_a_workdir_that_cannot_be_entered_is_refused(
    workdir: str, why: str, cli: Cli, rootfs: Path
) -> None:
    (rootfs / "locked").mkdir(mode=0o700)
    (rootfs / "dangling").symlink_to("/nowhere")
    (rootfs / "loop").symlink_to("loop")
    options = (f"--workdir={workdir}", "--user", "alice")
    message = cli.refused("run", "--rootfs", str(rootfs), *options, "--", "true")
    assert workdir in message
    assert why in message
    live = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    assert cli.refused("exec", *options, live.id, "--", "true") == message


def test_a_signal_that_does_not_exist_is_refused(cli: Cli) -> None:
    live = cli.detach("--", *SLEEP)
    for text in ("", "FOO", "SIG", "0", "65", "-9", "99999999999999999999", "KILL\n"):
        for command in ("kill", "stop"):
            assert "signal" in cli.refused(command, f"--signal={text}", live.id)
    assert live.proc.exists()


def test_patience_that_is_no_time_is_refused(cli: Cli) -> None:
    live = cli.detach("--", *SLEEP)
    for text in ("-1", "nan", "inf", "soon", ""):
        assert "time" in cli.refused("stop", f"--time={text}", live.id)
    assert live.proc.exists()


@pytest.mark.parametrize(
    "arguments",
    [("nosuch",), ("--nosuch",), ("run", "--nosuch", "--", "true"), ("run",), ("run", "--"),
     ("run", "--", ""), ("run", "--rootfs"), ("run", "-a", "-d", "--", "true"),
     ("run", "-i", "-d", "--", "true"), ("exec",), ("logs",), ("rm",),
     ("kill",), ("stop",), ("wait",), ("inspect",), ("ps", "extra"), ("ps", "--format", "xml"),
     ("--root",), ("--root=", "run", "--rootfs", "", "--", "true")],
)  # fmt: skip
def test_a_command_line_that_makes_no_sense_is_refused(
    arguments: tuple[str, ...], cli: Cli
) -> None:
    cli.refused(*arguments)


def test_a_cidfile_that_cannot_be_made_is_refused(cli: Cli, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine\n")
    for path, why in ((taken, "File exists"), (tmp_path / "no/cid", "No such file")):
        for mode in ("--attach", "--detach"):
            message = cli.refused("run", mode, "--cidfile", str(path), "--", "true")
            assert str(path) in message
            assert why in message
    assert taken.read_text() == "mine\n"


@pytest.mark.parametrize("mode", ["--attach", "--detach", "--init"])
def test_a_cidfile_goes_away_when_the_start_fails(mode: str, cli: Cli, tmp_path: Path) -> None:
    cidfile = tmp_path / "cid"
    cli.refused("run", mode, "--cidfile", str(cidfile), "--", "nosuch", code=127)
    cli.refused("run", mode, "--cidfile", str(cidfile), "--rootfs", "/", "--", "true")
    assert not cidfile.exists()


# --- too long, and NUL ----------------------------------------------------------------------------


def test_an_argument_list_that_is_too_long_is_refused(cli: Cli, tmp_path: Path) -> None:
    # The kernel keeps such arguments from our own command line, too; a file is a way around that.
    single, total = tmp_path / "single", tmp_path / "total"
    single.write_text("A=" + "x" * MAX_ARGUMENT_BYTES)
    total.write_text("".join(f"A{n}={'x' * 100_000}\n" for n in range(100)))
    assert "too long" in cli.refused("run", "--env-file", str(single), "--", "true")
    assert "too long" in cli.refused("run", "--env-file", str(total), "--", "true", code=126)


def test_the_longest_argument_that_the_kernel_takes_arrives(cli: Cli) -> None:
    longest = "x" * (MAX_ARGUMENT_BYTES - 1)
    result = cli("run", "--attach", "--", "sh", "-c", 'printf "%s" "$1"', "sh", longest)
    assert (result.returncode, result.stdout) == (0, longest.encode())
    many = [f"{n:050}" for n in range(10_000)]
    result = cli("run", "--attach", "--", "sh", "-c", 'echo "$#"', "sh", *many)
    assert (result.returncode, result.stdout) == (0, b"10000\n")


SPECS: dict[str, Callable[[str], Spec]] = {
    "command": lambda nul: Spec(command=("echo", nul)),
    "program": lambda nul: Spec(command=(nul,)),
    "rootfs": lambda nul: Spec(command=("true",), rootfs=f"/{nul}"),
    "name": lambda nul: Spec(command=("true",), name=nul),
    "hostname": lambda nul: Spec(command=("true",), hostname=nul),
    "env": lambda nul: Spec(command=("true",), env={"A": nul}),
    "env name": lambda nul: Spec(command=("true",), env={nul: "A"}),
    "workdir": lambda nul: Spec(command=("true",), workdir=f"/{nul}"),
    "user": lambda nul: Spec(command=("true",), user=nul),
    "too long": lambda nul: Spec(command=("true", "x" * MAX_ARGUMENT_BYTES)),
    "too long in all": lambda nul: Spec(command=("true", *["x" * 100_000] * 100)),
}


@pytest.mark.parametrize("where", SPECS)
async def test_a_library_user_gets_an_exception_for_what_no_command_line_can_say(
    where: str, state_root: Path
) -> None:
    async with Supervisor(state_root) as supervisor:
        with pytest.raises(CraterunError) as caught:
            await supervisor.start(SPECS[where]("a\0b"))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300
        with pytest.raises(CraterunError):
            await supervisor.execute("a\0b", ("true",))


def test_a_failed_start_gives_its_name_back(cli: Cli) -> None:
    cli.refused("run", "--name", "again", "--", "nosuch", code=127)
    cli.refused("run", "--name", "again", "--workdir", "/nope", "--", "true")
    cli.ok("run", "--name", "again", "--", "true")


def test_of_many_that_want_one_name_at_once_one_gets_it(cli: Cli) -> None:
    wanting = [cli.start("run", "-d", "--name", "wanted", "--", *SLEEP) for _ in range(6)]
    results = [(*process.communicate(), process.returncode) for process in wanting]
    winners = [output.decode().strip() for output, _, code in results if code == 0]
    assert len(winners) == 1
    assert cli.ids() == set(winners)
    for output, complaint, code in results:
        if code:
            assert (output, code) == (b"", 125)
            assert b"'wanted' is used by container" in complaint
            assert complaint.count(b"\n") == 1


@pytest.mark.parametrize(
    "arguments", [("ps",), ("ps", "-q"), ("inspect", "one"), ("logs", "one"), ("wait", "one"),
                  ("--help",), ("run", "--help"), ("--version",)],
)  # fmt: skip
def test_a_full_disk_behind_stdout_is_reported(arguments: tuple[str, ...], cli: Cli) -> None:
    cli.ok("run", "--name", "one", "--", "echo", "hello")
    full = cli.behind("sh", "-c", 'exec "$@" > /dev/full', "sh")
    assert "No space left on device" in full.refused(*arguments)
