"""The writer of a container's log: two byte-exact streams and an index of when what came.

``stdout.log`` and ``stderr.log`` hold exactly the bytes written, nothing else. POSIX gives no order
between two pipes, so the order in which chunks were *read* is kept beside them, in ``log.index``
(`state.logindex`, which also tells how a log is divided once it has grown).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from craterun.core.logoptions import LogOptions
from craterun.state.loghead import Head
from craterun.state.logindex import (
    ENTRY,
    FILES,
    INDEX,
    STREAMS,
    IndexEntry,
    Kind,
    Stream,
    read_index,
)
from craterun.state.segments import SLOW, Segments
from craterun.state.turn import Relay, Target, Turn

__all__ = ["FILES", "INDEX", "IndexEntry", "LogWriter", "Stream", "Then", "read_index"]

_FAILED = stat.S_ISVTX
"""On the container's folder: a writer has failed. It costs no space, which there may be none of."""
_CHUNK = int(Kind.CHUNK)

Then = Callable[[memoryview, int], None]
"""Called with bytes, and their offset in the stream, as soon as they are in their file, before
their index entry is: whoever they are passed on to then has nothing that a reader of the log would
not find."""


class LogWriter(Segments):
    """The one writer of a container's log. Files are made at their first byte, or by `finish`.

    A failed write (disk full) ends the logging of both streams: a log with a hole would be taken
    for complete. What came later is counted in ``lost_bytes``; the container goes on. A mark on the
    folder keeps a successor from going on behind the hole.

    :ivar sizes: bytes written to each stream, removed ones included
    :ivar error: the failure, or None
    """

    def __init__(
        self,
        directory: int,
        options: LogOptions | None = None,
        *,
        resume: bool = False,
        may_keep: Callable[[int], bool] | None = None,
    ) -> None:
        """:param directory: descriptor of the container's folder, which stays the caller's
        :param options: default: the defaults
        :param resume: go on with what an earlier writer left
        :param may_keep: whether a file that was just opened may stay open; else it is closed again
            after each chunk, so that however many containers write, few descriptors do
        """
        super().__init__(directory, options or LogOptions(), may_keep)
        self._splices = hasattr(os, "splice")  # not in every C library that Python is built with
        # The pumps of both streams may be in threads, and rotating concerns both.
        self._writing = threading.Lock()
        self._turn: threading.Lock | Turn = self._writing
        self.error: OSError | None = None
        self.lost_bytes = 0
        self.head: Head | None = None
        self._inherited_failure = False
        if resume:
            try:
                self._resume()
            except OSError as error:
                self._fail(error)

    def append(
        self, stream: Stream, data: memoryview, time_ns: int | None, then: Then | None = None
    ) -> None:
        """Append one chunk and its index entry; divided if it does not fit into a segment.

        :param time_ns: of the entry, since the epoch; None: the time when ``then`` has returned
        """
        with self._writing:
            # Whoever is attached waits for this, and between two chunks the processor's caches have
            # gone to others: what counts is how little code and data is touched until ``then``.
            before = self.sizes[stream]
            size = len(data)
            fd, most, index, base = self._quick[stream]
            is_quick = before + size <= most
            if is_quick:
                try:
                    written = os.write(fd, data)
                except OSError as error:
                    self._fail(error)
                    self.lost_bytes += size
                else:
                    self.sizes[stream] = before + written
                    if written < size:
                        self._append(stream, data, time_ns, then, written)
                    else:
                        if then is not None:
                            then(data, before)
                        time_ns = time_ns or time.time_ns()
                        self._note_quickly(
                            index, ENTRY.pack(time_ns, before - base, size, stream, _CHUNK)
                        )
        if not is_quick:
            with self._turn:  # there may have to be another segment
                self._append_slowly(stream, data, time_ns, then)
        if self.head is not None:
            self.head.add(stream, data)

    def _append_slowly(
        self, stream: Stream, data: memoryview, time_ns: int | None, then: Then | None
    ) -> None:
        while data:
            if self.error is not None:
                self.lost_bytes += len(data)
                break
            room = self._make_room(stream, time_ns)
            if room > 0:
                self._append(stream, data[:room], time_ns, then)
                data = data[room:]
        if self._is_short:
            self._is_short = False
            self._close()
        elif self.error is None and self._room(stream) > 0:
            base = self._bases[stream]
            most = base + self._max_bytes if self._max_bytes else 1 << 62
            self._quick[stream] = self._files[FILES[stream]], most, self._files[INDEX], base

    def splice(self, stream: Stream, pipe: int, most: int, time_ns: int) -> int | None:
        """Append what is in a pipe, as one chunk, without having it copied to this process.

        The kernel takes from the pipe what it has written, and nothing else, so that nothing is
        lost or doubled by an error or a kill amid this: splice(2).

        :param pipe: borrowed
        :param most: bytes
        :returns: how many bytes were appended, 0 at the end of the pipe; None: this way is not
            open, so read and `append`, which also tells of what is wrong
        :raises BlockingIOError: the pipe is empty
        """
        with self._turn:
            head = self.head
            if not self._splices or self.error is not None:
                return None
            if head is not None and not head.is_full(stream):
                return None
            room = self._make_room(stream, time_ns)
            if room <= 0:
                return None
            try:
                moved = self._splice(FILES[stream], pipe, min(room, most))
                if moved:
                    offset = self.sizes[stream] - self._bases[stream]
                    self.sizes[stream] += moved
                    self._note(time_ns, offset, moved, stream)
                    if head is not None:
                        head.count(stream, moved)
                return moved
            except BlockingIOError:
                raise
            except OSError:
                # EINVAL: a filesystem that cannot, or a terminal; EPERM: a log that may only be
                # appended to; anything else will happen to `append`, too.
                self._splices = False
                return None
            finally:
                if self._is_short:
                    self._is_short = False
                    self._close()

    # --- relays (`state.turn`) --------------------------------------------------------------------

    def arm(self, relay: Relay, stream: Stream, target: Target, yield_below: int) -> bool:
        """Have ``relay`` append the next chunk of ``stream`` by itself, until somebody else writes.
        False if that is not possible now.

        :param yield_below: see `Relay.arm`
        """
        with self._writing:
            if not isinstance(self._turn, Turn):
                self._turn = Turn(self._writing)
                # Another entry, for a chunk of the other stream that is on its way by then.
                self._index_most -= ENTRY.size
            if relay not in self._turn.relays:
                self._turn.relays.append(relay)
            size = self.sizes[stream]
            fd, most, _, _ = self._quick[stream]
            if most <= size or self._index_bytes > self._index_most:
                return False
            if (reader := target(size)) is None:
                return False
            relay.arm(fd, most - size, reader, yield_below)
            return True

    def relayed(self, relay: Relay, stream: Stream, data: memoryview, then: Then | None) -> None:
        """Put down what ``relay`` has written of ``data``, and append what it has not."""
        with self._writing:
            before, written = self.sizes[stream], relay.logged
            if written < 0:
                self._fail(OSError(-written, os.strerror(-written)))
                self.lost_bytes += len(data)
            else:
                self.sizes[stream] = before + written
                if written < len(data):
                    self._append(stream, data, None, then, written)
                elif self.error is None:
                    self._note(None, before - self._bases[stream], written, stream)
        if self.head is not None:
            self.head.add(stream, data)

    def halt(self) -> None:
        """When this returns, no relay is on its way with anything, nor will it be with what it was
        armed for.
        """
        with self._turn:
            return

    def dismiss(self, relay: Relay) -> None:
        """It will not be armed any more."""
        with self._writing:
            if isinstance(self._turn, Turn) and relay in self._turn.relays:
                self._turn.relays.remove(relay)

    def _splice(self, name: str, pipe: int, size: int) -> int:
        fd = self._open(name)
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)  # splice(2) refuses O_APPEND
        try:
            # Where appending would begin, also if somebody has truncated the file.
            end = os.fstat(fd).st_size
            return os.splice(pipe, fd, size, offset_dst=end, flags=os.SPLICE_F_NONBLOCK)
        finally:
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)

    def _make_room(self, stream: Stream, time_ns: int | None) -> int:
        """Bytes that may be appended to ``stream``, in a new segment if need be; 0: it failed."""
        room = self._room(stream)
        if room <= 0:
            try:
                self._rotate(time.time_ns() if time_ns is None else time_ns)
            except OSError as error:
                self._fail(error)
                return 0
            room = self._room(stream)
        return room

    def _append(
        self,
        stream: Stream,
        data: memoryview,
        time_ns: int | None,
        then: Then | None,
        written: int = 0,
    ) -> None:
        """A chunk that fits into the segment, of which so much has been written already."""
        before = self.sizes[stream] - written
        rest = data[written:]
        try:
            fd = self._open(FILES[stream])
            while rest:
                written = os.write(fd, rest)
                self.sizes[stream] += written
                rest = rest[written:]
        except OSError as error:
            self._fail(error)
            self.lost_bytes += len(rest)
            return
        if then is not None:
            then(data, before)
        self._note(time_ns, before - self._bases[stream], len(data), stream)

    def _note(self, time_ns: int | None, offset: int, size: int, stream: Stream) -> None:
        """Write the index entry of a chunk."""
        if time_ns is None:
            time_ns = time.time_ns()
        try:
            self._write_index(ENTRY.pack(time_ns, offset, size, stream, _CHUNK))
        except OSError as error:
            self._fail(error)

    def _note_quickly(self, index: int, entry: bytes) -> None:
        """Write an entry to the index, which is open as ``index``."""
        try:
            written = os.write(index, entry)
            self._index_bytes += written
            if written < ENTRY.size or self._index_bytes > self._index_most:
                self._write_index(entry[written:])
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.error = error
        self._quick = dict.fromkeys(STREAMS, SLOW)
        with suppress(OSError):
            mode = stat.S_IMODE(os.fstat(self._directory).st_mode)
            os.fchmod(self._directory, mode | _FAILED)

    def is_lossy(self) -> bool:
        """Whether what is appended cannot be read again. True stays true."""
        return self.error is not None

    def complaint(self) -> str | None:
        """What is wrong with the log, for the container's record; None if nothing is."""
        if self.error is None:
            return None
        if self._inherited_failure:
            return (
                "the log is incomplete: an earlier supervisor could not write it; "
                f"at least {self.lost_bytes} bytes of output were not logged"
            )
        if not self.lost_bytes and not any(self.sizes.values()):
            return None  # an empty log could not be made, and nobody has missed it
        return (
            f"the log is incomplete: {os.strerror(self.error.errno or 0)}; "
            f"{self.lost_bytes} bytes of output were not logged"
        )

    def locate(self, stream: Stream, offset: int, directory: int = -1) -> tuple[int, int]:
        """The file that has byte ``offset`` of ``stream``, or the first one after it that is kept.

        Returns a descriptor to read with pread(2), which the caller owns, and the offset in the
        stream that the file begins with.

        :param directory: the folder, borrowed, for when `finish` has let go of it
        """
        with self._writing:
            return self._locate(stream, offset, directory)

    def finish(self) -> None:
        """Make sure that both files exist, mark the end, and close all."""
        with self._turn:
            if self._directory < 0:
                return
            try:
                if self.error is None:
                    if INDEX in self._files or self._index_bytes:
                        self._write_index(ENTRY.pack(time.time_ns(), 0, 0, 0, Kind.END))
                    for name in FILES.values():
                        if name not in self._files:
                            self._make(name)
            except OSError as error:
                self._fail(error)
            finally:
                self._close()
                self._directory = -1  # its owner may close it now

    # --- taking over from a writer that was killed ------------------------------------------------

    def _resume(self) -> None:
        """Go on where the writer before us was, and finish what it did not."""
        if os.fstat(self._directory).st_mode & _FAILED:
            self._inherited_failure = True
            self.error = OSError(errno.EIO, os.strerror(errno.EIO))
        remains = self._adopt()
        if self.error is None:
            self._mend(remains)
