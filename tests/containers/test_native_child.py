"""Machine code and Python set containers up alike, and one helps the other out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from craterun.core import native
from craterun.core import opcodes as op
from tests.containers import helpers
from tests.containers.helpers import Cli, run_python

cli = helpers.cli
pytestmark = pytest.mark.skipif(not native.SUPPORTED, reason="no machine code for this machine")

_LOOK = r"""
id; pwd; hostname | wc -c; umask; ulimit -n; echo "$0 $*"; env | grep -v HOSTNAME | sort
stat -c '%n %F %a %u:%g %t:%T' / /dev /dev/* /dev/pts/* /proc /sys /tmp
for fd in 0 1 2 3 4 5 6 7 8; do
    if [ -e /proc/self/fd/$fd ]; then echo "$fd $(readlink /proc/self/fd/$fd | tr -d '0-9')"; fi
done
grep -v -E 'ctxt|Vm|Rss|Pid|NS|Hugetlb|Threads|Cpus|Mems|SigQ|x86|THP|FDSize' /proc/self/status
cut -d' ' -f5- /proc/self/mountinfo | sed 's/ - / /; s/[0-9a-f]\{12,\}//g'
cat /proc/self/oom_score_adj /etc/hosts /etc/resolv.conf | sed 's/[0-9a-f]\{12\}/ID/'
cat /proc/net/dev | cut -d: -f1; cat /proc/self/cgroup; cat /proc/keys 2>&1 | wc -l
"""

_STARTS = """
import json, sys, trio
from craterun import Spec, Supervisor

def faults(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[8])  # of children that were reaped

async def main():
    async with Supervisor(sys.argv[1]) as supervisor:
        keeper = supervisor._services.link._process.pid
        counts = []
        for _ in range(5):
            container = await supervisor.start(Spec(rootfs=sys.argv[2], command=("true",)))
            await container.wait()
            counts.append(faults(keeper))
        print(json.dumps([after - before for before, after in zip(counts, counts[1:])]))

trio.run(main)
"""


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--user", "alice", "--workdir", "/tmp", "--oom-score-adj", "77"),
        ("--memory", "64m", "--pids", "50", "--env", "A=b=c", "--hostname", "box"),
        ("-i",),
        ("--merge-output",),
    ],
    ids=["plain", "user", "limits", "input", "merged"],
)
def test_a_container_cannot_tell_what_has_set_it_up(
    cli: Cli, rootfs: Path, options: tuple[str, ...]
) -> None:
    command = (
        "run",
        "--attach",
        *options,
        "--rootfs",
        str(rootfs),
        "--",
        "sh",
        "-c",
        _LOOK,
        "0",
        "1",
    )
    seen = [cli(*command, env={op.SWITCH: switch}) for switch in ("0", "1")]
    assert [finished.returncode for finished in seen] == [0, 0], seen
    python, machine = (finished.stdout.decode().splitlines() for finished in seen)
    assert python == machine
    assert len(machine) > 80, "it saw next to nothing"


def test_the_built_in_root_is_the_same_either_way(cli: Cli) -> None:
    script = "find / -xdev -maxdepth 2 | sort; cat /etc/hosts"
    command = ("run", "--attach", "--", "sh", "-c", script)
    seen = [cli(*command, env={op.SWITCH: switch}).stdout for switch in ("0", "1")]
    python, machine = (re.sub(rb"[0-9a-f]{12}", b"ID", text) for text in seen)
    assert python == machine
    assert b"/etc/resolv.conf\n" in machine


@pytest.mark.cgroup_v2
def test_a_start_takes_few_page_faults(
    state_root: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What it is all about, and proof that it is machine code that the other tests have tested.
    few = run_python(_STARTS, state_root, rootfs)
    monkeypatch.setenv(op.SWITCH, "0")
    many = run_python(_STARTS, state_root, rootfs)
    assert isinstance(few, list) and isinstance(many, list)  # noqa: PT018
    assert max(few) * 2 < min(many), (few, many)


@pytest.mark.parametrize("switch", ["0", "1"])
def test_what_fails_is_explained_as_ever(cli: Cli, rootfs: Path, switch: str) -> None:
    (rootfs / "bin/bad").write_bytes(b"\x7fELF nonsense")
    (rootfs / "bin/bad").chmod(0o755)
    (rootfs / "bin/plain").write_text("text")
    (rootfs / "noproc").mkdir()
    base = ("run", "--rootfs", str(rootfs))
    env = {op.SWITCH: switch}
    assert "not found" in cli.refused(*base, "--", "nothing", code=127, env=env)
    assert "cannot execute /bin/bad" in cli.refused(*base, "--", "/bin/bad", code=126, env=env)
    assert "permission denied" in cli.refused(*base, "--", "plain", code=126, env=env)
    assert "workdir" in cli.refused(*base, "--workdir", "/nowhere", "--", "true", env=env)
    assert cli.ids() == set()


def test_a_failure_is_no_reason_to_go_on_with_python(
    state_root: Path, rootfs: Path, tmp_path: Path
) -> None:
    code = _STARTS.replace(
        "        counts = []",
        """        counts = []
        for _ in range(3):
            try:
                await supervisor.start(Spec(rootfs=sys.argv[2], command=("nothing",)))
            except Exception as error:
                assert "not found" in str(error), error
            else:
                raise AssertionError("it was started")""",
    )
    counts = run_python(code, state_root, rootfs)
    assert isinstance(counts, list)
    assert max(counts) < 200, counts


def test_more_at_once_than_there_are_slots(state_root: Path, rootfs: Path) -> None:
    # The 65th is Python's.
    code = """
import json, sys, trio
from craterun import Spec, Supervisor

async def main():
    codes = []
    async with Supervisor(sys.argv[1]) as supervisor:
        async def one(number):
            command = ("sh", "-c", f"exit {number}")
            container = await supervisor.start(Spec(rootfs=sys.argv[2], command=command))
            codes.append((await container.wait()).exit_code)
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, number)
    print(json.dumps(sorted(codes)))

trio.run(main)
"""
    assert run_python(code, state_root, rootfs) == list(range(100))


def test_a_large_environment_takes_python(cli: Cli, rootfs: Path) -> None:
    large = "x" * 100_000
    script = 'echo "${#LARGE}"'
    base = ("run", "--attach", "--rootfs", str(rootfs), "--env", f"LARGE={large}")
    assert cli.ok(*base, "--", "sh", "-c", script).splitlines()[-1] == "100000"


def test_many_different_roots_and_users_run_out_of_nothing(state_root: Path, rootfs: Path) -> None:
    # Each user is a part of its own in the arena.
    code = """
import json, sys, trio
from craterun import Spec, Supervisor

async def main():
    users = []
    async with Supervisor(sys.argv[1]) as supervisor:
        for uid in range(1000, 1230):
            spec = Spec(rootfs=sys.argv[2], command=("sh", "-c", "exit $(($(id -u) % 200))"),
                        user=str(uid))
            container = await supervisor.start(spec)
            users.append((await container.wait()).exit_code == uid % 200)
    print(json.dumps(users))

trio.run(main)
"""
    assert run_python(code, state_root, rootfs) == [True] * 230
