"""What a person reads of a batch."""

from __future__ import annotations

from craterun.batch.options import Counts
from craterun.cli.batchview import duration, rate, summary


def test_the_summary_says_what_there_was_and_nothing_else() -> None:
    assert summary(Counts(succeeded=1), 0.5) == "1 job: 1 succeeded, 0 failed; 0.5 s, 2.0/s"
    counts = Counts(
        succeeded=90, cancelled=1, skipped=5, skipped_failed=2, retried=4,
        failures={"timeout": 2, "exit": 7},
    )  # fmt: skip
    assert summary(counts, 100) == (
        "100 jobs: 90 succeeded, 9 failed (7 exit, 2 timeout), 1 cancelled, 4 tried again, "
        "5 done before (2 failed); 1 min 40 s, 1.0/s"
    )


def test_durations_and_rates_are_short() -> None:
    assert [duration(s) for s in (0.4, 59, 61, 3599.9, 7500)] == [
        "0 s", "59 s", "1 min 1 s", "1 h 0 min", "2 h 5 min",
    ]  # fmt: skip
    assert [rate(3, 2), rate(300, 2), rate(0, 0)] == ["1.5/s", "150/s", "0.0/s"]
