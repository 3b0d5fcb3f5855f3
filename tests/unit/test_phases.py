"""Times of three processes become the phases of one life, with no gaps and no nonsense."""

from __future__ import annotations

import msgspec

from craterun.core.phases import Asked, Ended, Phases, Started, of_start, with_end

US = 1000
ASKED = Asked(10 * US, 12 * US, 15 * US)
STARTED = Started(19 * US, 24 * US, 30 * US, 37 * US)
ENDED = Ended(37 * US, 45 * US)


def whole() -> Phases:
    return with_end(of_start(ASKED, STARTED), ENDED, 54 * US, 64 * US, 75 * US)


def test_each_phase_ends_where_the_next_begins() -> None:
    lengths = msgspec.structs.astuple(whole())
    assert lengths == (2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    assert sum(lengths) == 75 - 10


def test_what_nobody_knows_is_unknown_and_not_zero() -> None:
    phases = of_start(Asked(), STARTED)
    assert (phases.queue, phases.prepare, phases.request) == (None, None, None)
    assert (phases.clone, phases.setup, phases.exec) == (5, 6, 7)
    assert of_start(Asked(), Started()) == Phases()
    assert with_end(None, Ended(), 0, 0, 75 * US) == Phases()


def test_a_supervisor_that_took_over_knows_the_rest() -> None:
    phases = with_end(None, ENDED, 54 * US, 64 * US, 75 * US)
    assert phases == Phases(run=8, exit_notice=9, drain=10, conclude=11)


def test_a_time_in_the_wrong_place_is_not_believed() -> None:
    for executing in (0, 18 * US, 38 * US):
        phases = of_start(ASKED, msgspec.structs.replace(STARTED, executing=executing))
        assert (phases.setup, phases.exec) == (None, None)
        assert phases.clone == 5


def test_a_child_that_is_ahead_of_its_parent_has_no_negative_phase() -> None:
    phases = of_start(ASKED, msgspec.structs.replace(STARTED, executing=22 * US))
    assert phases.setup == 0
