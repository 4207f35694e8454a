"""The readers of a training sweep: when a run reached a loss, and which rate is the
best.
"""

import math

import pytest

from batchline.bench.stats import fits
from tests.claims_evidence import BATCHES, RATES, TARGET, UNTRAINED, sweep


def run_of(losses, updates=None):
    updates = updates or list(range(0, 10 * len(losses), 10))
    return {
        "batch": 4,
        "learning_rate": 0.1,
        "seed": 0,
        "diverged": False,
        "curve": {
            "updates": updates,
            "train_loss": losses,
            "train_s": [count / 1000 for count in updates],
            "test_accuracy": [None, *(count / 100 for count in updates[1:])],
        },
    }


def test_a_target_between_two_evaluations_is_met_on_the_line_of_the_logarithm():
    losses = [2.0 * math.exp(-count / 7) for count in range(0, 50, 10)]
    for target in (1.9, 1.0, 0.5, 0.02):
        updates, train_s = fits.first_reach(run_of(losses), target)
        assert updates == pytest.approx(
            7 * math.log(2 / target)
        ) and train_s == pytest.approx(updates / 1000)


@pytest.mark.parametrize(
    "losses, target, updates",
    [
        ([2.0, 1.0, 0.5], 0.4, None),
        ([2.0, 1.0, 0.5], 0.5, 20),
        ([2.0, 1.0], 2.0, 0),
        ([2.0, 1.0, 3.0, 0.5], 1.0, 10),
        ([2.0, 0.0], 0.5, 10),
        ([], 0.5, None),
    ],
    ids=[
        "never",
        "at the end",
        "untrained",
        "the first of two",
        "a loss of zero",
        "no evaluation",
    ],
)
def test_the_first_time_at_a_target(losses, target, updates):
    reach = fits.first_reach(run_of(losses), target)
    assert reach is None if updates is None else reach[0] == pytest.approx(updates)


@pytest.mark.parametrize(
    "updates, value",
    [(10, 0.1), (15, 0.15), (5, 0.1), (0, None), (20, 0.2), (21, None)],
)
def test_a_value_after_so_many_updates(updates, value):
    found = fits.value_at(run_of([2.0, 1.0, 0.5]), updates, "test_accuracy")
    assert found is None if value is None else found == pytest.approx(value)


def test_the_best_rate_takes_the_fewest_updates():
    for best in RATES:
        record = sweep(best=best)
        assert {fits.best_rate(record, batch, TARGET) for batch in BATCHES} == {best}
        assert fits.on_edge(record, 4, best) == (best in (RATES[0], RATES[-1]))


def test_a_rate_at_which_a_seed_fails_is_not_the_best_though_it_is_the_fastest():
    record = sweep(best=0.5)
    for run in record["runs"]:
        if run["learning_rate"] == 0.5 and run["seed"] == 3:
            run["curve"]["train_loss"] = [UNTRAINED] * len(run["curve"]["updates"])
    assert fits.best_rate(record, 4, TARGET) == 0.25
    assert fits.best_rate(sweep(fails=lambda batch, rate: True), 4, TARGET) is None


def test_a_rate_with_fewer_seeds_is_not_the_best():
    record = sweep(best=0.5)
    record["runs"] = [
        run for run in record["runs"] if run["learning_rate"] < 0.5 or run["seed"] < 2
    ]
    assert fits.best_rate(record, 4, TARGET) == 0.25
    assert fits.best_rate_for_budget(record, 4, 1000) == 0.25


def test_the_best_rate_for_a_budget_has_the_least_loss_there_and_never_diverged():
    assert fits.best_rate_for_budget(sweep(best=0.25), 4, 500) == 0.25
    assert fits.best_rate_for_budget(
        sweep(best=0.25, fails=lambda batch, rate: rate == 0.25), 4, 500
    ) in (0.125, 0.5)
