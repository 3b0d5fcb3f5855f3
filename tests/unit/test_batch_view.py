"""What a person reads of a batch."""

from __future__ import annotations

import pytest
import trio

from craterun.batch.options import Counts
from craterun.cli.batchview import BatchView, duration, hint, rate, summary


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


@pytest.mark.parametrize(
    ("consumed", "halted", "shown"), [(50, False, True), (100, False, False), (50, True, False)]
)
def test_the_time_that_is_left_is_told_only_while_there_are_lines_to_be_read(
    consumed: int, halted: bool, shown: bool
) -> None:
    async def main() -> None:
        counts = Counts(running=1)
        read = 0
        view = BatchView(counts, lambda: read, 100, lambda: halted)
        view.changed()
        read, counts.succeeded = consumed, 5
        assert (" left" in view.text()) == shown
        view.close()

    trio.run(main)


def test_what_the_host_has_failed_at_can_be_run_again_if_there_is_a_file_of_results() -> None:
    assert hint(Counts(failures={"exit": 2}), output=True) is None
    counts = Counts(failures={"exit": 2, "error": 3})
    assert hint(counts, output=False) is None
    assert hint(counts, output=True) == (
        "3 jobs failed by fault of the host (see error in the results); when that is mended, run "
        "them again by --resume --rerun-failed"
    )
