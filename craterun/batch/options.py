"""How a batch is run, and how far it is."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from craterun.batch.job import Job
from craterun.batch.results import RETRIED, Failure

HOST_RETRIES = 2
"""How often, at least, what the host has failed at is tried again: that says nothing of the job."""


class Keep(StrEnum):
    """Which containers stay, with their logs."""

    ALL = "all"
    FAILED = "failed"
    NONE = "none"


class Orphans(StrEnum):
    """What to do with containers that outlived the batch that had started them.

    WAIT: their end counts, and nothing is run twice. Of what they wrote in the very moment in which
    their batch was killed, a piece may be missing. RERUN: they are killed, and their jobs are run
    again.
    """

    WAIT = "wait"
    RERUN = "rerun"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a batch is run.

    :ivar jobs: containers at once
    :ivar defaults: what holds for lines that say nothing else
    :ivar retries: further attempts for a job that has failed in one of the ways of ``retry_on``
    :ivar fail_fast: at the first failure, read no further and end what runs
    :ivar drain: with ``fail_fast``, let what runs go on to its end
    :ivar capture: bytes of each output stream that belong to the result; None: none do
    :ivar keep: which containers are not removed
    :ivar orphans: with a ledger of a batch that was killed, what to do with its containers
    """

    jobs: int
    defaults: Job = Job()
    retries: int = 0
    retry_on: frozenset[Failure] = RETRIED
    fail_fast: bool = False
    drain: bool = False
    capture: int | None = None
    keep: Keep = Keep.ALL
    orphans: Orphans = Orphans.WAIT

    @property
    def attempts(self) -> int:
        """How many containers a job can get."""
        return 1 + self.retries + max(self.retries, HOST_RETRIES)


class Counts(msgspec.Struct):
    """How far a batch is.

    :ivar skipped: done by an earlier batch that this one goes on with, those that failed included
    :ivar failures: of this batch, by kind, without those of `Failure.CANCELLED`
    :ivar retried: attempts that another one followed
    """

    running: int = 0
    succeeded: int = 0
    cancelled: int = 0
    skipped: int = 0
    skipped_failed: int = 0
    retried: int = 0
    failures: dict[str, int] = {}

    @property
    def failed(self) -> int:
        """Of this batch."""
        return sum(self.failures.values())

    @property
    def done(self) -> int:
        """Jobs with a result of this batch."""
        return self.succeeded + self.failed + self.cancelled
