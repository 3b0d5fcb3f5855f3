"""A batch: workers that take lines, run a container for each and emit what became of it.

There is no queue. A worker that is free reads the next line; so the input is read no further than
there is somebody to run it, a slow reader of the results slows the batch down, and what is in
memory is what is being worked on.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import trio

from craterun.batch import earlier
from craterun.batch.job import Job, feed, key_of, open_input, parse_job, read_env_files
from craterun.batch.ledger import Known, Ledger
from craterun.batch.lines import Line, LineReader
from craterun.batch.options import HOST_RETRIES, Counts, Keep, Options, Orphans
from craterun.batch.results import (
    Attempt,
    Failure,
    Outcome,
    encode_result,
    judge,
    judge_error,
    make_result,
)
from craterun.batch.running import Earlier, Host, Own, Running
from craterun.core.errors import (
    CraterunError,
    KeeperDiedError,
    ShuttingDownError,
    UsageError,
    printable,
)
from craterun.core.restart import pause_before
from craterun.core.spec import Spec
from craterun.linux.fd import Fd
from craterun.supervisor.threads import in_thread

logger = logging.getLogger("craterun")


class Batch:
    """One batch. `run` it once, within the context of who starts its containers.

    :ivar counts: how far it is
    :ivar lines: the input
    :ivar abandoned: it was ended since its containers were, from without
    """

    def __init__(
        self,
        host: Host,
        options: Options,
        receive: Callable[[], Awaitable[bytes]],
        emit: Callable[[bytes], Awaitable[None]],
        *,
        ledger: Ledger | None = None,
        changed: Callable[[], object] = lambda: None,
        complain: Callable[[str], object] = logger.warning,
    ) -> None:
        """:param receive: returns the next bytes of the input, b"" at its end; a `CraterunError`
            of it is the end, too, and that of `run`
        :param emit: takes a result, a line of JSON, in the order in which jobs end
        :param ledger: gets the results as well, before ``emit``, and knows what is done already
        :param changed: called when ``counts`` have changed
        :param complain: called with what went wrong besides the jobs
        """
        self.counts = Counts()
        self.lines = LineReader(receive)
        self._host = host
        self._options = options
        self._emit = emit
        self._ledger = ledger
        self._changed = changed
        self._complain = complain
        self._turn = trio.Lock()
        self._reading = trio.CancelScope()
        self._halted = False
        self._ending = trio.Event()
        self._killing = False
        self._running: set[Running] = set()
        self._tasks: trio.Nursery | None = None
        self._broken: Exception | None = None
        self.abandoned = False

    async def run(self) -> None:
        """Until all jobs of the input are done, or those that were begun when it was ended.

        :raises OSError: a result could not be written
        :raises KeeperDiedError: the keeper is gone
        :raises CraterunError: the input could not be read
        """
        if self._ledger is not None:
            for container_id in self._ledger.take_removed():
                await self._remove_earlier(container_id)
        async with trio.open_nursery() as self._tasks, trio.open_nursery() as workers:
            for _ in range(self._options.jobs):
                workers.start_soon(self._work)
        if self._ledger is not None and not self._halted:
            self._ledger.forget_killed()
        if self._broken is not None:
            raise self._broken

    # --- ending it early --------------------------------------------------------------------------

    @property
    def halted(self) -> bool:
        """Whether the input is read no further, for another reason than its end."""
        return self._halted

    def halt(self) -> None:
        """Read no further."""
        self._halted = True
        self._reading.cancel()

    def stop(self) -> None:
        """Read no further, and ask what runs to end; what does not, in its own time, is killed."""
        self.halt()
        if not self._ending.is_set():
            self._ending.set()
            for running in self._running:
                self._soon(running.stop)

    def abandon(self) -> None:
        """Read no further; what runs is being ended by who runs it."""
        self.halt()
        self.abandoned = True
        if not self._ending.is_set():
            self._ending.set()
            for running in self._running:
                self._soon(running.leave)

    def kill(self) -> None:
        """Read no further, and kill what runs."""
        self.halt()
        self._ending.set()
        self._killing = True
        for running in self._running:
            self._soon(running.kill)

    def _ended_by(self, running: Running) -> Callable[[], Coroutine[Any, Any, None]]:
        """What becomes of one that has begun too late to be ended with the others."""
        if self._killing:
            return running.kill
        return running.leave if self.abandoned else running.stop

    def _soon(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        assert self._tasks is not None
        self._tasks.start_soon(function)

    def _break(self, error: Exception) -> None:
        """Going on makes no sense."""
        if self._broken is None:
            self._broken = error
        self.kill()

    # --- workers ----------------------------------------------------------------------------------

    async def _work(self) -> None:
        while (line := await self._next()) is not None:
            await self._do(line)

    async def _next(self) -> Line | None:
        async with self._turn:
            if self._halted:
                return None
            line = None
            with trio.CancelScope() as self._reading:
                try:
                    line = await self.lines.next()
                except CraterunError as error:  # what runs goes on to its end, and gets its result
                    self._broken = self._broken or error
                    self.halt()
            return line

    async def _do(self, line: Line) -> None:
        job: Job | None = None
        try:
            job = parse_job(line.text(), self._options.defaults)
            known = self._look_up(job, line)
            begun = None
            if known in (Known.NEW, Known.FAILED):  # failed, and begun again by --rerun-failed
                begun = await self._begun(line, job)
            if known is Known.SUCCEEDED or (known is Known.FAILED and begun is None):
                self._skip(failed=known is Known.FAILED)
                return
            if known is Known.TAKEN:
                raise UsageError(f"the key '{printable(str(job.key))}' is that of an earlier line")
            spec = job.to_spec()
        except UsageError as error:
            key = (job.key if job is not None else key_of(line.content or b"")) or None
            if self._ledger is not None and self._ledger.is_known_as_invalid(key, line.number):
                self._skip(failed=True)
                return
            text = f"line {line.number}: {error}"
            await self._conclude(line, key, Outcome(failure=Failure.INVALID, error=text), 0, [])
            return
        if self._ending.is_set():
            return  # read in the very moment in which it was ended: not begun
        self.counts.running += 1
        self._changed()
        outcome, number, others = await self._attempts(line, job, spec, begun)
        self.counts.running -= 1
        await self._conclude(line, job.key or None, outcome, number, others)

    def _look_up(self, job: Job, line: Line) -> Known:
        if self._ledger is None:
            return Known.NEW
        return self._ledger.look_up(job.key or None, line.number)

    def _skip(self, *, failed: bool) -> None:
        self.counts.skipped += 1
        self.counts.skipped_failed += failed
        self._changed()

    async def _attempts(
        self, line: Line, job: Job, spec: Spec, begun: tuple[int, str] | None
    ) -> tuple[Outcome, int, list[Attempt]]:
        """Try until there is a success, or nothing to be tried again for.

        Returns how the last attempt went, its number, and those before it.

        :param begun: by a batch that was killed: the number of the attempt, and its container
        """
        if spec.name is not None and self._ledger is not None:
            kept = self._ledger.take_kept(job.key or None, line.number)
            if kept is not None:  # by an earlier batch, and it still has the name
                await self._remove_earlier(kept, spec.name)
        others: list[Attempt] = []
        number, before = begun or (1, None)
        host_failures, failures = 0, number - 1
        while True:
            outcome = await self._attempt(self._id(line, job, number), job, spec, before)
            before = None
            if outcome.failure is Failure.ERROR:
                host_failures += 1
                again = host_failures <= max(self._options.retries, HOST_RETRIES)
            else:
                failures += 1
                again = failures <= self._options.retries
                again = again and outcome.failure in self._options.retry_on
            if not again or self._ending.is_set():
                return outcome, number, others
            others.append(outcome.as_attempt())
            self.counts.retried += 1
            if not self._is_kept(outcome.failure) or spec.name is not None:
                await self._remove(outcome)
            if outcome.failure is Failure.ERROR:
                with trio.move_on_after(pause_before(host_failures)):
                    await self._ending.wait()
            number += 1

    def _id(self, line: Line, job: Job, number: int) -> str | None:
        if self._ledger is None:
            return None
        return self._ledger.container_id(job.key or None, line.number, number)

    async def _begun(self, line: Line, job: Job) -> tuple[int, str] | None:
        """The last attempt that a batch that was killed has begun: its number, its container."""
        ledger, store = self._ledger, self._host.store
        if ledger is None or not ledger.crashed:
            return None

        def last() -> tuple[int, str] | None:
            ids = ledger.killed_ids(job.key or None, line.number)
            return next((found for found in ids if earlier.exists(store, found[1])), None)

        return await in_thread(last)

    # --- one attempt ------------------------------------------------------------------------------

    async def _attempt(
        self, container_id: str | None, job: Job, spec: Spec, before: str | None
    ) -> Outcome:
        """:param before: the container that a batch that was killed has begun it with"""
        file: Fd | None = None
        try:
            if before is not None:
                outcome = await self._see_through(before, job)
                if outcome is not None:
                    return outcome
            if job.env_file:
                env = await in_thread(read_env_files, job)
                spec = msgspec.structs.replace(spec, env={**env, **spec.env})
                spec.check()
            file = open_input(job)
            return await self._run(container_id, job, spec, file)
        except KeeperDiedError as error:
            self._break(error)
            return Outcome(failure=Failure.CANCELLED, error=str(error))
        except ShuttingDownError as error:
            self.abandon()
            return Outcome(failure=Failure.CANCELLED, error=str(error))
        except (CraterunError, OSError) as error:
            return judge_error(error)
        finally:
            if file is not None:
                file.close()

    async def _run(
        self, container_id: str | None, job: Job, spec: Spec, file: Fd | None
    ) -> Outcome:
        container = await self._host.start(spec, container_id=container_id)
        head = container.keep_head(self._options.capture or 0)
        own = Own(container)
        self._running.add(own)
        try:
            if self._ending.is_set():
                self._soon(self._ended_by(own))
            if job.has_input and not container.stdin.closed:
                stdin = Fd(container.stdin.take())  # before it ends, which would close this
                async with trio.open_nursery() as feeding:
                    feeding.start_soon(feed, stdin, str(job.stdin or ""), file)
                    await container.wait()
                    feeding.cancel_scope.cancel()
            else:
                await container.wait()
        except BaseException:
            container.kill()  # cancelled: nobody is left who would want its result
            raise
        finally:
            self._running.discard(own)
        record = container.record
        failure = judge(record)
        if own.was_ended(record):
            failure = Failure.CANCELLED
        elif record.exit_code is None:  # the keeper has died
            failure = Failure.CANCELLED
            self._break(KeeperDiedError(record.error or "the keeper process has died"))
        return Outcome(
            failure=failure,
            error=printable(record.error) if record.error else None,
            container=container.id,
            record=record,
            head=head,
            own=container,
        )

    async def _see_through(self, container_id: str, job: Job) -> Outcome | None:
        """The end of a container that a batch that was killed has begun; None: run it again."""
        store = self._host.store
        before = Earlier(store, container_id)
        self._running.add(before)
        try:
            if self._ending.is_set():
                self._soon(self._ended_by(before))
            # Nobody knows whether it was given all of its input: who wrote that was killed.
            wait = self._options.orphans is Orphans.WAIT and not job.has_input
            record = await before.outcome(wait=wait)
        finally:
            self._running.discard(before)
        if record is None:
            return None
        limit = self._options.capture or 0
        return Outcome(
            failure=Failure.CANCELLED if before.was_ended(record) else judge(record),
            error=printable(record.error) if record.error else None,
            container=container_id,
            record=record,
            head=await in_thread(earlier.read_head, store, record, limit),
            adopted=True,
        )

    # --- afterwards -------------------------------------------------------------------------------

    def _is_kept(self, failure: Failure | None) -> bool:
        keep = self._options.keep
        return keep is Keep.ALL or (keep is Keep.FAILED and failure is not None)

    async def _conclude(
        self, line: Line, key: str | None, outcome: Outcome, number: int, others: list[Attempt]
    ) -> None:
        """Emit the result, then remove the container: in this order nothing is lost."""
        counts, failure = self.counts, outcome.failure
        kept = self._is_kept(failure) and outcome.container is not None
        result = make_result(
            line.number,
            key,
            outcome,
            number,
            tuple(others),
            folder=self._host.store.path(outcome.container or "") if kept else None,
            capture=self._options.capture is not None,
        )
        if failure is None:
            counts.succeeded += 1
        elif failure is Failure.CANCELLED:
            counts.cancelled += 1
        else:
            counts.failures[failure] = counts.failures.get(failure, 0) + 1
        self._changed()
        if failure is not None and self._options.fail_fast and not self._halted:
            # Before the result is written: whoever reads it may take its time.
            if self._options.drain:
                self.halt()
            else:
                self.kill()
        encoded = encode_result(result)
        try:
            if self._ledger is not None:
                self._ledger.append(encoded)
            await self._emit(encoded)
        except OSError as error:
            self._break(error)
            return
        if not kept:
            await self._remove(outcome)

    async def _remove(self, outcome: Outcome) -> None:
        if outcome.own is not None:
            try:
                await outcome.own.remove()
            except CraterunError as error:
                self._complain(str(error))
        elif outcome.container is not None:
            await self._remove_earlier(outcome.container)

    async def _remove_earlier(self, container_id: str, name: str | None = None) -> None:
        """:param name: only if this is its name"""
        store = self._host.store
        if earlier.exists(store, container_id):
            try:
                await in_thread(earlier.remove, store, container_id, name)
            except CraterunError as error:
                self._complain(str(error))
