"""A rootfs made to hurt: whatever it holds, the host stays as it was.

Each test names the advisory whose mistake it looks for, where there is one.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from craterun import CraterunError, Spec, Supervisor
from tests.containers import helpers
from tests.containers.helpers import DEFAULT_CAPABILITIES, SLEEP, Cli
from tests.threads import again_and_again

cli = helpers.cli

CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
_RENAME_EXCHANGE = 2


class Bait:
    """Files of the host that a hostile rootfs points to, and whether anything happened to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "file"
        folder.mkdir()
        self.file.write_text("precious\n")
        self._before = self._state()

    def _state(self) -> list[object]:
        paths = (self.folder, self.file)
        states = [path.stat() for path in paths]
        kept = [(s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_mode, s.st_uid) for s in states]
        return [kept, os.listdir(self.folder), self.file.read_bytes(), CORE_PATTERN.read_bytes()]

    def check(self) -> None:
        """Nothing was written, created, replaced, chowned or mounted there."""
        assert self._state() == self._before
        assert str(self.folder) not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def bait(tmp_path: Path) -> Iterator[Bait]:
    """Checked by itself when the test is over."""
    made = Bait(tmp_path / "bait")
    yield made
    made.check()


def out_of(rootfs: Path, target: Path) -> str:
    """A relative symlink target that would leave ``rootfs`` if it were followed on the host."""
    return "../" * len(rootfs.parts) + str(target).lstrip("/")


# --- where filesystems of ours are mounted --------------------------------------------------------


@pytest.mark.parametrize("point", ["dev", "proc", "sys"])
@pytest.mark.parametrize("how", ["absolute", "relative", "inside", "dangling", "magic"])
def test_symlink_as_mount_point_is_refused(
    point: str, how: str, cli: Cli, rootfs: Path, bait: Bait
) -> None:
    # CVE-2019-19921, CVE-2023-27561, crun#111
    target = {
        "absolute": str(bait.folder),
        "relative": out_of(rootfs, bait.folder),
        "inside": "tmp",
        "dangling": "/nowhere",
        "magic": "/proc/self/cwd",
    }[how]
    (rootfs / point).symlink_to(target)
    message = cli.refused("run", "--rootfs", str(rootfs), "--", "true")
    assert f"/{point}" in message
    assert "symlink" in message
    assert cli.ids() == set()
    assert os.readlink(rootfs / point) == target
    assert os.listdir(rootfs / "tmp") == []


@pytest.mark.parametrize("point", ["dev", "proc", "sys"])
def test_file_as_mount_point_is_refused(point: str, cli: Cli, rootfs: Path) -> None:
    (rootfs / point).write_text("a file\n")
    message = cli.refused("run", "--rootfs", str(rootfs), "--", "true")
    assert f"/{point}" in message
    assert "not a directory" in message
    assert (rootfs / point).read_text() == "a file\n"
    assert cli.ids() == set()


def test_hostile_entries_of_dev_are_covered(cli: Cli, rootfs: Path, bait: Bait) -> None:
    # CVE-2025-31133 and CVE-2025-52565: /dev/null and /dev/pts as symlinks to something writable.
    dev = rootfs / "dev"
    dev.mkdir()
    for name in ("null", "zero", "tty", "stdout", "console", "ptmx"):
        (dev / name).symlink_to(bait.file)
    (dev / "core").symlink_to(CORE_PATTERN)
    for name in ("pts", "shm", "mqueue"):
        (dev / name).symlink_to(bait.folder)
    live = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
    null = os.lstat(live.root("dev/null"))
    assert stat.S_ISCHR(null.st_mode)
    assert (os.major(null.st_rdev), os.minor(null.st_rdev)) == (1, 3)
    for masked in ("proc/keys", "proc/interrupts", "proc/timer_list"):
        if Path("/", masked).exists():
            assert os.lstat(live.root(masked)).st_rdev == null.st_rdev
    for name in ("pts", "shm", "mqueue"):
        assert live.root(f"dev/{name}").is_dir()
        assert not live.root(f"dev/{name}").is_symlink()
    assert not live.root("dev/console").exists()
    cli.ok("exec", live.id, "--", "sh", "-c", "echo x > /dev/null; echo y > /dev/shm/y")
    assert os.readlink(dev / "null") == str(bait.file)


# --- /etc -----------------------------------------------------------------------------------------

LINKS = {
    "the host's file": "{file}",
    "the host's file, relative": "{out}",
    "a kernel setting": str(CORE_PATTERN),
    "a kernel setting, relative": "../../../../../../../../../..{core}",
    "through /proc": "/proc/self/root{file}",
    "a descriptor": "/proc/self/fd/3",
    "dangling": "/run/nothing/here",
    "itself": "{name}",
    "a device": "/dev/null",
}


@pytest.mark.parametrize("what", LINKS)
@pytest.mark.parametrize("name", ["hosts", "resolv.conf"])
def test_symlinked_etc_file_reaches_nothing_of_the_host(
    name: str, what: str, cli: Cli, rootfs: Path, bait: Bait
) -> None:
    link = rootfs / "etc" / name
    link.symlink_to(
        LINKS[what].format(
            file=bait.file, out=out_of(link.parent, bait.file), core=CORE_PATTERN, name=name
        )
    )
    target = os.readlink(link)
    script = f"cat /etc/hostname; echo overwritten > /etc/{name}"
    result = cli("run", "--rootfs", str(rootfs), "--attach", "--", "sh", "-c", script)
    assert len(result.stdout) == 13, "the hostname, which shows that it ran"
    assert os.readlink(link) == target


@pytest.mark.parametrize("target", ["{folder}", "{out}", "/proc/sys/kernel", "/nowhere", "etc"])
def test_symlinked_etc_reaches_nothing_of_the_host(
    target: str, cli: Cli, rootfs: Path, bait: Bait
) -> None:
    shutil.rmtree(rootfs / "etc")
    (rootfs / "etc").symlink_to(target.format(folder=bait.folder, out=out_of(rootfs, bait.folder)))
    assert cli.ok("run", "--rootfs", str(rootfs), "--attach", "--", "echo", "ran") == "ran\n"


def test_symlinked_etc_inside_the_rootfs_is_used(cli: Cli, rootfs: Path) -> None:
    (rootfs / "etc").rename(rootfs / "real-etc")
    (rootfs / "etc").symlink_to("/real-etc")
    live = cli.detach("--rootfs", str(rootfs), "--user", "alice", "--", *SLEEP)
    assert live.root("real-etc/hostname").read_text() == f"{live.id[:12]}\n"
    assert live.status()["Uid"].split()[0] == "1000"


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_strange_etc_files_are_covered(kind: str, cli: Cli, rootfs: Path) -> None:
    mode = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "device": stat.S_IFCHR}[kind]
    os.mknod(rootfs / "etc/hosts", mode | 0o666, os.makedev(1, 5))
    result = cli("run", "--rootfs", str(rootfs), "--attach", "--", "cat", "/etc/hosts")
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"localhost" in result.stdout
    assert stat.S_IFMT((rootfs / "etc/hosts").lstat().st_mode) == mode


def test_directory_as_etc_file_is_refused_by_its_right_name(cli: Cli, rootfs: Path) -> None:
    (rootfs / "etc/hosts").mkdir()
    message = cli.refused("run", "--rootfs", str(rootfs), "--", "true")
    assert "/etc/hosts" in message
    assert "is a directory" in message
    assert cli.ids() == set()


@pytest.mark.parametrize("kind", ["fifo", "directory", "endless", "huge", "binary", "link"])
def test_strange_account_files_hold_no_user(
    kind: str, cli: Cli, rootfs: Path, tmp_path: Path
) -> None:
    on_host = tmp_path / "passwd"
    on_host.write_text("precious:x:4:4::/:/bin/sh\n")
    passwd = rootfs / "etc/passwd"
    passwd.unlink()
    if kind == "fifo":
        os.mkfifo(passwd)
    elif kind == "directory":
        passwd.mkdir()
    elif kind == "endless":
        os.mknod(passwd, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    elif kind == "huge":
        passwd.touch()
        os.truncate(passwd, 1 << 40)
    elif kind == "binary":
        passwd.write_bytes(os.urandom(4096) + b"\nprecious:x:-1:99999999999:\xff:/:\n:::::::\n")
    else:
        passwd.symlink_to(out_of(rootfs / "etc", on_host))
    message = cli.refused("run", "--rootfs", str(rootfs), "-u", "precious", "--", "true")
    assert "precious" in message


# --- races ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["dev", "etc"])
async def test_swapping_a_directory_for_a_symlink_never_reaches_the_host(
    point: str, rootfs: Path, state_root: Path, bait: Bait
) -> None:
    # CVE-2021-30465, CVE-2024-45310: one container swaps while another is being set up.
    (rootfs / point).mkdir(exist_ok=True)
    (rootfs / "swap").symlink_to(out_of(rootfs, bait.folder))
    swaps = 0
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(rootfs / point), os.fsencode(rootfs / "swap"))

    def swap() -> None:
        nonlocal swaps
        assert libc.renameat2(-100, names[0], -100, names[1], _RENAME_EXCHANGE) == 0
        swaps += 1

    refusals = []
    with again_and_again(swap):
        async with Supervisor(state_root) as supervisor:
            for _ in range(100):
                try:
                    container = await supervisor.start(Spec(command=("true",), rootfs=str(rootfs)))
                    await container.wait()
                except CraterunError as error:
                    refusals.append(str(error))
                await trio.lowlevel.checkpoint()
    assert swaps > 100
    assert [text for text in refusals if f"/{point}" not in text] == []
    if point == "dev":
        assert 0 < len(refusals) < 100


# --- commands -------------------------------------------------------------------------------------


def test_a_command_that_links_to_the_host_is_not_found(
    cli: Cli, rootfs: Path, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\n")
    program.chmod(0o755)
    subprocess.run([program], check=True)
    (tmp_path / "executed").unlink()
    for link in (str(program), out_of(rootfs, program)):
        (rootfs / "run-me").symlink_to(link)
        cli.refused("run", "--rootfs", str(rootfs), "--", "/run-me", code=127)
        (rootfs / "run-me").unlink()
    assert not (tmp_path / "executed").exists()


def _give_interpreter(rootfs: Path) -> str:
    """Copy into ``rootfs`` what the host's Python needs to start. Returns its PYTHONHOME there."""
    interpreter = os.path.realpath(sys.executable)
    listed = subprocess.run(["ldd", interpreter], capture_output=True, check=True).stdout.decode()
    for word in listed.split():
        if word.startswith("/"):
            target = rootfs / word.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, target)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = Path(os.__file__).parent
    (rootfs / "py/lib").mkdir(parents=True)
    shutil.copytree(library / "encodings", rootfs / "py/lib" / version / "encodings")
    return "/py"


_ATTACK = """\
#!/proc/self/exe
import posix
posix.write(1, b"attack\\n")
for flags in (posix.O_WRONLY | posix.O_TRUNC, posix.O_RDWR | posix.O_TRUNC):
    try:
        posix.open("/proc/self/exe", flags)
        posix.write(1, b"opened\\n")
    except OSError as error:
        posix.write(1, b"%d\\n" % error.errno)
kept = posix.open("/proc/self/exe", posix.O_RDONLY)
posix.set_inheritable(kept, True)
posix.execv("/bin/sh", ["sh", "-c", ": > /proc/self/fd/%d" % kept])
"""


@pytest.mark.parametrize("how", ["run", "exec"])
@pytest.mark.parametrize("command", [("/attack",), ("/proc/self/exe", "/attack")])
def test_the_interpreter_cannot_be_overwritten_by_its_own_container(
    how: str, command: tuple[str, ...], cli: Cli, rootfs: Path
) -> None:
    # CVE-2019-5736. /proc/self/exe of whoever executes the command is the host's Python. It is in
    # use, so O_TRUNC decides: that is refused for the read-only mount before "text file busy" is.
    home = _give_interpreter(rootfs)
    (rootfs / "attack").write_text(_ATTACK)
    (rootfs / "attack").chmod(0o755)
    interpreter = Path(os.path.realpath(sys.executable))
    before = (hashlib.sha256(interpreter.read_bytes()).digest(), interpreter.stat().st_mtime_ns)
    if how == "run":
        where = ["run", "--rootfs", str(rootfs), "--attach"]
    else:
        live = cli.detach("--rootfs", str(rootfs), "--", *SLEEP)
        where = ["exec"]
    options = ["-e", f"PYTHONHOME={home}", *([live.id] if how == "exec" else [])]
    result = cli(*where, *options, "--", *command)
    after = (hashlib.sha256(interpreter.read_bytes()).digest(), interpreter.stat().st_mtime_ns)
    assert result.stdout == b"attack\n30\n30\n", result
    assert b"Read-only file system" in result.stderr
    assert after == before


def test_init_shows_nothing_of_the_host(cli: Cli, rootfs: Path) -> None:
    # The init of --init is a fork of the keeper, inside the container for as long as that lives.
    first = cli.detach("--rootfs", str(rootfs), "--init", "--", *SLEEP)
    assert os.stat(first.proc / "exe").st_ino == os.stat(sys.executable).st_ino
    for path in ("exe", "cwd", "root", "fd/0", "map_files", "environ", "mem"):
        script = f"readlink /proc/1/{path} || cat /proc/1/{path} || ls /proc/1/{path}/"
        result = cli("exec", first.id, "--", "sh", "-c", script)
        assert result.stdout == b"", path
    assert int(first.status()["CapEff"], 16) & ~DEFAULT_CAPABILITIES == 0


NASTY = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m"


def test_control_characters_in_a_command_reach_no_terminal(cli: Cli, rootfs: Path) -> None:
    cli.ok("run", "--rootfs", str(rootfs), "--", "true", NASTY)
    listed = cli.ok("ps")
    assert listed.count("\n") == 2
    assert listed.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (127, ("run", "--", NASTY)),
        (127, ("run", "--", f"/{NASTY}")),
        (125, ("run", "--rootfs", NASTY, "--", "true")),
        (125, ("run", "--rootfs", f"/{NASTY}", "--", "true")),
        (125, ("run", "--name", NASTY, "--", "true")),
        (125, ("run", "--hostname", NASTY, "--", "true")),
        (125, ("run", "-u", NASTY, "--", "true")),
        (125, ("run", "-w", NASTY, "--", "true")),
        (125, ("run", "-w", f"/{NASTY}", "--", "true")),
        (125, ("run", "-e", NASTY, "--", "true")),
        (125, ("run", "--env-file", NASTY, "--", "true")),
        (125, ("run", "--cidfile", f"/x/{NASTY}", "--", "true")),
        (125, ("run", f"--{NASTY}", "--", "true")),
        (125, ("logs", NASTY)),
        (125, ("kill", "-s", NASTY, "x")),
        (125, ("ps", "--format", NASTY)),
        (125, (NASTY,)),
    ],
)
def test_control_characters_in_an_argument_reach_no_terminal(
    code: int, arguments: tuple[str, ...], cli: Cli
) -> None:
    cli.refused(*arguments, code=code)
