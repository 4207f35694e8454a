"""Prediction against measurement, on sweeps whose law is known."""

import json
import math

import numpy as np
import pytest

from batchline.bench.noise.time_to_target import compare, steps_of
from batchline.bench.stats.intervals import Interval
from batchline.bench.stats.noise_scale import (
    NO_SIGNAL,
    NO_UPPER_BOUND,
    NoiseEstimate,
    NoiseScale,
)

BATCHES, SEEDS, LEAST, PHI = (4, 16, 64, 256, 1024), range(5), 200.0, 50.0
RATE, OTHERS, TARGET = 0.5, (0.25, 1.0), 0.1


def _step_s(batch):
    return 1e-3 + 1e-5 * batch


def _run(batch, rate, seed, updates):
    """A loss that falls exponentially from 1 and is at the target after `updates`;
    looked at every tenth of the way.
    """
    steps = [round(updates * part / 10) for part in range(16)]
    losses = [TARGET ** (step / updates) for step in steps]
    return {
        "batch": batch,
        "learning_rate": rate,
        "seed": seed,
        "diverged": False,
        "curve": {
            "updates": steps,
            "train_loss": losses,
            "train_s": [step * _step_s(batch) for step in steps],
        },
    }


def a_sweep(spread=0.0, updates_at=lambda batch: LEAST * (1 + PHI / batch), seed=0):
    generator = np.random.default_rng(seed)
    runs = [
        _run(
            batch,
            rate,
            one,
            updates_at(batch)
            * (1 if rate == RATE else 2)
            * generator.lognormal(0, spread),
        )
        for batch in BATCHES
        for rate in (RATE, *OTHERS)
        for one in SEEDS
    ]
    return {"workload": "digits", "grid": {"target_loss": TARGET}, "runs": runs}


def noise(simple=PHI, low=40.0, high=60.0, answer="bounded", square=1.0):
    whole = Interval(-math.inf, math.inf)
    return {
        "after 50 updates": NoiseEstimate(
            NoiseScale(simple, square),
            whole,
            whole,
            Interval(low, high),
            answer,
            32,
            20,
            "given",
            0.95,
        ).to_json()
    }


STEPS = [{"batch": batch, "samples_s": [_step_s(batch)]} for batch in BATCHES]


def test_a_sweep_that_keeps_the_law_is_predicted_by_both():
    result = compare(a_sweep(), STEPS, noise())
    gradients, fitted = result.predictions
    assert (
        fitted.noise_scale == pytest.approx(PHI, rel=0.02)
        and gradients.noise_scale == PHI
    )
    assert [one.least_updates for one in result.predictions] == pytest.approx(
        [LEAST, LEAST], rel=0.01
    )
    for measured, one, other in zip(result.measured, gradients.batches, fitted.batches):
        exact = LEAST * (1 + PHI / measured.batch)
        assert (
            measured.learning_rate == RATE
            and (measured.reached, measured.seeds) == (5, 5)
            and not measured.on_edge
        )
        assert measured.updates.median == pytest.approx(exact, rel=0.01)
        assert measured.examples.median == pytest.approx(
            measured.batch * measured.updates.median
        )
        assert measured.time_s.median == pytest.approx(
            exact * _step_s(measured.batch), rel=0.01
        )
        assert (
            one.time_s
            == pytest.approx(exact * _step_s(measured.batch), rel=0.01)
            == other.time_s
        )
    assert result.confidence == pytest.approx(0.9375) and all(
        "1.0" in words for words in result.sentences
    )
    json.dumps(result.to_json(), allow_nan=False)


def test_the_fitted_interval_holds_the_true_critical_batch_size():
    held = []
    for seed in range(60):
        low, high = (
            compare(a_sweep(spread=0.1, seed=seed), STEPS).predictions[-1].interval
        )
        held.append(low <= PHI <= high)
    assert (
        0.87 <= np.mean(held) <= 1
    )  # nominal 95%, and 60 draws: two standard errors are 0.056


def test_a_wrong_noise_scale_is_said_at_the_batch_where_it_is_worst():
    result = compare(a_sweep(), STEPS, noise(simple=5.0, low=4.0, high=6.0))
    words = result.sentences[0]
    ratios = {
        one.batch: one.time_s / measured.time_s.median
        for measured, one in zip(result.measured, result.predictions[0].batches)
    }
    worst = max(ratios, key=lambda batch: abs(math.log(ratios[batch])))
    assert worst == 4 and f"at B = {worst} the model says" in words
    assert f"is {1 / ratios[worst]:.2f}x" in words
    quickest = min(result.measured, key=lambda one: one.time_s.median)
    assert f"the time of the fastest, {quickest.batch} (" in words


def test_what_is_wrong_in_updates_does_not_depend_on_the_times():
    slow = [{**step, "samples_s": [3 * step["samples_s"][0]]} for step in STEPS]
    said = [compare(a_sweep(), steps, noise()).of_updates for steps in (STEPS, slow)]
    assert said[0] == said[1]
    assert said[0].startswith("In updates alone, which the machine has no part in")
    wrong = compare(a_sweep(), STEPS, noise(simple=10 * PHI))
    batch, off = max(
        (
            (one.batch, max(one.updates / true, true / one.updates))
            for one in wrong.predictions[0].batches
            for true in [LEAST * (1 + PHI / one.batch)]
        ),
        key=lambda pair: pair[1],
    )
    assert f"it is {off:.2f}x at B = {batch} with" in wrong.of_updates


def test_the_band_of_a_prediction_is_from_the_ends_of_its_interval():
    (band,) = (
        one.time_band_s
        for one in compare(a_sweep(), STEPS, noise()).predictions[0].batches[:1]
    )
    ends = [
        compare(a_sweep(), STEPS, noise(simple=end, low=end, high=end))
        .predictions[0]
        .batches[0]
        .time_s
        for end in (40.0, 60.0)
    ]
    assert band == pytest.approx(tuple(sorted(ends)))


def test_an_unbounded_noise_scale_predicts_updates_as_one_over_the_batch():
    result = compare(
        a_sweep(updates_at=lambda batch: 1e5 / batch),
        STEPS,
        noise(square=-0.1, low=1e4, high=math.inf, answer=NO_UPPER_BOUND),
    )
    gradients, fitted = result.predictions
    assert gradients.noise_scale is None and gradients.least_updates == 0
    assert [one.updates for one in gradients.batches] == pytest.approx(
        [1e5 / batch for batch in BATCHES], rel=0.02
    )
    assert fitted.noise_scale > 100 * max(BATCHES)
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    "estimates", [None, noise(low=0.0, high=math.inf, answer=NO_SIGNAL)]
)
def test_without_a_noise_scale_the_fit_stands_alone(estimates):
    assert [one.source for one in compare(a_sweep(), STEPS, estimates).predictions] == [
        "the critical batch size fitted to this sweep"
    ]


def test_a_batch_that_not_all_seeds_bring_to_the_target_is_a_row_and_no_part_of_the_fit():
    sweep = a_sweep()
    for run in sweep["runs"]:
        if run["batch"] == 1024 and (run["seed"] < 2 or run["learning_rate"] != RATE):
            run["curve"]["train_loss"] = [1.0] * len(run["curve"]["train_loss"])
        if run["batch"] == 256:
            run["curve"]["train_loss"] = [1.0] * len(run["curve"]["train_loss"])
    result = compare(sweep, STEPS, noise())
    *_, never, rarely = result.measured
    assert (rarely.reached, rarely.seeds, rarely.updates.high) == (
        3,
        5,
        None,
    ) and rarely.updates.median > 0
    assert (never.learning_rate, never.updates.median, never.seeds) == (None, None, 0)
    assert result.predictions[-1].noise_scale == pytest.approx(PHI, rel=0.02)
    assert result.confidence == pytest.approx(0.9375) and result.sentences


def test_too_few_batches_that_reach_the_target_make_no_law():
    with pytest.raises(
        ValueError,
        match="3 batch sizes at which every seed reaches a loss of 1e-09, and 0 do",
    ):
        compare(a_sweep(), STEPS, target_loss=1e-9)


def test_the_sweeps_own_steps_are_its_seconds_over_its_updates():
    for step in steps_of(a_sweep()):
        assert step["samples_s"] == pytest.approx([_step_s(step["batch"])] * 15)
