"""How signals end a benchmark: the first one comes up, and none where something is half done."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from craterun.bench import signals
from craterun.bench.ground import scratch

INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test process has its own handlers back, and knows of no signal."""
    before = {number: signal.getsignal(number) for number in signals.ENDING}
    monkeypatch.setattr(signals, "_state", signals._State())
    signals.exit_on_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("first", "second"), [(INT, INT), (TERM, INT), (INT, TERM), (TERM, TERM)])
def test_a_second_signal_does_not_come_up_in_the_clean_up(first: int, second: int) -> None:
    done = []
    with pytest.raises(SystemExit) as leaving:  # noqa: PT012
        try:
            signal.raise_signal(first)
        finally:
            signal.raise_signal(second)  # before the clean-up has begun
            with signals.cleaning_up():
                signal.raise_signal(second)
                done.append("cleaned")
    signal.raise_signal(second)  # nor after it
    assert (leaving.value.code, done) == (128 + first, ["cleaned"])


def test_a_directory_is_removed_that_a_signal_has_come_in_the_making_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(prefix: str, dir: str) -> str:  # noqa: A002
        (tmp_path / prefix).mkdir()
        signal.raise_signal(TERM)
        return str(tmp_path / prefix)

    monkeypatch.setattr("tempfile.mkdtemp", made)
    with pytest.raises(SystemExit), scratch("bench", str(tmp_path)):
        pytest.fail("the body is not to begin")
    assert list(tmp_path.iterdir()) == []


def test_a_first_signal_in_a_clean_up_waits_for_its_end(tmp_path: Path) -> None:
    done = []
    with pytest.raises(SystemExit), signals.cleaning_up():  # noqa: PT012
        signal.raise_signal(INT)
        done.append("cleaned")
    assert done == ["cleaned"]


def test_a_signal_that_was_swallowed_is_no_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a finalizer, where Python prints the exception and goes on."""
    monkeypatch.setattr(signals, "_SWALLOWED_SECONDS", 0.0)
    for _ in range(2):
        with pytest.raises(SystemExit):
            signal.raise_signal(TERM)
