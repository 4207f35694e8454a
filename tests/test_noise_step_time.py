"""t(B) and its law, and the batch of the least t(B)·(1 + φ/B): against closed forms and
against trying every batch.
"""

import math

import numpy as np
import pytest

from batchline.bench.noise.step_time import StepTimes, curve, fit_law, signal_weight

BATCHES = np.array([1.0, 2, 4, 8, 16, 32, 64, 128, 256, 512])
BENT = np.array(
    [3.0, 3.1, 3.0, 3.4, 4.5, 8.0, 9.0, 30.0, 60.0, 150.0]
)  # flat, a step, a cliff, growing superlinearly


def _line(alpha, beta, batches=BATCHES):
    return curve(batches, alpha + beta * batches)


def _training(line, batch, noise_scale):
    """t(B)·(1 + φ/B), by its definition; of an unbounded φ the time a sample."""
    return line.step_s(batch) * (
        1 / batch if math.isinf(noise_scale) else 1 + noise_scale / batch
    )


@pytest.mark.parametrize(
    "alpha, beta", [(1e-3, 1e-5), (0.0, 2e-4), (5.0, 0.0), (1e-6, 1e-3)]
)
def test_a_line_is_recovered(alpha, beta):
    line = _line(alpha, beta)
    assert (line.alpha_s, line.beta_s) == (
        pytest.approx(alpha, abs=1e-12),
        pytest.approx(beta, abs=1e-12),
    )
    assert np.abs(line.residuals).max() < 1e-9
    assert [line.step_s(batch) for batch in (1, 3, 100, 512, 5000)] == pytest.approx(
        [alpha + beta * batch for batch in (1, 3, 100, 512, 5000)], rel=1e-9
    )


def test_one_wild_time_moves_the_law_little_and_stands_in_the_residuals():
    times = 1e-3 + 1e-5 * BATCHES
    times[4] *= 5
    alpha, beta = fit_law(BATCHES, times)
    assert alpha == pytest.approx(1e-3, rel=0.01) and beta == pytest.approx(
        1e-5, rel=0.01
    )
    residuals = curve(BATCHES, times).residuals
    assert np.argmax(np.abs(residuals)) == 4 and residuals[4] == pytest.approx(
        4, rel=0.02
    )


def test_the_law_has_no_part_below_zero():
    alpha, beta = fit_law(BATCHES, 1e-5 * BATCHES**1.3)
    assert alpha == 0 and beta > 0
    alpha, beta = fit_law(BATCHES, 1e-3 * BATCHES**-0.01)
    assert beta == 0 and alpha == pytest.approx(1e-3, rel=0.05)


def test_every_draw_is_fitted_like_it_would_be_alone():
    times = np.random.default_rng(0).lognormal(0, 0.1, (20, len(BATCHES))) * (
        1e-3 + 1e-5 * BATCHES
    )
    alpha, beta = fit_law(BATCHES, times)
    alone = np.array([fit_law(BATCHES, one) for one in times])
    assert np.allclose(alpha, alone[:, 0], rtol=1e-12) and np.allclose(
        beta, alone[:, 1], rtol=1e-12
    )


def test_between_batches_the_measured_times_count_and_beyond_them_the_law_scaled_to_the_last():
    bent = curve(BATCHES, BENT)
    assert [bent.step_s(batch) for batch in BATCHES] == pytest.approx(BENT)
    assert bent.step_s(96) == pytest.approx(19.5)
    law = bent.alpha_s + bent.beta_s * np.array([512, 1024])
    assert bent.step_s(1024) == pytest.approx(150 * law[1] / law[0])


@pytest.mark.parametrize("noise_scale", [0.3, 7.0, 100.0, 3000.0, math.inf])
@pytest.mark.parametrize(
    "times",
    [1e-3 + 1e-5 * BATCHES, BENT, 1e-5 * BATCHES, np.ones(len(BATCHES))],
    ids=["line", "bent", "through 0", "constant"],
)
@pytest.mark.parametrize("most", [1, 37, 290, 512, 700])
def test_the_fastest_and_those_near_it_are_what_trying_every_batch_finds(
    times, noise_scale, most
):
    tried = curve(BATCHES, times)
    weight = signal_weight(noise_scale)
    training = np.array(
        [_training(tried, batch, noise_scale) for batch in range(1, most + 1)]
    )
    best = int(tried.fastest(weight, most))
    assert training[best - 1] == pytest.approx(training.min(), rel=1e-12)
    low, high = tried.within(1.05, best, weight, most)
    near = training <= 1.05 * training[best - 1]
    assert near[low - 1 : high].all()
    assert (low == 1 or not near[low - 2]) and (high == most or not near[high])


@pytest.mark.parametrize(
    "alpha, beta, noise_scale",
    [(1e-3, 1e-6, 50.0), (1e-3, 1e-5, 1e6), (0.2, 1e-3, 3.0)],
)
def test_on_a_line_the_fastest_has_its_closed_form(alpha, beta, noise_scale):
    line, weight = _line(alpha, beta), signal_weight(noise_scale)
    best = float(line.fastest(weight, math.inf))
    assert abs(best - math.sqrt(alpha * noise_scale / beta)) < 1
    least = (math.sqrt(alpha) + math.sqrt(beta * noise_scale)) ** 2
    assert least * (1 - 1e-12) <= _training(line, best, noise_scale) < 1.001 * least


def test_without_an_end_the_fastest_is_infinite_and_so_may_be_the_near_ones():
    flat = _line(1.0, 0.0)
    assert math.isinf(flat.fastest(signal_weight(10.0), math.inf))
    assert flat.fastest(signal_weight(10.0), 4096.0) == 4096
    assert math.isinf(_line(1.0, 1.0).fastest(0.0, math.inf))
    low, high = flat.within(1.05, 1000, signal_weight(100.0), math.inf)
    assert high is None and low == math.ceil(
        100 / (1.05 * 1.1 - 1)
    )  # of a constant step: 1 + 100/B ≤ 1.05·1.1


def test_draws_each_have_their_own_weight_and_limit():
    generator = np.random.default_rng(1)
    times = generator.lognormal(0, 0.2, (50, len(BATCHES))) * BENT
    weights, most = signal_weight(generator.lognormal(4, 2, 50)), generator.integers(
        1, 600, 50
    )
    together = curve(BATCHES, times).fastest(weights, most)
    assert together.tolist() == [
        float(curve(BATCHES, one).fastest(weight, limit))
        for one, weight, limit in zip(times, weights, most)
    ]


def test_redrawn_medians_spread_as_medians_do():
    generator = np.random.default_rng(2)
    samples = generator.normal(1.0, 0.05, 101)
    times = StepTimes.of(
        [{"batch": 2, "samples_s": [2.0]}, {"batch": 1, "samples_s": samples}]
    )
    assert times.batches.tolist() == [1, 2]
    drawn = times.redrawn(4000, generator)
    medians = drawn.intercepts[:, 1] + drawn.slopes[:, 1]
    assert medians.std() == pytest.approx(
        1.253 * 0.05 / math.sqrt(101), rel=0.35
    )  # the normal's median
    assert np.allclose(drawn.intercepts[:, 1] + 2 * drawn.slopes[:, 1], 2.0)


@pytest.mark.parametrize(
    "steps, words",
    [
        ([], "these are at none"),
        ([{"batch": 8, "samples_s": [1.0]}], "two batch sizes or more"),
        ([{"batch": 8, "samples_s": [1.0]}] * 2, "each once"),
        (
            [{"batch": 0, "samples_s": [1.0]}, {"batch": 8, "samples_s": [1.0]}],
            "1 or more",
        ),
        (
            [{"batch": 1, "samples_s": []}, {"batch": 8, "samples_s": [1.0]}],
            "at batch 1 must be seconds above 0",
        ),
        (
            [
                {"batch": 1, "samples_s": [1.0, math.nan]},
                {"batch": 8, "samples_s": [1.0]},
            ],
            "nan",
        ),
        (
            [{"batch": 1, "samples_s": [1.0]}, {"batch": 8, "samples_s": [-1.0]}],
            "at batch 8",
        ),
    ],
)
def test_what_is_no_step_time_is_an_error_of_one_line(steps, words):
    with pytest.raises(ValueError, match=words) as error:
        StepTimes.of(steps)
    assert "\n" not in str(error.value)
