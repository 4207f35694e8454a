"""The noise scale against known truths: gradients of one Gaussian, whose B_simple is Pσ²/‖G‖²."""
import math

import numpy as np
import pytest

from bench.noise.estimators import NoiseScale, noise_scale

PARAMETERS, SIGMA = 200, 0.7


def _batches(batch, count, seed):
    """‖G‖² and the estimates of so many independent batches of gradients G + σ·e."""
    random = np.random.default_rng(seed)
    true = random.normal(size=PARAMETERS) * 0.5
    estimates = []
    for _ in range(count):
        g = true + SIGMA * random.normal(size=(batch, PARAMETERS))
        estimates.append(noise_scale(float(np.square(g.mean(0)).sum()), np.square(g).sum(1)))
    return float(true @ true), estimates


@pytest.mark.parametrize("batch", [2, 3, 16])
def test_of_a_gaussian_it_is_unbiased_and_within_its_standard_error(batch):
    """Var S = 2Pσ⁴/(B−1), Var G2 = 4σ²‖G‖²/B + 2Pσ⁴/(B(B−1)); the ratio's error is the two, relative."""
    count = 2000
    square, estimates = _batches(batch, count, seed=batch)
    trace = PARAMETERS * SIGMA ** 2
    error_of_trace = math.sqrt(2 * PARAMETERS * SIGMA ** 4 / (batch - 1) / count)
    error_of_square = math.sqrt((4 * SIGMA ** 2 * square / batch
                                 + 2 * PARAMETERS * SIGMA ** 4 / (batch * (batch - 1))) / count)
    found = NoiseScale(float(np.mean([estimate.trace for estimate in estimates])),
                       float(np.mean([estimate.square for estimate in estimates])))
    assert abs(found.trace - trace) < 4 * error_of_trace
    assert abs(found.square - square) < 4 * error_of_square
    off = math.hypot(error_of_trace / trace, error_of_square / square)
    assert found.simple == pytest.approx(trace / square, rel=4 * off)
    spread = np.std([estimate.trace for estimate in estimates]) / math.sqrt(count)
    assert spread == pytest.approx(error_of_trace, rel=0.1)


def test_by_hand():
    found = noise_scale(2.5, [1, 9])  # gradients 1 and 3 with nothing in common but their mean's 2.5
    assert (found.trace, found.square, found.simple) == (5.0, 0.0, math.inf)
    assert noise_scale(4.0, (4.0, 4.0, 4.0)) == NoiseScale(trace=0.0, square=4.0)


def test_nothing_is_clamped():
    found = noise_scale(0.1, np.array([1.0, 1.0]))
    assert found.square == pytest.approx(-0.8) and found.simple < 0


def test_lists_and_arrays_are_alike():
    n = np.random.default_rng(0).random(50)
    assert noise_scale(0.2, n) == noise_scale(0.2, n.tolist())


@pytest.mark.parametrize("batch", [0, 1])
def test_of_one_sample_there_is_no_variance(batch):
    with pytest.raises(ValueError, match=f"needs two samples or more, and this batch has {batch}"):
        noise_scale(1.0, [1.0] * batch)
