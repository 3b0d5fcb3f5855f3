"""File work, done in a thread, in order, as many jobs as have come up for one trip.

Making state directories and cgroups, writing records, removing cgroups: each is a handful of system
calls that may block on a disk, so none of them belongs on the event loop. A thread for each costs
more than the work itself. So there is one thread, and whatever was asked for while it was busy goes
along on its next trip: alone, a job is done at once; under load, a trip carries many.

Where the state directory is on a filesystem in memory, nothing can block on a disk, and the trip
itself is what costs most (measured: a third of the supervisor's time for a short container). Then
jobs are done in place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import trio

from craterun.supervisor.threads import in_thread

T = TypeVar("T")


class _Job:
    __slots__ = ("arguments", "begun", "done", "error", "function", "result")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function = function
        self.arguments = arguments
        self.begun = False
        self.done = trio.Event()
        self.result: Any = None
        self.error: BaseException | None = None


class Clerk:
    """Carries out jobs in the order in which they were given. `serve` runs alongside.

    :param in_place: do jobs at once, on the event loop
    """

    def __init__(self, *, in_place: bool = False) -> None:
        self._in_place = in_place
        self._waiting: deque[_Job] = deque()
        self._called = trio.lowlevel.ParkingLot()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> _Job:
        """Have ``function`` called in the thread, without waiting for it."""
        job = _Job(function, arguments)
        if self._in_place:
            _do_all([job])
            job.done.set()
        else:
            self._waiting.append(job)
            self._called.unpark_all()
        return job

    async def do(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call ``function`` in the thread; returns its result or raises its exception.

        Cancelled, it returns at once, and the job is done all the same.
        """
        if self._in_place:
            return function(*arguments)  # without the trip around the event loop that waiting is
        job = self.submit(function, *arguments)
        await job.done.wait()
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    async def serve(self) -> None:
        """Make trips until cancelled; what is asked for afterwards is done in place.

        Nothing is, unless a fault has ended the services of a supervisor while there are containers
        whose ends have to be recorded: they must not wait for ever.
        """
        jobs: list[_Job] = []
        try:
            while True:
                while not self._waiting:
                    await self._called.park()
                jobs = list(self._waiting)
                self._waiting.clear()
                await in_thread(_do_all, jobs)
                for job in jobs:
                    job.done.set()
        finally:
            self._in_place = True
            left = [job for job in (*jobs, *self._waiting) if not job.done.is_set()]
            self._waiting.clear()
            _do_all([job for job in left if not job.begun])
            for job in left:
                job.done.set()


def _do_all(jobs: list[_Job]) -> None:
    for job in jobs:
        job.begun = True
        try:
            job.result = job.function(*job.arguments)
        except BaseException as error:
            job.error = error
