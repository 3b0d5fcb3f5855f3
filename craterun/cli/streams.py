"""The user's own standard streams, read and written without ever changing their mode.

O_NONBLOCK belongs to the open file, which a shell and its other jobs share with us; setting it
there breaks them. So a pipe or terminal is opened once more through /proc, a socket is asked not to
block call by call, and a regular file, which never blocks for long, is written in a thread.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

from craterun.linux.fd import Fd
from craterun.supervisor.express import CHUNK_BYTES
from craterun.supervisor.threads import in_thread

if TYPE_CHECKING:
    from craterun.supervisor.reader import LogReader

_GONE = (errno.EPIPE, errno.ECONNRESET, errno.EIO, errno.ENOTCONN, errno.EBADF)
_INLINE_BYTES = 64 * 1024
_READ_BYTES = 64 * 1024
_COPY_BYTES = 1024 * 1024
_Result = TypeVar("_Result")


class OutputSink:
    """Where to copy a container's output to.

    :ivar gone: the reader went away; writing more is pointless
    :ivar error: a write failed for another reason, such as a full disk
    :ivar is_shared: this process writes for others, too
    """

    def __init__(self, number: int, *, shared: bool = False) -> None:
        """:param number: descriptor to write to; it stays the caller's
        :param shared: never block this process, not even for as long as a disk takes
        """
        self.is_shared = shared
        self.gone = False
        self.error: OSError | None = None
        self._number = number
        self._own = Fd(-1)
        self._takes_files = True
        self._put: Callable[[memoryview], int] | None = None
        self._put_now: Callable[[memoryview], int] | None = None  # of no use once a write failed
        try:
            mode = os.fstat(number).st_mode
        except OSError:
            self.gone = True  # started with a closed stdout, as by >&-
            return
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(number))
            self._own = Fd(self._socket.detach())
            self._put = self._put_now = self._send
        elif stat.S_ISFIFO(mode) or os.isatty(number):
            self._reopen()

    def _reopen(self) -> None:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            self._own = Fd(os.open(f"/proc/self/fd/{self._number}", flags))
        except OSError:
            return  # a terminal of another user, after su: blocking writes in a thread still work
        # No function in Python in between: a byte on its way waits for each of them.
        self._put = self._put_now = partial(os.write, self._own.fileno())

    @property
    def is_prompt(self) -> bool:
        """Whether `write_now` is of use: a write to a file may take as long as its disk likes."""
        return self._put is not None

    @property
    def descriptor(self) -> int:
        """What `write_now` writes to, if it does nothing else; or -1. Open until `close`."""
        return self._own.fileno() if isinstance(self._put_now, partial) else -1

    def write_now(self, data: memoryview) -> int:
        """Write what can be written without waiting, from any thread; how much that was."""
        put = self._put_now
        if put is None:
            return 0
        try:
            return put(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._note(error)
            return 0

    def copy_in_thread(self, file: int, offset: int, size: int) -> int:
        """Copy from a file, waiting in this thread; see `LogReader.read_on`."""
        try:
            if self._takes_files:
                return os.sendfile(self._number, file, offset, size)
            data = memoryview(os.pread(file, _COPY_BYTES, offset))
            taken = 0
            while taken < len(data):
                taken += os.write(self._number, data[taken:])
        except OSError as error:
            if self._takes_files and error.errno in (errno.EINVAL, errno.ENOSYS):
                self._takes_files = False  # sendfile(2) does not append, as to ``>>file``
                return self.copy_in_thread(file, offset, size)
            self._note(error)
            return -1
        return taken

    def _note(self, error: OSError) -> None:
        if error.errno in _GONE:
            self.gone = True
        else:
            self.error = error
        self._put_now = None

    async def write(self, data: bytes) -> None:
        """Write all of ``data``, at the reader's pace; drop it if the reader is gone."""
        view = memoryview(data)
        while view and not self.gone and self.error is None:
            try:
                if self._put is None:
                    view = view[await self._write_in_thread(view) :]
                else:
                    view = view[self._put(view) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._own.fileno())
            except OSError as error:
                self._note(error)

    def _send(self, data: memoryview) -> int:
        with socket.socket(fileno=os.dup(self._own.fileno())) as sock:
            return sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    async def _write_in_thread(self, data: memoryview) -> int:
        small = len(data) <= _INLINE_BYTES and not self.is_shared
        if small and stat.S_ISREG(os.fstat(self._number).st_mode):
            return os.write(self._number, data)
        return await _in_thread(self._number, lambda own: os.write(own, data))

    def close(self) -> None:
        """Close what was opened here; the user's descriptor stays."""
        self._put = self._put_now = None
        self._own.close()


async def copy_output(receive: Callable[[], Awaitable[bytes]], sink: OutputSink) -> None:
    """Until the end of the stream, or until the reader has gone."""
    while not sink.gone and sink.error is None:
        data = await receive()
        if not data:
            return
        await sink.write(data)


async def copy_log(reader: LogReader, sink: OutputSink) -> None:
    """As `copy_output`, from a log. To a file, what has piled up goes in one trip to a thread."""
    while not sink.gone and sink.error is None:
        data = await reader.receive()
        if not data:
            return
        await sink.write(data)
        # Cancelled, it is left behind, and must not write to what others have opened since.
        if len(data) == CHUNK_BYTES and not sink.is_prompt and not sink.is_shared:
            await trio.to_thread.run_sync(
                reader.read_on,
                sink.copy_in_thread,
                abandon_on_cancel=True,  # type: ignore[call-arg]  # newer than trio-typing's stubs
            )


async def feed_input(target: Fd, number: int = 0) -> None:
    """Copy our stdin to an input pipe, and close that at end-of-file. Takes ``target``.

    :param number: descriptor of our stdin, borrowed
    """
    async with trio.lowlevel.FdStream(target.take()) as stream, InputSource(number) as source:
        while True:
            try:
                data = await source.read()
                if not data:
                    return
                await stream.send_all(data)
            except (OSError, trio.BrokenResourceError):
                return  # our stdin is closed or gone; or the container reads no more


async def read_stdin(number: int = 0) -> bytes:
    """The next bytes of our stdin, or of another descriptor; b"" at its end."""
    try:
        # Where this works, the read that follows does not block; where the kernel says EPERM, it is
        # a regular file, which is always readable.
        await trio.lowlevel.wait_readable(number)
    except PermissionError:
        return await in_thread(os.read, number, _READ_BYTES)
    return os.read(number, _READ_BYTES)


class InputSource:
    """Our stdin. Others may read the same pipe or terminal: that there was something to read does
    not mean that there still is.
    """

    def __init__(self, number: int) -> None:
        """:param number: descriptor to read; it stays the caller's"""
        self._number = number
        self._own = Fd(-1)
        self._get: Callable[[], bytes] | None = None

    async def __aenter__(self) -> InputSource:
        try:
            mode = os.fstat(self._number).st_mode
            if stat.S_ISSOCK(mode):
                self._own = Fd(os.dup(self._number))
                self._get = self._receive
            elif stat.S_ISFIFO(mode) or os.isatty(self._number):
                flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._own = Fd(os.open(f"/proc/self/fd/{self._number}", flags))
                self._get = self._read_nonblocking
        except OSError:
            pass  # closed, or a terminal of another user, after su: read in a thread, if at all
        return self

    async def __aexit__(self, *_: object) -> None:
        self._own.close()

    async def read(self) -> bytes:
        """The next bytes; b"" at the end."""
        if self._get is None:
            return await self._read_in_thread()
        while True:
            try:
                data = self._get()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._own.fileno())
            else:
                await trio.lowlevel.checkpoint()
                return data

    def _read_nonblocking(self) -> bytes:
        return os.read(self._own.fileno(), _READ_BYTES)

    def _receive(self) -> bytes:
        with socket.socket(fileno=os.dup(self._own.fileno())) as sock:
            return sock.recv(_READ_BYTES, socket.MSG_DONTWAIT)

    async def _read_in_thread(self) -> bytes:
        # EPERM: a regular file, which is always readable, or a device that cannot be waited for.
        with suppress(PermissionError):
            await trio.lowlevel.wait_readable(self._number)
        return await _in_thread(self._number, lambda own: os.read(own, _READ_BYTES))


async def _in_thread(number: int, work: Callable[[int], _Result]) -> _Result:
    """``work`` on a duplicate of a descriptor that may block: when we are cancelled, the thread is
    left behind, and must not find another file under the same number.
    """
    own = os.dup(number)

    def do() -> _Result:
        try:
            return work(own)
        finally:
            os.close(own)

    return await trio.to_thread.run_sync(
        do,
        abandon_on_cancel=True,  # type: ignore[call-arg]  # newer than trio-typing's stubs
        limiter=trio.CapacityLimiter(1),  # nobody waits for others who are stuck
    )
