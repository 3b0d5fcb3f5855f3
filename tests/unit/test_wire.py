"""Messages between keeper and supervisor: whole, with their descriptors, or the peer is broken."""

from __future__ import annotations

import marshal
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from craterun.keeper import wire
from tests.leaks import open_descriptors
from tests.unit.builders import no_leaked_descriptors

Pair = tuple[socket.socket, socket.socket]
reuses_the_sockets = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def send(sock: socket.socket, message: tuple[Any, ...], fds: list[int]) -> None:
    """As both ends do it."""
    data, memfd = wire.encode(message)
    try:
        everything = [*fds, memfd] if memfd >= 0 else fds
        sock.sendmsg([data], wire.ancillary(everything))
    finally:
        if memfd >= 0:
            os.close(memfd)


def receive(sock: socket.socket) -> tuple[Any, list[int]] | None:
    return wire.receive(sock, bytearray(wire.INLINE_BYTES + 1))


def same_file(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


# --- healthy peers --------------------------------------------------------------------------------

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.binary(max_size=200) | st.text(),
    lambda inner: st.lists(inner).map(tuple) | st.lists(inner),
    max_leaves=20,
)
_MESSAGES = st.lists(_VALUES, min_size=1, max_size=6).map(tuple)


@reuses_the_sockets
@given(message=_MESSAGES)
def test_a_message_arrives_as_it_was_sent(pair: Pair, message: tuple[Any, ...]) -> None:
    with no_leaked_descriptors():
        send(pair[0], message, [])
        assert receive(pair[1]) == (message, [])


@pytest.mark.parametrize("count", range(wire.MAX_DESCRIPTORS + 1))
def test_descriptors_arrive_in_their_order_and_close_on_exec(pair: Pair, count: int) -> None:
    pipes = [os.pipe() for _ in range(count)]
    reads = [read_end for read_end, _ in pipes]
    with no_leaked_descriptors():
        send(pair[0], (1,), reads)
        received = receive(pair[1])
        assert received is not None
        message, fds = received
        assert message == (1,)
        assert [same_file(*ends) for ends in zip(fds, reads, strict=True)] == [True] * count
        assert not any(os.get_inheritable(fd) for fd in fds)
        assert not set(fds) & set(reads)
        for fd in fds:
            os.close(fd)
    for ends in pipes:
        os.close(ends[0])
        os.close(ends[1])


@pytest.mark.parametrize("size", [wire.INLINE_BYTES, wire.INLINE_BYTES * 40])
def test_a_message_larger_than_the_socket_arrives_with_its_descriptors(
    pair: Pair, size: int
) -> None:
    with no_leaked_descriptors():
        send(pair[0], (1, b"x" * size), [0, 1])
        received = receive(pair[1])
        assert received is not None
        message, fds = received
        assert message == (1, b"x" * size)
        assert len(fds) == 2
        assert same_file(fds[0], 0)
        assert same_file(fds[1], 1)
        for fd in fds:
            os.close(fd)


def test_the_largest_inline_message_fits_the_buffer(pair: Pair) -> None:
    overhead = len(marshal.dumps((b"",)))
    for size, inline in ((0, True), (1, False)):
        message = (b"x" * (wire.INLINE_BYTES - overhead + size),)
        data, memfd = wire.encode(message)
        assert (memfd < 0) == inline
        assert len(data) <= wire.INLINE_BYTES + 1
        if memfd >= 0:
            assert not os.get_inheritable(memfd)
            os.close(memfd)
        send(pair[0], message, [])
        assert receive(pair[1]) == (message, [])


def test_borders_between_messages_are_kept(pair: Pair) -> None:
    for number in range(5):
        send(pair[0], (number,), [])
    assert [receive(pair[1]) for _ in range(5)] == [((number,), []) for number in range(5)]


def test_a_closed_peer_is_the_end(pair: Pair) -> None:
    send(pair[0], (1,), [])
    pair[0].close()
    assert receive(pair[1]) == ((1,), [])
    assert receive(pair[1]) is None


def test_silence_is_not_the_end(pair: Pair) -> None:
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        receive(pair[1])


def test_descriptors_beside_an_empty_message_are_closed(pair: Pair) -> None:
    with no_leaked_descriptors():
        pair[0].sendmsg([b""], wire.ancillary([0]))
        assert receive(pair[1]) is None


def test_credentials_beside_a_message_are_not_taken_for_descriptors(pair: Pair) -> None:
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with no_leaked_descriptors():
        send(pair[0], (1,), [])
        assert receive(pair[1]) == ((1,), [])


def test_no_descriptors_need_no_ancillary_data() -> None:
    assert wire.ancillary([]) == []


# --- broken peers ---------------------------------------------------------------------------------

GARBAGE = {
    "a type byte and no more": b"I",
    "no value of marshal": b"I\xff\xff\xff",
    "text": b"Ihello",
    "a number": b"I" + marshal.dumps(1),
    "a list": b"I" + marshal.dumps([1]),
    "a dict": b"I" + marshal.dumps({1: 2}),
    "an empty tuple": b"I" + marshal.dumps(()),
    "a negative size": b"I(\xff\xff\xff\xff",
    "a string that claims to be larger": b"Is\xff\xff\xff\x7fabc",
    "a memfd that is not there": b"M",
    "nesting without end": b"I" + b")\x01" * 5000,
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("count", [0, 1, wire.MAX_DESCRIPTORS])
def test_garbage_means_that_the_peer_is_broken_and_leaks_nothing(
    pair: Pair, data: bytes, count: int
) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    with no_leaked_descriptors():
        pair[0].sendmsg([data], wire.ancillary([null] * count))
        with pytest.raises(wire.BrokenPeerError):
            receive(pair[1])
    os.close(null)


@reuses_the_sockets
@given(message=_MESSAGES, data=st.data())
def test_a_message_cut_short_is_never_taken_for_another(
    pair: Pair, message: tuple[Any, ...], data: st.DataObject
) -> None:
    whole, memfd = wire.encode(message)
    assert memfd < 0
    cut = whole[: data.draw(st.integers(1, len(whole) - 1))]
    with no_leaked_descriptors():
        pair[0].sendmsg([cut], wire.ancillary([0, 1]))
        with pytest.raises(wire.BrokenPeerError):
            receive(pair[1])


def test_a_message_larger_than_the_buffer_is_broken_and_leaks_nothing(pair: Pair) -> None:
    with no_leaked_descriptors():
        body = b"I" + marshal.dumps((b"x" * wire.INLINE_BYTES,))
        pair[0].sendmsg([body], wire.ancillary([0, 1]))
        with pytest.raises(wire.BrokenPeerError, match="truncated"):
            receive(pair[1])


def test_more_descriptors_than_agreed_are_broken_and_leak_nothing(pair: Pair) -> None:
    with no_leaked_descriptors():
        pair[0].sendmsg([wire.encode((1,))[0]], wire.ancillary([0] * 50))
        with pytest.raises(wire.BrokenPeerError, match="truncated"):
            receive(pair[1])


def memfd_of(content: bytes) -> int:
    fd = os.memfd_create("test")
    os.write(fd, content)
    return fd


@pytest.mark.parametrize("content", [b"", b"\xff", b"s\xff", marshal.dumps(1), marshal.dumps(())])
def test_a_memfd_with_garbage_is_broken_and_leaks_nothing(pair: Pair, content: bytes) -> None:
    memfd = memfd_of(content)
    with no_leaked_descriptors():
        pair[0].sendmsg([b"M"], wire.ancillary([0, memfd]))
        with pytest.raises(wire.BrokenPeerError):
            receive(pair[1])
    os.close(memfd)


def test_a_pipe_in_place_of_a_memfd_is_broken_and_leaks_nothing(pair: Pair) -> None:
    read_end, write_end = os.pipe()
    try:
        with no_leaked_descriptors():
            pair[0].sendmsg([b"M"], wire.ancillary([0, read_end]))
            with pytest.raises(wire.BrokenPeerError):
                receive(pair[1])
    finally:
        os.close(read_end)
        os.close(write_end)


def test_the_check_for_leaks_sees_a_leak() -> None:
    before = open_descriptors()
    with pytest.raises(AssertionError), no_leaked_descriptors():
        leaked = os.dup(0)
    os.close(leaked)
    assert open_descriptors() == before


# --- no room for descriptors ----------------------------------------------------------------------


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """As many descriptors more as this can be opened meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = []
    for _ in range(count + 1):
        free.append(os.dup(0))
    for fd in free:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_message_without_its_descriptors_is_told_and_nothing_leaks(pair: Pair, room: int) -> None:
    with no_leaked_descriptors():
        send(pair[0], (1, 2, b"three"), [0, 1, 2])
        with room_for(room), pytest.raises(wire.DescriptorsLostError) as caught:
            receive(pair[1])
        assert caught.value.message == (1, 2, b"three")
        send(pair[0], (4,), [])
        assert receive(pair[1]) == ((4,), [])


@pytest.mark.parametrize("room", [0, 1])
def test_of_a_large_message_without_its_descriptors_the_small_elements_are_known(
    pair: Pair, room: int
) -> None:
    body = (b"x" * wire.INLINE_BYTES,)
    released = list(range(10**9, 10**9 + 1000))
    with no_leaked_descriptors():
        send(pair[0], (1, 2, 3, b"c" * 4096, body, released), [0])
        with room_for(room), pytest.raises(wire.DescriptorsLostError) as caught:
            receive(pair[1])
        assert caught.value.message == (1, 2, 3, b"c" * 4096, None, released)


def test_any_large_message_fits_the_buffer_of_whoever_has_no_room(pair: Pair) -> None:
    message = tuple(b"x" * wire.INLINE_BYTES if n % 2 else b"y" * 8000 for n in range(40))
    send(pair[0], message, [])
    with room_for(0), pytest.raises(wire.DescriptorsLostError):
        receive(pair[1])
