"""The noise scale of one batch, of several and of a stream of micro-batches."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from batchline.bench.stats.intervals import (
    Interval,
    around,
    skewed,
    student_t,
)
from batchline.bench.stats.noise_scale import (
    BARELY_ABOVE,
    BOUNDED,
    NO_SIGNAL,
    NO_UPPER_BOUND,
    BatchStatistics,
    NoiseEstimate,
    NoiseScale,
    Stream,
    expected_cosine,
    noise_scale,
    over_batches,
    two_batch_sizes,
    within_batch,
)

PARAMETERS, SIGMA = 200, 0.7


def _batches(batch, count, seed):
    """‖G‖² and the estimates of so many independent batches of gradients G + σ·e."""
    random = np.random.default_rng(seed)
    true = random.normal(size=PARAMETERS) * 0.5
    estimates = []
    for _ in range(count):
        g = true + SIGMA * random.normal(size=(batch, PARAMETERS))
        estimates.append(
            noise_scale(float(np.square(g.mean(0)).sum()), np.square(g).sum(1))
        )
    return float(true @ true), estimates


@pytest.mark.parametrize("batch", [2, 3, 16])
def test_of_a_gaussian_it_is_unbiased_and_within_its_standard_error(batch):
    """Var S = 2Pσ⁴/(B−1), Var G2 = 4σ²‖G‖²/B + 2Pσ⁴/(B(B−1)); the ratio's error is the
    two, relative.
    """
    count = 2000
    square, estimates = _batches(batch, count, seed=batch)
    trace = PARAMETERS * SIGMA**2
    error_of_trace = math.sqrt(2 * PARAMETERS * SIGMA**4 / (batch - 1) / count)
    error_of_square = math.sqrt(
        (
            4 * SIGMA**2 * square / batch
            + 2 * PARAMETERS * SIGMA**4 / (batch * (batch - 1))
        )
        / count
    )
    found = NoiseScale(
        float(np.mean([estimate.trace for estimate in estimates])),
        float(np.mean([estimate.square for estimate in estimates])),
    )
    assert abs(found.trace - trace) < 4 * error_of_trace
    assert abs(found.square - square) < 4 * error_of_square
    off = math.hypot(error_of_trace / trace, error_of_square / square)
    assert found.simple == pytest.approx(trace / square, rel=4 * off)
    spread = np.std([estimate.trace for estimate in estimates]) / math.sqrt(count)
    assert spread == pytest.approx(error_of_trace, rel=0.1)


def test_by_hand():
    found = noise_scale(
        2.5, [1, 9]
    )  # gradients 1 and 3 with nothing in common but their mean's 2.5
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
    with pytest.raises(
        ValueError, match=f"needs two samples or more, and this batch has {batch}"
    ):
        noise_scale(1.0, [1.0] * batch)


def _gradients(batch, seed=0, signal=1.0, parameters=12):
    return signal + np.random.default_rng(seed).normal(size=(batch, parameters))


def _statistics(g):
    mean = g.mean(0)
    return BatchStatistics(mean @ mean, np.square(g).sum(1), g @ mean)


def _scale(g):
    return noise_scale(np.square(g.mean(0)).sum(), np.square(g).sum(1))


@pytest.mark.parametrize("batch", [3, 4, 25])
def test_tr_sigma_within_a_batch_is_the_jackknife_that_leaves_each_sample_out(batch):
    g = _gradients(batch)
    whole = np.array([_scale(g).trace, _scale(g).square])
    left_out = [_scale(np.delete(g, sample, 0)).trace for sample in range(batch)]
    pseudo = batch * whole[0] - (batch - 1) * np.array(left_out)
    quantiles = skewed(
        student_t(0.95, batch - 1), stats.skew(pseudo) / math.sqrt(batch)
    )
    expected = around(pseudo.mean(), pseudo.var(ddof=1) / batch, quantiles)
    found = within_batch(_statistics(g))
    assert (found.trace.low, found.trace.high) == pytest.approx(
        (expected.low, expected.high), rel=1e-9
    )
    assert (found.scale.trace, found.scale.square) == pytest.approx(tuple(whole))
    assert (found.batch, found.batches, found.confidence) == (batch, 1, 0.95)


def _covers(draw, truth, draws, seed=0):
    """How often the interval within a batch covers, is too high as a whole, and misses
    without a warning.
    """
    random = np.random.default_rng(seed)
    found = [within_batch(_statistics(draw(random))) for _ in range(draws)]
    missed = [truth not in one.simple for one in found]
    return (
        1 - np.mean(missed),
        np.mean([one.simple.low > truth for one in found]),
        np.mean([bad and not one.warning for bad, one in zip(missed, found)]),
    )


def test_where_one_direction_has_the_noise_at_least_is_not_too_high():
    """The jackknife's low end was too high in 18% of these (B = 256, B_simple/B = 1), and
    2.5% are claimed: of 300, 15 are past 1 in 1,000.
    """
    scales = np.sqrt(np.array([0.9] + [0.1 / 15] * 15))

    def draw(random):
        return 1 / 64 + scales * random.normal(size=(256, 16))

    assert _covers(draw, 1 / (16 / 64**2), 300)[1] <= 15 / 300


def test_of_a_few_parameters_too():
    def draw(random):
        return math.sqrt(1 / 64) + random.normal(size=(64, 2))

    assert _covers(draw, 2 / (2 / 64), 300)[1] <= 15 / 300


def _of_heavy_tails(random):
    """Of 64 samples, each the longer or shorter as a whole: Student's t with 3 degrees of
    freedom.
    """
    lengths = np.sqrt(3 / random.chisquare(3, size=(64, 1)))
    return 1.7 + lengths * random.normal(size=(64, 32))


def test_of_heavy_tails_few_miss_without_a_warning():
    covered, _, misled = _covers(_of_heavy_tails, 3 / 1.7**2, 300)
    assert covered < 0.97 and misled <= 0.05


def test_of_light_tails_no_warning_is_given():
    random = np.random.default_rng(0)
    found = [
        within_batch(_statistics(1 + random.normal(size=(64, 64)))) for _ in range(50)
    ]
    assert not any(one.warning for one in found)


def test_a_warning_is_with_the_words():
    g = _gradients(64, parameters=50)
    g[7] *= 30
    found = within_batch(_statistics(g))
    share = np.square(g[7]).sum() / np.square(g).sum()
    assert found.warning == f"one of 64 samples has {share:.0%} of Σ‖g‖²"
    assert found.text().endswith(f" (may cover less than 95%: {found.warning})")
    assert found.warnings == (found.warning, found.unseen)


def test_few_samples_are_told_of():
    found = within_batch(_statistics(_gradients(64, parameters=50)))
    assert found.text().endswith(", from 64 samples") and not found.warning
    assert found.warnings == ("64 samples can't show large ones rarer than 1 in 21",)
    enough = within_batch(_statistics(_gradients(1000, parameters=50)))
    assert not enough.warnings and enough.text().endswith(")")
    fewest = within_batch(_statistics(_gradients(15)))
    assert fewest.warning == "15 samples are few"


def test_a_norm_that_is_barely_above_0_is_told_of():
    random = np.random.default_rng(0)
    found = [
        within_batch(_statistics(0.03 + random.normal(size=(64, 64))))
        for _ in range(200)
    ]
    bounded = [one for one in found if one.simple.bounded]
    assert len(bounded) >= 5
    assert sum(one.warning == BARELY_ABOVE for one in bounded) >= len(bounded) - 4


def test_over_few_batches_and_over_uneven_ones_it_warns():
    random = np.random.default_rng(0)
    pairs = [
        NoiseScale(*pair) for pair in random.normal((10, 10), (1, 1), size=(40, 2))
    ]
    assert over_batches(pairs, 8).warning == ""
    assert over_batches(pairs[:11], 8).warning == "11 batches are few"
    pairs[3] = NoiseScale(100.0, 10.0)
    assert over_batches(pairs, 8).warning == "tr Σ is uneven over 40 batches"


def test_an_estimate_that_was_stored_before_there_were_warnings_is_read():
    stored = within_batch(_statistics(_gradients(64))).to_json()
    del stored["warning"]
    assert NoiseEstimate.from_json(stored).warning == ""


def test_of_samples_that_are_all_alike_the_ratio_is_0():
    found = within_batch(_statistics(np.ones((64, 3))))
    assert (found.simple.low, found.simple.high) == pytest.approx((0, 0), abs=1e-8)


def test_samples_at_right_angles_say_nothing_of_a_signal():
    found = within_batch(_statistics(np.eye(64)))
    assert not found.simple.bounded


@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_the_unit_of_the_gradients_does_not_matter(unit):
    for signal in (0.0, 1.0):
        g = _gradients(20, signal=signal)
        found, expected = within_batch(_statistics(g * unit)), within_batch(
            _statistics(g)
        )
        assert found.answer == expected.answer
        assert (found.simple.low, found.simple.high) == pytest.approx(
            (expected.simple.low, expected.simple.high)
        )


def test_layers_add_up_to_the_model():
    g = _gradients(20)
    layers = [_statistics(g[:, :5]), _statistics(g[:, 5:6]), _statistics(g[:, 6:])]
    added, whole = layers[0] + layers[1] + layers[2], _statistics(g)
    assert added.mean_square == pytest.approx(whole.mean_square)
    assert added.squared_norms == pytest.approx(whole.squared_norms)
    assert added.inner_products == pytest.approx(whole.inner_products)
    with pytest.raises(ValueError, match="the same samples: these have 20 and 19"):
        layers[0] + _statistics(g[:19])


def test_over_batches_by_hand():
    found = over_batches(
        [NoiseScale(3.0, 1.0), NoiseScale(5.0, 2.0), NoiseScale(4.0, 3.0)], batch=8
    )
    reach = 4.302653 / math.sqrt(3)
    assert (found.trace.low, found.trace.high) == pytest.approx(
        (4 - reach, 4 + reach), rel=1e-6
    )
    assert (found.square.low, found.square.high) == pytest.approx(
        (2 - reach, 2 + reach), rel=1e-6
    )
    assert found.scale == NoiseScale(4.0, 2.0) and found.pairs == (
        (3, 1),
        (5, 2),
        (4, 3),
    )
    assert (found.batch, found.batches) == (8, 3) and not found.simple.bounded


@pytest.mark.parametrize("small, big", [(1, 2), (4, 32), (1, 4096)])
def test_two_batch_sizes_give_back_what_their_expected_squares_were_made_of(small, big):
    found = two_batch_sizes(small, 3.0 + 50.0 / small, big, 3.0 + 50.0 / big)
    assert (found.trace, found.square) == pytest.approx((50.0, 3.0))


def test_a_sample_and_its_batch_are_two_batch_sizes():
    n, square = np.array([5.0, 9.0, 4.0]), 2.0
    one, whole = noise_scale(square, n), two_batch_sizes(1, n.mean(), 3, square)
    assert (whole.trace, whole.square) == pytest.approx((one.trace, one.square))


@pytest.mark.parametrize("small, big", [(4, 4), (8, 4), (0, 4)])
def test_two_batch_sizes_differ(small, big):
    with pytest.raises(ValueError, match=f"these are {small} and {big}"):
        two_batch_sizes(small, 1.0, big, 1.0)


@pytest.mark.parametrize("batch", [4, 16, 64])
def test_the_cosine_of_independent_batches_is_the_expected_one(batch):
    """In 200 dimensions with B_simple 20: the mean of 500 cosines is off by 2% or four
    standard errors at most.
    """
    random = np.random.default_rng(batch)
    true = np.full(200, math.sqrt(10 / 200))
    first, second = (
        true + random.normal(size=(500, 200)) / math.sqrt(batch) for _ in range(2)
    )
    cosines = (
        (first * second).sum(1)
        / np.linalg.norm(first, axis=1)
        / np.linalg.norm(second, axis=1)
    )
    off = 4 * cosines.std() / math.sqrt(500)
    assert cosines.mean() == pytest.approx(
        expected_cosine(20.0, batch), abs=off, rel=0.02
    )


@pytest.mark.parametrize(
    "signal, answer, words",
    [
        (2.0, BOUNDED, r"^0\.\d+ \(0\.\d+ to 0\.\d+\), from 64 samples$"),
        (
            0.0,
            NO_UPPER_BOUND,
            r"^at least [\d.]+: cannot bound above, from 64 samples$",
        ),
    ],
)
def test_the_answer_and_its_words(signal, answer, words):
    import re

    found = within_batch(_statistics(_gradients(64, signal=signal)))
    assert found.answer == answer and found.simple.bounded == (answer == BOUNDED)
    assert re.match(words, found.text()), found.text()


def test_nothing_known_is_an_answer():
    found = within_batch(_statistics(np.zeros((8, 3))))
    assert found.answer == NO_SIGNAL == found.text() and found.simple == Interval(
        0.0, math.inf
    )


@pytest.mark.parametrize(
    "value, word",
    [
        (23.44, "23.4"),
        (1234.5, "1,234"),
        (0.001234, "0.00123"),
        (99.96, "100"),
        (210.4, "210"),
    ],
)
def test_numbers_have_three_digits(value, word):
    found = NoiseEstimate(
        NoiseScale(value, 1.0),
        Interval(0, 1),
        Interval(0, 1),
        Interval(value, value),
        BOUNDED,
        8,
        125,
        "",
        0.95,
    )
    assert found.text() == f"{word} ({word} to {word})"


@pytest.mark.parametrize(
    "found",
    [
        within_batch(_statistics(_gradients(64))),
        within_batch(_statistics(_gradients(64, signal=0.0))),
        over_batches([NoiseScale(3.0, 1.0), NoiseScale(5.0, 2.0)], 8),
    ],
    ids=["bounded", "unbounded", "over batches"],
)
def test_it_survives_json(found):
    assert (
        NoiseEstimate.from_json(
            json.loads(json.dumps(found.to_json(), allow_nan=False))
        )
        == found
    )


@pytest.mark.parametrize(
    "square, n, d, words",
    [
        (1.0, [1.0], [1.0], "two samples or more, and this batch has 1"),
        (1.0, [], [], "two samples or more, and this batch has 0"),
        (1.0, [1.0, 1.0], [1.0], r"shapes \(2,\) and \(1,\)"),
        (1.0, [[1.0, 1.0]], [[1.0, 1.0]], "one entry per sample"),
        (
            math.nan,
            [1.0, 1.0],
            [1.0, 1.0],
            "‖ḡ‖² of the gradients is NaN or infinite in 1 of 1",
        ),
        (
            1.0,
            [math.inf, 1.0],
            [1.0, 1.0],
            "‖g‖² of the gradients is NaN or infinite in 1 of 2",
        ),
        (
            1.0,
            [1.0, 1.0],
            [1.0, math.nan],
            "g·ḡ of the gradients is NaN or infinite in 1 of 2",
        ),
        (1.0, [2.0, -1e-9], [1.0, 1.0], "‖g‖² of the gradients is negative, .* 1 of 2"),
        (-1.0, [2.0, 2.0], [1.0, 1.0], "‖ḡ‖² of the gradients is negative, .* 1 of 1"),
        (1.0, [2.0, 2.0], [1.0, 1.1], "not the mean of these gradients"),
        (4.0, [1.0, 1.0], [4.0, 4.0], "not the mean of these gradients"),
    ],
)
def test_what_can_not_be_of_a_batch_is_refused(square, n, d, words):
    with pytest.raises(ValueError, match=words) as raised:
        BatchStatistics(square, n, d)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("batch", [2, 8, 4096])
@pytest.mark.parametrize("signal", [0.0, 1.0])
@pytest.mark.parametrize(
    "mean_by, sample_by", [("B", 1), (1, "1/B"), ("1/B", 1), (1, "B")]
)
def test_a_wrong_scaling_by_the_batch_is_found(batch, signal, mean_by, sample_by):
    """ḡ summed where it should be averaged, g_b of a loss that is already divided by B,
    and the other way round.
    """
    scales = {1: 1.0, "B": batch, "1/B": 1 / batch}
    g = _gradients(batch, signal=signal)
    mean, g = g.mean(0) * scales[mean_by], g * scales[sample_by]
    with pytest.raises(ValueError, match="not the mean of these gradients"):
        BatchStatistics(mean @ mean, np.square(g).sum(1), g @ mean)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_rounding_leaves_is_taken(dtype):
    g = _gradients(512, signal=0.0, parameters=1000).astype(dtype)
    mean = g.astype(np.float32).mean(0).astype(dtype).astype(np.float32)
    statistics = BatchStatistics(
        mean @ mean, np.square(g.astype(np.float32)).sum(1), g.astype(np.float32) @ mean
    )
    assert statistics.squared_norms.dtype == np.float64


@pytest.mark.parametrize(
    "estimate, words",
    [
        (
            lambda: within_batch(_statistics(_gradients(2))),
            "three samples or more, and this batch has 2",
        ),
        (
            lambda: over_batches([NoiseScale(1.0, 1.0)], 8),
            "two of them or more, and there are 1",
        ),
    ],
)
def test_an_interval_needs_something_to_vary(estimate, words):
    with pytest.raises(ValueError, match=words):
        estimate()


STREAM_PARAMETERS = 30


def _micro_batch(random, batch, signal=0.5):
    g = signal + random.normal(size=(batch, STREAM_PARAMETERS))
    mean = g.mean(0)
    return BatchStatistics(mean @ mean, np.square(g).sum(1), g @ mean)


def _stream(batches, seed, signal=0.5):
    random, stream = np.random.default_rng(seed), Stream()
    for batch in batches:
        stream.add(_micro_batch(random, batch, signal))
    return stream


def _ends(estimate):
    return [
        end
        for interval in (estimate.trace, estimate.square, estimate.simple)
        for end in (interval.low, interval.high)
    ]


def test_of_equal_micro_batches_it_is_what_all_at_once_gives():
    random, stream = np.random.default_rng(0), Stream()
    statistics = [_micro_batch(random, 8) for _ in range(12)]
    for each in statistics:
        stream.add(each)
    scales = [noise_scale(each.mean_square, each.squared_norms) for each in statistics]
    streamed, at_once = stream.estimate(), over_batches(scales, 8)
    assert _ends(streamed) == pytest.approx(_ends(at_once), rel=1e-9)
    assert (streamed.scale.trace, streamed.scale.square) == pytest.approx(
        (at_once.scale.trace, at_once.scale.square)
    )
    assert (streamed.answer, streamed.batch, streamed.batches, len(stream)) == (
        at_once.answer,
        8,
        12,
        12,
    )


def test_the_weights_of_unequal_ones_are_their_samples_and_the_moments_are_those_of_a_weighted_mean():
    pairs, batches = np.array([[3.0, 1.0], [5.0, 2.0], [9.0, 0.5]]), np.array([8, 8, 4])
    stream = Stream()
    for (trace, square), batch in zip(pairs, batches):
        stream.add_scale(NoiseScale(trace, square), int(batch))
    weights = batches / batches.sum()
    mean = weights @ pairs
    deviations = weights[:, None] * (pairs - mean)
    variance = np.square(deviations).sum(0) / (1 - np.square(weights).sum())
    skewness = (deviations**3).sum(0) / np.square(deviations).sum(0) ** 1.5
    found, plain = stream.estimate(), student_t(0.95, 1 / np.square(weights).sum() - 1)
    assert (found.scale.trace, found.scale.square) == pytest.approx(tuple(mean))
    for interval, *moments, k in zip(
        (found.trace, found.square), mean, variance, skewness
    ):
        expected = around(*moments, skewed(plain, k))
        assert (interval.low, interval.high) == pytest.approx(
            (expected.low, expected.high)
        )


def test_it_is_accurate_where_the_spread_is_a_billionth_of_the_mean():
    stream, trace = Stream(), 1e9 + np.array([0.0, 1.0, 2.0, 3.0])
    for value in trace:
        stream.add_scale(NoiseScale(value, 1.0), 16)
    found = stream.estimate().trace
    assert (found.high - found.low) / 2 == pytest.approx(
        3.182446 * math.sqrt(5 / 3 / 4), rel=1e-5
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_over_unequal_micro_batches_cover(seed):
    """Micro-batches of 16 with every fourth of 6. Of 400 intervals at 95%, 366 to 393
    cover: 99.9% binomial bounds.
    """
    truth = STREAM_PARAMETERS / (STREAM_PARAMETERS * 0.25)
    estimates = [
        _stream([16, 16, 16, 6] * 5, seed=1000 * seed + draw).estimate()
        for draw in range(400)
    ]
    assert all(estimate.simple.bounded for estimate in estimates)
    assert 366 <= sum(truth in estimate.simple for estimate in estimates) <= 393
    assert (
        366 <= sum(STREAM_PARAMETERS in estimate.trace for estimate in estimates) <= 393
    )


@pytest.mark.parametrize("batches", [[], [8], [100, 8], [1000, 2]])
def test_what_is_as_good_as_one_micro_batch_has_no_interval(batches):
    with pytest.raises(ValueError, match="two or more of about one size"):
        _stream(batches, 0).estimate()


@pytest.mark.parametrize(
    "scale, batch, words",
    [
        (NoiseScale(1.0, 1.0), 1, "two samples or more"),
        (NoiseScale(math.nan, 1.0), 8, "NaN or infinite"),
        (NoiseScale(1.0, math.inf), 8, "NaN or infinite"),
    ],
)
def test_a_micro_batch_that_says_nothing_is_refused_and_the_stream_is_as_it_was(
    scale, batch, words
):
    stream, untouched = _stream([8, 8, 8], 0), _stream([8, 8, 8], 0)
    with pytest.raises(ValueError, match=words):
        stream.add_scale(scale, batch)
    assert _ends(stream.estimate()) == _ends(untouched.estimate())
