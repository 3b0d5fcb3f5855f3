"""Machine code that takes a chunk from a pipe to a log and to a reader, and never two at once."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from craterun.core import native
from craterun.core import opcodes as op
from craterun.core.logoptions import MIN_MAX_BYTES, LogOptions
from craterun.linux import memory
from craterun.linux import relay as module
from craterun.linux.fd import Fd
from craterun.linux.relay import STOPPED, Relay, open_relay
from craterun.state.logindex import FILES, INDEX, numbered
from craterun.state.logs import LogWriter, Stream, read_index
from tests.threads import again_and_again
from tests.unit.assembled import assembled
from tests.unit.log_builders import folder

pytestmark = pytest.mark.skipif(not native.SUPPORTED, reason="no machine code for this machine")
SOURCE = Path(module.__file__).with_name("relay_x86_64.s")
ROOM = 1 << 40
SIZE = 4096


class Bench:
    """A relay with its pipe, a log, and a pipe to a reader; nothing of them blocks."""

    def __init__(self, log: Path) -> None:
        self.path = log
        self.pipe, self.inlet = (Fd(end) for end in os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        self.outlet, self.reader = (Fd(end) for end in os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        self.stop = Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self.log = Fd(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC))
        self.buffer = memoryview(bytearray(SIZE))
        relay = open_relay(self.pipe.fileno(), self.stop.fileno(), self.buffer)
        assert relay is not None
        self.relay = relay

    def write(self, data: bytes) -> None:
        assert os.write(self.inlet.fileno(), data) == len(data)

    def passed(self) -> bytes:
        """What the reader has got."""
        try:
            return os.read(self.outlet.fileno(), 1 << 20)
        except BlockingIOError:
            return b""

    def logged(self) -> bytes:
        return self.path.read_bytes()

    def arm(self, room: int = ROOM, reader: int | None = None) -> None:
        reader = self.reader.fileno() if reader is None else reader
        self.relay.arm(self.log.fileno(), room, reader)

    def close(self) -> None:
        for end in (self.pipe, self.inlet, self.outlet, self.reader, self.stop, self.log):
            end.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with closing(Bench(tmp_path / "log")) as made:
        yield made


def test_the_bytes_are_what_the_source_says(tmp_path: Path) -> None:
    code = assembled(SOURCE, tmp_path)
    assert code == module._CODE
    halt = bytes.fromhex("b801000000 31c9 f00fb10f c3")  # the whole of it
    assert code[module._HALT :] == halt


def test_the_source_has_the_same_layout() -> None:
    words = [line.split() for line in SOURCE.read_text().splitlines() if ".set" in line]
    said = {word[1].rstrip(","): int(word[2]) for word in words}
    fields = module._Fields
    names = ("state", "yield_below", "buffer", "size", "room", "log", "reader", "logged", "passed")
    for name in names:
        assert said[name.upper()] == getattr(fields, name).offset
    assert said["POLLED"] == fields.pipe.offset
    assert said["STOP_EVENTS"] == fields.stop_ready.offset
    assert (said["ARMED"], said["TOOK"]) == (module._ARMED, module._TOOK)
    assert said["ECANCELED"] == -STOPPED


def test_a_chunk_goes_to_the_log_and_to_the_reader(bench: Bench) -> None:
    for number in range(3):
        bench.arm()
        bench.write(b"chunk %d" % number)
        assert bench.relay.wait() == 7
        assert (bench.relay.took, bench.relay.logged, bench.relay.passed) == (True, 7, 7)
        assert bytes(bench.buffer[:7]) == b"chunk %d" % number
        bench.relay.finish()
        assert bench.passed() == b"chunk %d" % number
    assert bench.logged() == b"chunk 0chunk 1chunk 2"


def test_it_waits_for_what_comes_later(bench: Bench) -> None:
    bench.arm()
    later = threading.Timer(0.05, bench.write, (b"late",))
    later.start()
    assert bench.relay.wait() == 4
    bench.relay.finish()
    later.join()
    assert (bench.logged(), bench.passed()) == (b"late", b"late")


def test_without_a_reader_it_only_logs(bench: Bench) -> None:
    bench.arm(reader=-1)
    bench.write(b"x")
    assert (bench.relay.wait(), bench.relay.logged, bench.relay.passed) == (1, 1, 0)
    bench.relay.finish()
    assert (bench.logged(), bench.passed()) == (b"x", b"")


@pytest.mark.parametrize("how", ["halted", "no room", "never armed", "finished"])
def test_without_leave_it_only_reads(bench: Bench, how: str) -> None:
    if how != "never armed":
        bench.arm(room=4 if how == "no room" else ROOM)
    if how == "halted":
        assert bench.relay.halt()
    if how == "finished":
        bench.relay.finish()
    bench.write(b"five!")
    assert bench.relay.wait() == 5
    assert bytes(bench.buffer[:5]) == b"five!"
    assert not bench.relay.took
    assert (bench.logged(), bench.passed()) == (b"", b"")


def test_a_reader_that_takes_no_more_holds_up_nobody(bench: Bench) -> None:
    full = fcntl.fcntl(bench.reader.fileno(), fcntl.F_GETPIPE_SZ)
    assert os.write(bench.reader.fileno(), bytes(full)) == full
    bench.arm()
    bench.write(b"x")
    assert bench.relay.wait() == 1
    assert (bench.relay.logged, bench.relay.passed) == (1, -errno.EAGAIN)
    assert bench.logged() == b"x"


def test_a_reader_that_has_left_is_told_of_as_an_error(bench: Bench) -> None:
    bench.outlet.close()
    bench.arm()
    bench.write(b"x")
    assert bench.relay.wait() == 1
    assert (bench.relay.logged, bench.relay.passed) == (1, -errno.EPIPE)


def test_what_is_not_in_the_log_is_not_passed_on(bench: Bench) -> None:
    with closing(Fd(os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC))) as full:
        bench.relay.arm(full.fileno(), ROOM, bench.reader.fileno())
        bench.write(b"x")
        assert bench.relay.wait() == 1
        assert (bench.relay.logged, bench.relay.passed) == (-errno.ENOSPC, 0)
        assert bench.relay.took
    assert bench.passed() == b""


def test_the_end_and_errors_of_the_pipe_are_told(bench: Bench) -> None:
    bench.arm()
    bench.inlet.close()
    assert bench.relay.wait() == 0
    assert not bench.relay.took
    bench.relay.finish()
    with closing(Fd(os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))) as folder:
        wrong = open_relay(folder.fileno(), bench.stop.fileno(), bench.buffer)
        assert wrong is not None
        assert wrong.wait() == -errno.EISDIR


def test_it_can_be_told_to_stop_even_if_there_is_output(bench: Bench) -> None:
    bench.arm()
    bench.write(b"x")
    os.eventfd_write(bench.stop.fileno(), 1)
    assert bench.relay.wait() == STOPPED
    assert not bench.relay.took
    bench.relay.finish()
    assert bench.logged() == b""


def test_who_comes_too_late_waits_until_it_has_finished(bench: Bench) -> None:
    order = []
    bench.arm()
    bench.write(b"x")
    bench.relay.wait()
    assert not bench.relay.halt()

    def late() -> None:
        bench.relay.wait_idle()
        order.append("late")

    waiting = threading.Thread(target=late)
    waiting.start()
    waiting.join(0.05)
    order.append("finished")
    bench.relay.finish()
    waiting.join()
    assert order == ["finished", "late"]
    assert bench.relay.halt(), "it is idle, so there is nothing to wait for"


@pytest.mark.parametrize("why", ["switched off", "forbidden"])
def test_there_may_be_none(bench: Bench, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    def refuse(code: bytes) -> tuple[int, int]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "mprotect")

    if why == "switched off":
        monkeypatch.setenv(op.SWITCH, "0")
    else:
        monkeypatch.setattr(memory, "executable", refuse)
    module._code.cache_clear()
    try:
        assert open_relay(bench.pipe.fileno(), bench.stop.fileno(), bench.buffer) is None
    finally:
        module._code.cache_clear()


# --- with a log's writer --------------------------------------------------------------------------


class Feeding:
    """Two streams of a log, each through a relay of its own in a thread of its own."""

    def __init__(self, writer: LogWriter) -> None:
        self.writer = writer
        self.relayed = 0

    def move(self, stream: Stream, pipe: Fd, stop: Fd) -> None:
        """Until the end of the pipe."""
        buffer = memoryview(bytearray(1 << 16))
        relay = open_relay(pipe.fileno(), stop.fileno(), buffer)
        assert relay is not None
        while (size := self._chunk(stream, relay, buffer)) > 0:
            assert size <= len(buffer)
        assert size == 0
        self.writer.dismiss(relay)

    def _chunk(self, stream: Stream, relay: Relay, buffer: memoryview) -> int:
        armed = self.writer.arm(relay, stream, lambda _: -1, 0)
        try:
            size = relay.wait()
            if took := relay.took:
                self.writer.relayed(relay, stream, buffer[:size], None)
        finally:
            if armed:
                relay.finish()
        if size > 0 and not took:
            self.writer.append(stream, buffer[:size], None)
        self.relayed += took
        return size


@contextmanager
def disturbed(writer: LogWriter) -> Iterator[None]:
    """Somebody wants the log to himself again and again."""
    chance = random.Random(7)

    def disturb() -> None:
        writer.halt()
        os.close(writer.locate(Stream.STDOUT, 0)[0])

    with again_and_again(disturb, lambda: chance.choice([0, 0, 0.002])):
        yield


def segments(directory: Path, name: str) -> list[Path]:
    """A file of each segment, in their order."""
    finished = [directory / numbered(name, serial) for serial in range(1, 1000)]
    return [path for path in (*finished, directory / name) if path.exists()]


@pytest.mark.parametrize("most", [0, MIN_MAX_BYTES])
def test_two_relays_and_others_make_one_whole_log(most: int) -> None:
    """Rotation by one stream is safe from the other's relay; every byte is there once."""
    chance = random.Random(most)
    sent = {stream: bytearray() for stream in Stream}
    with folder() as (path, directory):
        writer = LogWriter(directory, LogOptions(max_bytes=most, max_files=1000))
        for stream in Stream:
            writer.append(stream, memoryview(b"first\n"), None)
            sent[stream] += b"first\n"
        feeding = Feeding(writer)
        with closing(Fd(os.eventfd(0))) as stop, disturbed(writer):
            pipes = {stream: tuple(map(Fd, os.pipe2(os.O_CLOEXEC))) for stream in Stream}
            threads = []
            for stream, (outlet, _) in pipes.items():
                os.set_blocking(outlet.fileno(), False)
                arguments = (stream, outlet, stop)
                threads.append(threading.Thread(target=feeding.move, args=arguments))
                threads[-1].start()
            for number in range(3000):
                stream = chance.choice(list(Stream))
                data = b"%d of %d\n" % (number, stream) * chance.choice([1, 1, 1, 40])
                sent[stream] += data
                os.write(pipes[stream][1].fileno(), data)
                time.sleep(chance.choice([0, 0.0002]))  # lets the others be where they may be
            for _, inlet in pipes.values():
                inlet.close()
            for thread in threads:
                thread.join()
            for outlet, _ in pipes.values():
                outlet.close()
        writer.finish()
        assert writer.error is None
        assert feeding.relayed > 100, "they had their part in it"
        for stream, name in FILES.items():
            assert b"".join(p.read_bytes() for p in segments(path, name)) == sent[stream]
            assert writer.sizes[stream] == len(sent[stream])
        indexed = dict.fromkeys(Stream, 0)
        for index in segments(path, INDEX):
            assert not most or index.stat().st_size <= most
            for entry in read_index(str(index)):
                indexed[entry.stream] += entry.length
        assert indexed == {stream: len(data) for stream, data in sent.items()}
        assert len(segments(path, INDEX)) > (10 if most else 0)
