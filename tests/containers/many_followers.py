"""Many short containers, each with a `logs --follow` that begins before, amid or after its end.

A program of its own, for speed: followers are forked from it, with everything imported. Prints one
JSON document: what went wrong, and how many followers saw what.

    python -m tests.containers.many_followers STATE_ROOT ROOTFS COUNT
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator

from craterun.core.units import is_id

OUT, ERR = b"out 1\nout 2\nlast", b"err\n"
SCRIPT = "echo out 1; echo err >&2; echo out 2; printf last"
GATED = f"read x </go; {SCRIPT}"


def supervise(root: str, rootfs: str, count: int, ids: int) -> None:
    """Run the containers, 8 at a time, writing their ids to ``ids``; r: removed at the end."""
    import trio

    from craterun import Spec, Supervisor

    async def run() -> None:
        limit = trio.CapacityLimiter(8)

        async def one(supervisor: Supervisor, number: int) -> None:
            script = GATED if number % 2 else SCRIPT
            spec = Spec(rootfs=rootfs, command=("sh", "-c", script), auto_remove=number % 4 < 2)
            async with limit:
                container = await supervisor.start(spec)
                os.write(ids, f"{container.id} {number}\n".encode())
                await container.wait()

        async with Supervisor(root) as supervisor, trio.open_nursery() as tasks:
            for number in range(count):
                tasks.start_soon(one, supervisor, number)

    trio.run(run)


def follow(root: str, container_id: str) -> tuple[int, int]:
    """Fork a follower. Returns its pid, and a descriptor of a file with its output."""
    from craterun.cli.app import run_command_line

    file, _ = tempfile.mkstemp(dir=root)
    errors = os.open(os.readlink(f"/proc/self/fd/{file}") + ".err", os.O_RDWR | os.O_CREAT)
    pid = os.fork()
    if pid == 0:
        os.dup2(file, 1)
        os.dup2(errors, 2)
        os._exit(run_command_line(["logs", "-f", container_id]))
    os.close(errors)
    return pid, file


def lines_of(fd: int) -> Iterator[str]:
    with open(fd) as file:
        yield from file


def main(root: str, rootfs: str, count: int) -> None:
    """Everything."""
    reading, writing = os.pipe()
    gate = os.path.join(rootfs, "go")
    os.mkfifo(gate)
    opener = os.open(gate, os.O_RDWR)
    supervisor = os.fork()
    if supervisor == 0:
        os.close(reading)
        supervise(root, rootfs, count, writing)
        os._exit(0)
    os.close(writing)
    import craterun.cli.logs  # noqa: F401

    os.environ["CRATERUN_ROOT"] = root
    scratch = tempfile.mkdtemp(dir=os.path.dirname(root))
    chance = random.Random(count)
    running: dict[int, tuple[str, int, int]] = {}
    seen: Counter[str] = Counter()
    problems: list[str] = []

    def reap(pid: int, status: int) -> None:
        container_id, number, file = running.pop(pid)
        name = os.readlink(f"/proc/self/fd/{file}")
        with open(file, "rb") as out, open(f"{name}.err", "rb") as err:
            out.seek(0)
            told = (os.waitstatus_to_exitcode(status), out.read(), err.read())
        os.unlink(name)
        os.unlink(f"{name}.err")
        removes_itself = number % 4 < 2
        if told == (0, OUT, ERR):
            seen["whole"] += 1
        elif removes_itself and told[:2] == (125, b"") and b"Traceback" not in told[2]:
            seen["removed before"] += 1
        else:
            problems.append(f"{container_id} {number}: {told}")

    for line in lines_of(reading):
        container_id, number = line.split()
        for _ in range(chance.randint(1, 2)):
            pid, file = follow(scratch, container_id)
            running[pid] = (container_id, int(number), file)
        if int(number) % 2:
            os.write(opener, b"\n")
        while len(running) > 12:
            pid, status = os.waitpid(-1, 0)
            if pid in running:
                reap(pid, status)
            else:
                supervisor = 0
    while running or supervisor:
        pid, status = os.waitpid(-1, 0)
        if pid in running:
            reap(pid, status)
        else:
            supervisor = 0
    left = [name for name in os.listdir(root) if is_id(name) or name == ".trash"]
    if len(left) != count - (count + 2) // 4 - (count + 3) // 4:
        problems.append(f"{len(left)} folders are left of {count}")
    print(json.dumps({"problems": problems, "seen": seen}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
