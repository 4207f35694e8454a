"""How often the gate is wrong, and what it sees, on simulated sessions: bounds at 99%
confidence (Clopper-Pearson).
"""

import numpy as np
import pytest
from scipy.stats import binomtest

from batchline.bench.store.regressions import (
    EQUIVALENT,
    IMPROVED,
    INCONCLUSIVE,
    REGRESSED,
    UNCONFIRMED,
)
from batchline.bench.verdicts.gate import Floor, decide
from batchline.bench.verdicts.paired import over_batches
from tests import traces

LEAST = Floor(0.01, "least")
BATCHES = tuple(2**power for power in range(8))


def verdicts(noise, sessions, cases, changed=0, change=0.0):
    """Sessions × cases; the first `changed` cases of each have changed."""
    rng = np.random.default_rng(7)
    changes = np.where(np.arange(cases) < changed, change, 0.0)
    floors = dict.fromkeys(map(str, range(cases)), LEAST)
    return np.array(
        [
            [
                one.verdict
                for one in decide(
                    dict(zip(floors, traces.session(rng, noise, changes).tolist())),
                    floors,
                ).values()
            ]
            for _ in range(sessions)
        ]
    )


def at_least(successes):
    return (
        binomtest(int(successes.sum()), successes.size).proportion_ci(0.98, "exact").low
    )


def at_most(successes):
    return (
        binomtest(int(successes.sum()), successes.size)
        .proportion_ci(0.98, "exact")
        .high
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", traces.KINDS)
def test_at_most_one_session_in_a_hundred_without_a_change_has_a_false_alarm(kind):
    found = verdicts(traces.KINDS[kind], sessions=470, cases=30)
    assert at_most(np.isin(found, [REGRESSED, IMPROVED]).any(axis=1)) <= 0.01
    assert at_most((found == UNCONFIRMED).any(axis=1)) <= 0.02


@pytest.mark.slow
def test_nor_does_one_have_a_kernel_that_changed_over_its_batch_sizes():
    rng, alarms = np.random.default_rng(8), []
    floors = {
        f"bmm/k{kernel}/s/float16/B{batch}": LEAST
        for kernel in range(4)
        for batch in BATCHES
    }
    for _ in range(470):
        ratios = traces.session(
            rng, traces.KINDS["two modes"], np.zeros(len(floors))
        ).tolist()
        alarms.append(
            any(
                kernel.verdict not in (EQUIVALENT, INCONCLUSIVE)
                for kernel in over_batches(dict(zip(floors, ratios)), floors)
            )
        )
    assert at_most(np.array(alarms)) <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    "noise, change, power, sessions",
    [
        (traces.NOTES, 0.05, 0.95, 100),
        (traces.DOUBLE, 0.05, 0.8, 300),
        (traces.NOTES, 0.1, 0.99, 100),
        (traces.DOUBLE, 0.1, 0.99, 100),
    ],
    ids=["notes +5%", "double +5%", "notes +10%", "double +10%"],
)
def test_a_slowdown_of_five_cases_in_a_hundred_is_seen(noise, change, power, sessions):
    found = verdicts(noise, sessions, cases=100, changed=5, change=change)
    assert at_least(found[:, :5] == REGRESSED) >= power


@pytest.mark.parametrize(
    "noise, power",
    [(traces.NOTES, 0.99), (traces.DOUBLE, 0.95)],
    ids=["notes", "double"],
)
def test_a_slowdown_of_the_only_case_is_seen(noise, power):
    assert (
        at_least(verdicts(noise, 1200, cases=1, changed=1, change=0.05) == REGRESSED)
        >= power
    )


def test_as_much_faster_is_seen_as_well():
    assert (
        at_least(
            verdicts(traces.NOTES, 100, cases=100, changed=5, change=-0.05)[:, :5]
            == IMPROVED
        )
        >= 0.95
    )


@pytest.mark.slow
def test_of_three_hundred_cases_the_ten_that_changed_are_seen_and_next_to_no_others():
    found = verdicts(traces.NOTES, 100, cases=300, changed=10, change=0.05)
    assert at_least(found[:, :10] == REGRESSED) >= 0.95
    assert at_most(np.isin(found[:, 10:], [REGRESSED, IMPROVED]).any(axis=1)) <= 0.05


@pytest.mark.slow
def test_what_did_not_change_is_never_taken_for_slower_at_the_very_floor():
    """The worst that noise may be: as much as the floor, in every case."""
    found = verdicts(traces.NOTES, 1200, cases=20, changed=20, change=LEAST.share)
    assert at_most((found == REGRESSED).any(axis=1)) <= 0.01
