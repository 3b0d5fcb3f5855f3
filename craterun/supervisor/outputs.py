"""Both output pipes of a container's process, from its start until all that it wrote is logged."""

from __future__ import annotations

import array
import fcntl
import termios
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from craterun.state.logs import Stream
from craterun.supervisor.pumps import DRAIN_SECONDS, OutputLog, Pump

if TYPE_CHECKING:
    from craterun.supervisor.launched import Launched
    from craterun.supervisor.readiness import Readiness


class Outputs:
    """Those of one life. `begin` them, and `stop` them, whatever happens in between."""

    def __init__(self, launched: Launched, log: OutputLog, on_error: Callable[[], None]) -> None:
        """:param on_error: called when a pump has failed, for a reason that `stop` raises then"""
        self._pipes = ((Stream.STDOUT, launched.stdout), (Stream.STDERR, launched.stderr))
        self._log = log
        self._on_error = on_error
        self._pumps: list[Pump] = []

    def begin(self, ready: Readiness, tasks: trio.Nursery) -> None:
        """:param tasks: outlives them"""
        self._ready = ready
        for stream, pipe in self._pipes:
            if pipe.closed:  # a terminal has no stderr; one killed on its way has no stream
                self._log.end(stream)
            else:
                self._pumps.append(pump := Pump(pipe.fileno(), self._log, stream, self._on_error))
                pump.begin(ready, tasks)

    async def drain(self, note: Callable[[str], None]) -> None:
        """Until both streams have ended, or one is held open by a stranger who says nothing.

        :param note: told of that
        """
        for stream, pipe in self._pipes:
            while not self._log.ended[stream]:
                with trio.move_on_after(DRAIN_SECONDS) as patience:
                    await self._log.wait_end(stream)
                if patience.cancelled_caught and self._ready.ended:
                    note(f"the end of {stream.name.lower()} was not read: craterun has failed")
                    break
                if self._log.is_held_up(stream):
                    continue
                if patience.cancelled_caught and not _unread_bytes(pipe.fileno()):
                    note(
                        f"{stream.name.lower()} was still held open by a process outside of the "
                        f"container {DRAIN_SECONDS:g} s after its end; what came later is lost"
                    )
                    break

    async def stop(self) -> None:
        """When this returns, nobody uses the pipes any more.

        :raises Exception: what has made a pump stop before
        """
        for pump in self._pumps:
            await pump.stop()


def _unread_bytes(pipe: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]
