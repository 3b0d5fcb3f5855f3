"""Send a mixture of commands to a server, and check what becomes of each.

    python bench/_craterun_soak_serve.py SOCKET STATE_ROOT ROOTFS HERE COUNT CONCURRENCY SEED

This is the clients' side of `bench/soak.py --through serve`: one process that forks a client for
each command (bench/_craterun_clients.py).  Of every container it is checked what its clients were
told, its record and its logs; then it is removed.  HERE is an empty directory for their files.
Prints lines for people, and "MEASURE what" when nothing runs, after which it waits for a line; the
last line is a JSON document: how many there were of each kind, and what was wrong.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable

from bench._craterun_clients import Client, Crowd, Script, Wait

WARM_UP = 100
PROGRESS = 1000
MEMORY = "8m"
SLEEP = ("/bin/sleep", "1000000")
WHO = "read id </proc/sys/kernel/hostname; echo $id; "
"""Of a shell: say the first digits of the container's id."""
_REMOVED_AT_ONCE = 16
_SHORT = 12


class Soak:
    """All clients of one server, and what has been found out."""

    def __init__(self, crowd: Crowd, state: str, rootfs: str, here: str, seed: int) -> None:
        """Begin with nothing run."""
        self.crowd = crowd
        self.state = state
        self.run = ("run", "--rootfs", rootfs)
        self.here = here
        self.random = random.Random(seed)
        self.kinds: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.ids = bytearray()
        self.to_remove: list[str] = []
        self.files = 0

    # --- tools ------------------------------------------------------------------------------------

    def attached(
        self, *options: str, command: tuple[str, ...], data: bytes | None = None
    ) -> Client:
        """A container whose output its client gets."""
        return self.crowd.start(*self.run, "--attach", *options, "--", *command, data=data)

    def cidfile(self) -> str:
        """A new name, relative to where clients are."""
        self.files += 1
        return f"cid-{self.files}"

    def read_cidfile(self, name: str) -> str:
        """What is in it; it is removed."""
        path = os.path.join(self.here, name)
        with open(path) as file:
            container_id = file.read()
        os.unlink(path)
        return container_id

    def expect(self, client: Client, code: int, stdout: bytes = b"", stderr: bytes = b"") -> None:
        """What a client that has ended must have got; of stderr, a part of it."""
        found = (client.code, bytes(client.stdout), bytes(client.stderr))
        whole = stderr in found[2] if stderr else not found[2]
        if found[:2] != (code, stdout) or not whole:
            self.complain(client, f"{_short(found)} and not {_short((code, stdout, stderr))}")

    def complain(self, client: Client, text: str) -> None:
        """Something is wrong."""
        self.wrong.append(f"{' '.join(client.arguments)}: {text}")

    def look(
        self, container_id: str, client: Client, stdout: bytes = b"", stderr: bytes = b"",
        **record: object,
    ) -> None:  # fmt: skip
        """What must be on record and in the logs of a container that has ended; remove it later."""
        try:
            self.ids += bytes.fromhex(container_id)
            folder = os.path.join(self.state, container_id)
            with open(os.path.join(folder, "metadata.json"), "rb") as file:
                found = json.load(file)
            for name, wanted in (("stdout", stdout), ("stderr", stderr)):
                with open(os.path.join(folder, f"{name}.log"), "rb") as file:
                    found[name] = file.read()
                record[name] = wanted
        except (OSError, ValueError) as error:
            self.complain(client, f"{container_id!r} cannot be looked at: {error}")
            return
        record["status"] = "stopped"
        for name, value in record.items():
            if found.get(name) != value:
                text = f"{container_id}: {name} is {_short(found.get(name))}, not {_short(value)}"
                self.complain(client, text)
        self.to_remove.append(container_id)

    def whole_id(self, digits: bytes) -> str:
        """The id of a container that has said `WHO`."""
        short = digits.decode().strip()
        names = os.listdir(self.state)
        return next((name for name in names if short and name.startswith(short)), short)

    # --- the mixture ------------------------------------------------------------------------------

    def ok(self) -> Script:
        """Says something on both streams, and ends well."""
        client = self.attached(command=("sh", "-c", WHO + "echo fine >&2"))
        yield client.end()
        said = bytes(client.stdout)
        self.expect(client, 0, said, b"fine\n")
        self.look(self.whole_id(said), client, said, b"fine\n", exit_code=0)

    def unattached(self) -> Script:
        """The client gets the id, the log the output."""
        text = f"number {self.random.random()}"
        client = self.crowd.start(*self.run, "--", "echo", text)
        yield client.end()
        container_id = client.stdout.decode().strip()
        self.expect(client, 0, f"{container_id}\n".encode())
        self.look(container_id, client, f"{text}\n".encode(), exit_code=0)

    def failing(self) -> Script:
        """Ends with a code of its own."""
        code, cidfile = self.random.randrange(1, 125), self.cidfile()
        script = f"echo sorry >&2; exit {code}"
        client = self.attached("--cidfile", cidfile, command=("sh", "-c", script))
        yield client.end()
        self.expect(client, code, b"", b"sorry\n")
        self.look(self.read_cidfile(cidfile), client, b"", b"sorry\n", exit_code=code)

    def not_found(self) -> Script:
        """Cannot be started at all, and leaves no file."""
        cidfile = self.cidfile()
        client = self.attached("--cidfile", cidfile, command=("no-such-command",))
        yield client.end()
        self.expect(client, 127, b"", b"not found")
        if os.path.exists(os.path.join(self.here, cidfile)):
            self.complain(client, "its --cidfile is there")

    def out_of_memory(self) -> Script:
        """The first process is killed for want of memory."""
        cidfile = self.cidfile()
        options = ("--cidfile", cidfile, "--memory", MEMORY)
        client = self.attached(*options, command=("tail", "/dev/zero"))
        yield client.end()
        self.expect(client, 137, b"", b"1 OOM kill; its first process was killed")
        container_id = self.read_cidfile(cidfile)
        self.look(container_id, client, exit_code=137, oom_kills=1, init_oom_killed=True)

    def killed(self) -> Script:
        """By `craterun kill`; its client stays until its end."""
        client = self.crowd.start(*self.run, "--", *SLEEP)
        yield client.says(b"\n")
        container_id = client.stdout.decode().strip()
        killer = self.crowd.start("kill", container_id)
        yield killer.end()
        self.expect(killer, 0, f"{container_id}\n".encode())
        yield client.end()
        self.expect(client, 137, f"{container_id}\n".encode())
        self.look(container_id, client, exit_code=137, signal=9, init_oom_killed=False)

    def chatty(self) -> Script:
        """Much on both streams, all of which comes and is in `craterun logs`."""
        out, err = (self.random.randrange(1, 300_000) for _ in range(2))
        script = f"head -c {out} /dev/zero; head -c {err} /dev/zero >&2"
        cidfile = self.cidfile()
        client = self.attached("--cidfile", cidfile, command=("sh", "-c", script))
        yield client.end()
        self.expect_exactly(client, bytes(out), bytes(err))
        container_id = self.read_cidfile(cidfile)
        reader = self.crowd.start("logs", container_id)
        yield reader.end()
        self.expect_exactly(reader, bytes(out), bytes(err))
        self.look(container_id, client, bytes(out), bytes(err), exit_code=0)

    def expect_exactly(self, client: Client, stdout: bytes, stderr: bytes) -> None:
        """Every byte of both streams, and no failure."""
        self.expect(client, 0, stdout, stderr)
        if len(client.stderr) != len(stderr):
            self.complain(client, f"{len(client.stderr)} bytes on stderr, not {len(stderr)}")

    def too_long(self) -> Script:
        """Runs into its timeout, deaf to the signal that asks it to end."""
        cidfile = self.cidfile()
        options = ("--cidfile", cidfile, "--timeout", "0.1", "--stop-timeout", "0.05")
        client = self.attached(*options, command=SLEEP)
        yield client.end()
        self.expect(client, 124, b"", b"(--timeout)")
        self.look(self.read_cidfile(cidfile), client, exit_code=137, timed_out=True)

    def with_exec(self) -> Script:
        """In the background; gets a further command; its end is waited for."""
        client = self.crowd.start(*self.run, "--detach", "--", *SLEEP)
        yield client.end()
        container_id = client.stdout.decode().strip()
        self.expect(client, 0, f"{container_id}\n".encode())
        code = self.random.randrange(125)
        script = f"echo from exec; echo error >&2; exit {code}"
        guest = self.crowd.start("exec", container_id, "--", "sh", "-c", script)
        waiter = self.crowd.start("wait", container_id)
        yield guest.end()
        self.expect(guest, code, b"from exec\n", b"error\n")
        killer = self.crowd.start("kill", container_id)
        yield killer.end()
        self.expect(killer, 0, f"{container_id}\n".encode())
        yield waiter.end()
        self.expect(waiter, 0, b"137\n")
        self.look(container_id, client, exit_code=137)

    def removed(self) -> Script:
        """Nothing is left when its client ends."""
        client = self.attached("--rm", command=("sh", "-c", WHO))
        yield client.end()
        self.expect(client, 0, bytes(client.stdout))
        short = client.stdout.decode().strip()
        if len(short) != _SHORT or self.whole_id(bytes(client.stdout)) != short:
            self.complain(client, f"{short!r} is there")

    def client_killed(self) -> Script:
        """The client is killed; its container goes on."""
        client = self.attached(command=("sh", "-c", WHO + "exec sleep 1000000"))
        yield client.says(b"\n")
        said = bytes(client.stdout)
        client.send_signal(signal.SIGKILL)
        yield client.end()
        self.expect(client, 137, said)
        container_id = self.whole_id(said)
        killer = self.crowd.start("kill", container_id)
        yield killer.end()
        self.expect(killer, 0, f"{container_id}\n".encode())
        waiter = self.crowd.start("wait", container_id)
        yield waiter.end()
        self.expect(waiter, 0, b"137\n")
        self.look(container_id, client, said, exit_code=137)

    def client_killed_somewhere(self) -> Script:
        """At any moment, perhaps before there is a container: in the end, there is none."""
        client = self.attached("--rm", "--interactive", command=("cat",), data=b"input\n")
        yield Wait("moment", None, self.random.random() * 0.15)
        client.send_signal(signal.SIGKILL)
        yield client.end()
        if client.code not in (0, 137) or client.stderr:
            self.complain(client, f"{client.code}, {_short(bytes(client.stderr))}")

    def with_input(self) -> Script:
        """What goes in comes out."""
        data = self.random.randbytes(self.random.randrange(200_000))
        cidfile = self.cidfile()
        options = ("--interactive", "--cidfile", cidfile)
        client = self.attached(*options, command=("cat",), data=data)
        yield client.end()
        self.expect(client, 0, data)
        self.look(self.read_cidfile(cidfile), client, data, exit_code=0)

    def signalled(self) -> Script:
        """A signal that the client gets is its container's."""
        script = f"trap 'exit 9' TERM; {WHO} while :; do sleep 0.05; done"
        client = self.attached(command=("sh", "-c", script))
        yield client.says(b"\n")
        client.send_signal(signal.SIGTERM)
        yield client.end()
        said = bytes(client.stdout)
        self.expect(client, 9, said)
        self.look(self.whole_id(said), client, said, exit_code=9)

    def followed(self) -> Script:
        """Another client reads its log until its end."""
        script = "echo one; read wait; echo two"
        cidfile = self.cidfile()
        options = ("--interactive", "--cidfile", cidfile)
        client = self.attached(*options, command=("sh", "-c", script), data=b"\n")
        yield client.says(b"one\n")
        container_id = self.read_cidfile(cidfile)
        reader = self.crowd.start("logs", "--follow", container_id)
        yield reader.end()
        self.expect(reader, 0, b"one\ntwo\n")
        yield client.end()
        self.expect(client, 0, b"one\ntwo\n")
        self.look(container_id, client, b"one\ntwo\n", exit_code=0)

    def removal(self) -> Script:
        """`craterun rm` of those that were kept."""
        ids, self.to_remove = self.to_remove, []
        client = self.crowd.start("rm", *ids)
        yield client.end()
        self.expect(client, 0, "".join(f"{name}\n" for name in ids).encode())
        left = [name for name in ids if os.path.exists(os.path.join(self.state, name))]
        if left:
            self.complain(client, f"{left} are still there")

    # --- all of them ------------------------------------------------------------------------------

    def pick(self) -> Callable[[], Script]:
        """A kind, at random."""
        kinds: dict[Callable[[], Script], int] = {
            self.ok: 25, self.unattached: 14, self.failing: 12, self.not_found: 3,
            self.out_of_memory: 5, self.killed: 7, self.chatty: 7, self.too_long: 4,
            self.with_exec: 5, self.removed: 6, self.client_killed: 3,
            self.client_killed_somewhere: 3, self.with_input: 3, self.signalled: 3,
            self.followed: 2,
        }  # fmt: skip
        return self.random.choices(list(kinds), list(kinds.values()))[0]

    def many(self, count: int, concurrency: int, progress: Callable[[], None]) -> None:
        """So many, so many of them at a time; all removed at the end."""
        left = count

        def next_script() -> Script | None:
            nonlocal left
            if len(self.to_remove) >= _REMOVED_AT_ONCE or (not left and self.to_remove):
                return self.removal()
            if not left:
                return None
            left -= 1
            kind = self.pick()
            self.kinds[kind.__name__] += 1
            progress()
            return kind()

        self.crowd.run(next_script, concurrency, self.wrong)
        if self.to_remove:
            self.crowd.run(iter([self.removal(), None]).__next__, 1, self.wrong)


def _short(what: object) -> str:
    text = repr(what)
    return text if len(text) < 200 else f"{text[:200]}…"


def measure(what: str) -> None:
    """Let the other side look at the server, which has nothing to do now."""
    print(f"MEASURE {what}", flush=True)
    sys.stdin.readline()


def main() -> None:
    """Read the arguments, run, print."""
    socket, state, rootfs, here, count_text, concurrency_text, seed = sys.argv[1:]
    count, concurrency = int(count_text), int(concurrency_text)
    crowd = Crowd(["--socket", socket, "--root", state], here)
    soak = Soak(crowd, state, rootfs, here, int(seed))
    soak.many(min(WARM_UP, count), concurrency, lambda: None)
    measure("before")
    begin, begun = time.monotonic(), 0

    def progress() -> None:
        nonlocal begun
        begun += 1
        if begun % PROGRESS == 0:
            seconds = time.monotonic() - begin
            wrong = f", {len(soak.wrong)} wrong" if soak.wrong else ""
            print(f"{begun} in {seconds:.0f} s, {begun / seconds:.0f}/s{wrong}", flush=True)

    soak.many(count // 2, concurrency, progress)
    measure("halfway")
    soak.many(count - count // 2, concurrency, progress)
    seconds = time.monotonic() - begin
    measure("after")
    soak.wrong += [f"not served: {line}" for line in crowd.unserved()]
    report = {
        "seconds": seconds, "kinds": soak.kinds, "wrong": soak.wrong,
        "ids": soak.ids.hex(" ", 8).split(),
    }  # fmt: skip
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
