"""Changes in a history are found, and noise is not one: the calibration of the
docstring, repeated in small.
"""

import numpy as np
import pytest

from batchline.bench.stats import fits as module
from batchline.bench.stats.fits import LEAST_RUNS, change_points, run_noise

NOISE, STEP = 0.02, np.log(1.05)


def flat(rng, runs, phi=0.0, spikes=0.0):
    """Logarithms of AR(1) noise, some runs slower by 5% to 50%."""
    noise = rng.normal(0, 1, runs)
    for i in range(1, runs):
        noise[i] = phi * noise[i - 1] + (1 - phi**2) ** 0.5 * noise[i]
    return NOISE * noise + np.where(
        rng.random(runs) < spikes, rng.uniform(0.05, 0.5, runs), 0
    )


def found(rng, before, after, **noise):
    logs = flat(rng, before + after, **noise)
    logs[before:] += STEP
    return any(
        abs(change.index - before) <= 3 for change in change_points(np.exp(logs))
    )


@pytest.mark.parametrize("phi", [0.0, 0.3])
@pytest.mark.parametrize("spikes", [0.0, 0.02])
def test_at_most_one_flat_history_in_a_hundred_shows_a_change(phi, spikes):
    rng = np.random.default_rng(7)
    alarms = [
        bool(change_points(np.exp(flat(rng, runs, phi, spikes))))
        for runs in (10, 16, 30, 100, 200)
        for _ in range(160)
    ]
    assert (
        sum(alarms) <= 15
    )  # of 800: twice as many as 1%, less than one in 200 tests would see by luck


@pytest.mark.parametrize(
    "before, after, least",
    [(20, 20, 0.85), (100, 8, 0.75), (8, 100, 0.75), (8, 8, 0.3)],
)
@pytest.mark.parametrize("spikes", [0.0, 0.02])
def test_a_step_of_5_percent_is_found(before, after, least, spikes):
    rng = np.random.default_rng(8)
    assert (
        np.mean([found(rng, before, after, spikes=spikes) for _ in range(150)]) >= least
    )


def test_levels_and_places_of_several_changes():
    rng = np.random.default_rng(9)
    logs = flat(rng, 60) / 4
    logs[20:] += np.log(1.3)
    logs[40:] -= np.log(1.2)
    first, second = change_points(1e-3 * np.exp(logs))
    assert (first.index, second.index) == (20, 40)
    assert first.effect == pytest.approx(
        0.3, abs=0.01
    ) and second.effect == pytest.approx(1 / 1.2 - 1, abs=0.01)
    assert (
        first.before == pytest.approx(1e-3, rel=0.01) and first.after == second.before
    )


def test_two_slow_runs_in_a_row_are_no_change():
    values = np.exp(flat(np.random.default_rng(10), 30))
    values[[12, 13]] *= 1.6
    assert change_points(values) == []


def test_the_noise_scale_is_the_noise_and_not_the_step():
    logs = flat(np.random.default_rng(11), 400)
    logs[200:] += 1.0
    assert run_noise(logs) == pytest.approx(NOISE, rel=0.2)


def test_identical_runs_and_tiny_steps_are_no_change():
    assert change_points([1e-6] * 40) == []
    assert change_points([1e-6] * 20 + [1.002e-6] * 20) == []


def test_too_few_runs_are_not_judged():
    step = [1.0] * 5 + [9.0] * 5
    assert len(step) == LEAST_RUNS and len(change_points(step)) == 1
    assert change_points(step[1:]) == [] and change_points([]) == []


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_time_is_refused(bad):
    with pytest.raises(ValueError, match="positive finite"):
        module.change_points([1.0] * 12 + [bad])
