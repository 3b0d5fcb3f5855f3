"""The journal of events as its readers see it: complete, in order, and across processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

from craterun import Event, Spec, Supervisor
from craterun.client import Client
from craterun.client.events import EventFeed
from craterun.core.errors import StateError
from craterun.state import journal
from craterun.state.journal import journal_directory, note, segments
from tests.containers import helpers
from tests.containers.helpers import PATIENCE_SECONDS, SLEEP, Cli
from tests.containers.oom_helpers import Feed
from tests.containers.streams_helpers import wait_readable

cli = helpers.cli
LIFE = ["created", "started", "exited"]


def known(cli: Cli, *options: str) -> list[dict[str, Any]]:
    """``craterun events --json``."""
    return [json.loads(line) for line in cli.ok("events", "--json", *options).splitlines()]


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def test_a_life_from_beginning_to_end(cli: Cli, rootfs: Path) -> None:
    feed = Feed(cli)
    live = cli.detach("--name", "web", "--rootfs", str(rootfs), "--", *SLEEP)
    assert cli("exec", "web", "--", "sh", "-c", "exit 9").returncode == 9
    cli.ok("kill", "--signal", "KILL", "web")
    cli.ok("wait", "web")
    cli.ok("rm", "web")
    told = feed.until("removed")
    assert types(told) == [
        "created", "started", "exec", "exec_exited", "signaled", "exited", "removed",
    ]  # fmt: skip
    assert {(event["id"], event["name"]) for event in told} == {(live.id, "web")}
    created, started, begun, done, signaled, exited, removed = (e["attributes"] for e in told)
    assert created == {"rootfs": str(rootfs), "command": "sleep 1000000"}
    assert started == {"pid": live.pid}
    assert begun["command"] == "sh -c exit 9"
    assert done == {"pid": begun["pid"], "exit_code": 9}
    assert signaled == {"signal": 9}
    assert (exited["exit_code"], exited["signal"]) == (137, 9)
    assert removed == {}
    times = [event["time_ns"] for event in told]
    assert times == sorted(times)
    assert told == known(cli)


def test_a_container_that_removes_itself_says_so(cli: Cli, rootfs: Path) -> None:
    cli.ok("run", "--rm", "--rootfs", str(rootfs), "--", "true")
    assert types(known(cli)) == [*LIFE, "removed"]


def test_new_limits_are_told(cli: Cli, rootfs: Path) -> None:
    live = cli.detach("--memory", "64m", "--rootfs", str(rootfs), "--", *SLEEP)
    cli.ok("update", "--memory", "96m", live.id)
    (updated,) = known(cli, "--filter", "type=updated")
    assert (updated["id"], updated["attributes"]) == (live.id, {"memory": "96m"})
    assert cli.record(live.id)["status"] == "running"


def test_a_start_that_fails_leaves_nothing(cli: Cli, rootfs: Path) -> None:
    cli.refused("run", "--rootfs", str(rootfs), "--", "nope", code=127)
    assert known(cli) == []


def test_the_lines_for_people(cli: Cli, rootfs: Path) -> None:
    cli.ok("run", "--name", "web", "--rootfs", str(rootfs), "--", "sh", "-c", "exit 0")
    created, started, exited = cli.ok("events").splitlines()
    (container_id,) = cli.ids()
    assert f"Z  created     {container_id}  web  rootfs={rootfs} command='sh -c exit 0'" in created
    assert f"Z  started     {container_id}  web  pid=" in started
    assert exited.endswith(" exit_code=0 signal=null oom_kills=0 init_oom_killed=false")


def test_filters_and_times_choose(cli: Cli, rootfs: Path) -> None:
    for code in (0, 3):
        cli("run", "--name", f"n{code}", "--rootfs", str(rootfs), "--", "sh", "-c", f"exit {code}")
    everything = known(cli)
    assert types(everything) == LIFE * 2
    assert known(cli, "--filter", "exit_code=3") == everything[-1:]
    assert known(cli, "--filter", "container=n0", "--filter", "type=exited") == everything[2:3]
    border = everything[3]["time"]
    assert known(cli, "--since", border) == everything[3:]
    assert known(cli, "--until", border) == everything[:3]
    assert known(cli, "--since", "1h", "--until", "0s") == everything
    assert known(cli, "--until", "1h") == []
    assert known(cli, "--since", str(int(time.time()) + 1000)) == []


@pytest.mark.parametrize(
    "options",
    [
        ("--since", "yesterday"), ("--until", ""), ("--filter", "oom"), ("--filter", "type=nope"),
        ("--since", "1m", "--until", "2m"), ("--filter", "=x"), ("--since", "\x1b[2J"),
        ("--folow",), ("web",),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(cli: Cli, options: tuple[str, ...]) -> None:
    cli.refused("events", *options)


def test_there_are_no_events_before_the_first(cli: Cli) -> None:
    assert cli.ok("events") == ""
    assert not cli.state_root.exists()


def test_to_follow_ends_at_a_time_by_signal_or_with_its_reader(cli: Cli, rootfs: Path) -> None:
    soon = cli.start("events", "--follow", "--until", str(time.time() + 0.5))
    gone, interrupted = Feed(cli), Feed(cli)
    cli.ok("run", "--rootfs", str(rootfs), "--", "true")
    gone.until("exited")
    interrupted.until("exited")
    assert soon.wait(PATIENCE_SECONDS) == 0
    assert gone.process.stdout is not None
    gone.process.stdout.close()
    assert gone.process.wait(PATIENCE_SECONDS) == 0
    interrupted.process.send_signal(signal.SIGINT)
    _, complaint = interrupted.process.communicate(timeout=PATIENCE_SECONDS)
    assert (interrupted.process.returncode, complaint) == (130, b"")


def test_without_since_only_what_is_new_is_followed(cli: Cli, rootfs: Path) -> None:
    cli.ok("run", "--name", "old", "--rootfs", str(rootfs), "--", "true")
    follower = cli.start("events", "--follow", "--json")
    # It has begun when it has opened the segment for reading.
    (segment,) = Path(journal_directory(str(cli.state_root))).iterdir()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not _has_open(follower.pid, segment):
        assert time.monotonic() < deadline
    cli.ok("run", "--name", "new", "--rootfs", str(rootfs), "--", "true")
    line = helpers.read_some(follower.stdout.fileno()) if follower.stdout else b""
    assert json.loads(line.splitlines()[0])["name"] == "new"


def _has_open(pid: int, path: Path) -> bool:
    try:
        return any(link.resolve() == path for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def test_a_journal_that_cannot_be_written_harms_no_container(cli: Cli, rootfs: Path) -> None:
    cli.state_root.mkdir()
    (cli.state_root / ".events").write_text("not a directory\n")
    cli.ok("run", "--rm", "--rootfs", str(rootfs), "--", "true")
    assert "Not a directory" in cli.refused("events")
    assert "Not a directory" in cli.refused("events", "--follow")


def test_a_journal_that_is_removed_ends_its_followers(cli: Cli, rootfs: Path) -> None:
    feed = Feed(cli)
    cli.ok("run", "--rootfs", str(rootfs), "--", "true")
    feed.until("exited")
    shutil.rmtree(journal_directory(str(cli.state_root)))
    _, complaint = feed.process.communicate(timeout=PATIENCE_SECONDS)
    assert (feed.process.returncode, complaint.count(b"\n")) == (125, 1)


def test_the_end_of_a_journal_is_noticed_while_its_last_segment_is_open(tmp_path: Path) -> None:
    """Which we keep open, and so the kernel does not tell of the directory's end."""
    root = str(tmp_path)
    with EventFeed(root, follow=True) as feed:
        note(root, Event(time.time_ns(), "created", "0" * 16, None, {}))
        wait_readable(feed.fileno())
        feed.take_news()
        assert [what.type for what in feed.read()] == ["created"]
        (segment,) = Path(journal_directory(root)).iterdir()
        segment.unlink()
        wait_readable(feed.fileno())
        feed.take_news()
        assert feed.read() == []
        os.rmdir(journal_directory(root))
        wait_readable(feed.fileno())
        with pytest.raises(StateError, match="was removed"):
            feed.take_news()


@pytest.mark.slow
async def test_two_hundred_containers_at_once_are_followed_across_a_rotation(
    cli: Cli, rootfs: Path
) -> None:
    """From one supervisor and from many; nothing lost, doubled or out of order."""
    root = str(cli.state_root)
    cli.state_root.mkdir()
    filler = [Event(time.time_ns(), "created", "0" * 16, None, {"n": n}) for n in range(500)]
    while not (sizes := _sizes(root)) or sizes[-1] < journal.SEGMENT_BYTES - 50_000:
        note(root, *filler)
    assert segments(journal_directory(root)) == [1]
    feed = Feed(cli)
    spec = Spec(rootfs=str(rootfs), command=("true",), auto_remove=True)

    async def many(supervisor: Supervisor) -> None:
        for _ in range(20):
            container = await supervisor.start(spec)
            await container.wait()

    def by_command() -> None:
        with ThreadPoolExecutor(4) as threads:
            for _ in threads.map(lambda _: cli.ok("run", "--rm", "--", "true"), range(40)):
                pass

    async with Supervisor(root) as supervisor, trio.open_nursery() as tasks:
        tasks.start_soon(trio.to_thread.run_sync, by_command)
        for _ in range(8):
            tasks.start_soon(many, supervisor)
    note(root, Event(time.time_ns(), "paused", "f" * 16, None, {}))  # the end of the test

    lives: dict[str, list[str]] = {}
    for event in feed.until("paused")[:-1]:
        if event["id"] != "0" * 16:
            lives.setdefault(event["id"], []).append(event["type"])
    assert len(lives) == 200
    assert set(map(tuple, lives.values())) == {(*LIFE, "removed")}
    assert len(segments(journal_directory(root))) > 1
    assert cli.ids() == set()


def _sizes(root: str) -> list[int]:
    directory = Path(journal_directory(root))
    return [(directory / str(number)).stat().st_size for number in segments(str(directory))]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_client_iterates(state_root: Path, rootfs: Path, backend: str) -> None:
    async def main() -> None:
        client = Client(state_root)
        async with client.events(["container=web"]) as events:
            container = await client.run(Spec(command=("true",), rootfs=str(rootfs), name="web"))
            await client.run(Spec(command=("true",), rootfs=str(rootfs), name="other"))
            seen = [await anext(events) for _ in LIFE]
            with anyio.move_on_after(0.01) as scope:
                await anext(events)
            assert scope.cancelled_caught
            await client.wait(container)
            await client.remove(container)
            seen.append(await anext(events))
        assert [event.type for event in seen] == [*LIFE, "removed"]
        assert {event.id for event in seen} == {container}
        async with client.events(follow=False, since=seen[-1].time) as events:
            assert [event.type async for event in events if event.id == container] == ["removed"]
        async with client.events(until=time.time_ns()) as events:
            assert [event async for event in events] == []
        await client.remove("other", force=True)

    anyio.run(main, backend=backend)
