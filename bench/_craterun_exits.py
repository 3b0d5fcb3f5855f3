"""Let containers end at a steady rate, and note when whoever waits for them is told.

    python bench/_craterun_exits.py ROOTFS STATE_ROOT COUNT RATE

Starts COUNT containers, then lets RATE of them end in each second.  The kernel's time of each exit
is that of its process event connector (CONFIG_PROC_EVENTS), which speaks right after the parent
and those who poll the pidfd were notified; its clock is CLOCK_MONOTONIC, as ours is.

Prints, for each container, a line of JSON: the microseconds from the kernel's exit until a task in
`Container.wait` went on, and the phases in the container's record from the exit on.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time

import trio

from craterun import Container, Spec, Supervisor
from craterun.bench.leave import cancelled_on_signals

_NETLINK_CONNECTOR = 11
_NLMSG_DONE = 3
_LISTEN, _IGNORE = 1, 2
_EXIT = 0x80000000
_SO_RCVBUFFORCE = 33
_HEADERS = 16 + 20
"""Of a netlink message, and of a connector message in it."""


class ExitTimes:
    """The kernel's times of exits: CLOCK_MONOTONIC, nanoseconds, by pid."""

    def __init__(self) -> None:
        """Listen, until closed."""
        self.times: dict[int, int] = {}
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_CONNECTOR)
        # Everything on this machine that forks, executes or exits comes along.
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind((0, 1))
        self._say(_LISTEN)

    def _say(self, what: int) -> None:
        body = struct.pack("=IIIIHHI", 1, 1, 0, 0, 4, 0, what)
        head = struct.pack("=IHHII", 16 + len(body), _NLMSG_DONE, 0, 0, os.getpid())
        self._socket.send(head + body)

    def close(self) -> None:
        """Take in what is there, and listen no more."""
        self._say(_IGNORE)
        self._socket.setblocking(False)
        while True:
            try:
                data = self._socket.recv(4096)
            except BlockingIOError:
                break
            what, _, when, _, thread_group = struct.unpack_from("=IIQII", data, _HEADERS)
            if what == _EXIT:
                self.times[thread_group] = when
        self._socket.close()


async def measure(rootfs: str, state: str, count: int, rate: float) -> list[dict[str, object]]:
    """Start all, let them end one by one, and give what each of them has seen."""
    told: dict[int, int] = {}
    containers: list[Container] = []
    spec = Spec(rootfs=rootfs, command=("/bin/cat",), interactive=True)

    async def wait(container: Container, pid: int) -> None:
        await container.wait()
        told[pid] = time.monotonic_ns()

    async with cancelled_on_signals(), Supervisor(state) as supervisor:
        try:
            async with trio.open_nursery() as waiters:
                for _ in range(count):
                    container = await supervisor.start(spec)
                    containers.append(container)
                    assert container.record.pid is not None
                    waiters.start_soon(wait, container, container.record.pid)
                await trio.sleep(1)  # what starting has left behind is over
                exits = ExitTimes()
                begin = trio.current_time()
                for number, container in enumerate(containers):
                    await trio.sleep_until(begin + number / rate)
                    container.stdin.close()  # end-of-file: cat exits with 0
        except BaseException:
            for container in containers:
                container.kill()
            raise
    exits.close()
    lines: list[dict[str, object]] = []
    for container in containers:
        pid, phases = container.record.pid, container.record.phases_us
        assert pid is not None
        assert phases is not None
        if container.record.exit_code != 0:
            raise SystemExit(f"{container.id} ended with {container.status}")
        if pid not in exits.times:
            raise SystemExit("the kernel has dropped events: too much else goes on here")
        line: dict[str, object] = {
            "us": (told[pid] - exits.times[pid]) / 1000,
            "exit_notice": phases.exit_notice,
        }
        lines.append(line | {"drain": phases.drain, "conclude": phases.conclude})
    return lines


def main() -> None:
    """Read the arguments, measure, print."""
    rootfs, state, count, rate = sys.argv[1:]
    for line in trio.run(measure, rootfs, state, int(count), float(rate)):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
