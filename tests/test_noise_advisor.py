"""The advisor against closed forms, against trying every batch, and by how often its
interval holds the true B*.
"""

import json
import math

import numpy as np
import pytest

from batchline.bench import units
from batchline.bench.noise import advisor
from batchline.bench.noise.advice import COST, MEMORY, NOISE, NOTHING, STEP_TIME
from batchline.bench.noise.advisor import advise
from batchline.bench.stats.intervals import Interval
from batchline.bench.stats.noise_scale import (
    NO_SIGNAL,
    NO_UPPER_BOUND,
    NoiseEstimate,
    NoiseScale,
    over_batches,
)

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
ALPHA, BETA, PHI = 1e-3, 2e-5, 40.0
BEST = math.sqrt(ALPHA * PHI / BETA)  # 44.7
GIB = 2**30


def line_steps(alpha=ALPHA, beta=BETA, fixed=GIB, per_sample=2**20, batches=BATCHES):
    return [
        {
            "batch": batch,
            "samples_s": [alpha + beta * batch] * 5,
            "peak_bytes": fixed + per_sample * batch,
        }
        for batch in batches
    ]


def an_estimate(trace=PHI, square=1.0, low=35.0, high=46.0, answer="bounded", pairs=()):
    whole = Interval(-math.inf, math.inf)
    return NoiseEstimate(
        NoiseScale(trace, square),
        whole,
        whole,
        Interval(low, high),
        answer,
        32,
        20,
        "given",
        0.95,
        pairs,
    ).to_json()


UNBOUNDED = {"square": -0.1, "low": 30.0, "high": math.inf, "answer": NO_UPPER_BOUND}
SILENT = {"square": -0.1, "low": 0.0, "high": math.inf, "answer": NO_SIGNAL}


def test_on_a_line_the_batch_is_the_closed_form_and_all_else_follows_from_the_formulas():
    advice = advise(line_steps(), an_estimate(), 16 * GIB, current_batch=512)
    assert (
        advice.best_batch in (44, 45)
        and advice.unlimited_batch == advice.best_batch
        and advice.decided_by == NOISE
    )
    assert (advice.law.alpha_s, advice.law.beta_s) == pytest.approx((ALPHA, BETA))
    assert advice.largest_that_fits == int((0.9 * 16 * GIB - GIB) / 2**20)
    least = (math.sqrt(ALPHA) + math.sqrt(BETA * PHI)) ** 2
    for point in advice.curve:
        exact = (ALPHA + BETA * point.batch) * (1 + PHI / point.batch)
        assert point.time_relative == pytest.approx(exact / least, rel=1e-4)
        assert point.examples_relative == pytest.approx(1 + point.batch / PHI)
        assert (
            point.peak_bytes == pytest.approx(GIB + 2**20 * point.batch) and point.fits
        )
    assert advice.at(512).measured and not advice.at(advice.best_batch).measured
    assert advice.sentences[0].startswith(
        f"Train at batch {advice.best_batch} (95% interval 4"
    )
    assert (
        "A smaller batch than the current 512" in " ".join(advice.sentences)
        and 2 <= len(advice.sentences) <= 4
    )


def test_the_5_percent_set_is_exact():
    low, high = advise(line_steps(), an_estimate(), 16 * GIB).within_5_percent
    times = {
        batch: (ALPHA + BETA * batch) * (1 + PHI / batch) for batch in range(1, 600)
    }
    near = [
        batch for batch, time in times.items() if time <= 1.05 * min(times.values())
    ]
    assert (low, high) == (near[0], near[-1])


def test_the_regret_is_the_formula_and_keeps_its_bound():
    advice = advise(line_steps(), an_estimate(), 16 * GIB)
    for row in advice.regret:
        for factor, extra in ((row.factor, row.if_more), (1 / row.factor, row.if_less)):
            phi = PHI * factor
            least = (math.sqrt(ALPHA) + math.sqrt(BETA * phi)) ** 2
            taken = (ALPHA + BETA * advice.best_batch) * (1 + phi / advice.best_batch)
            assert (
                extra == pytest.approx(taken / least - 1, abs=2e-4)
                and extra <= row.bound
            )
    assert [row.bound for row in advice.regret] == pytest.approx(
        [0.0303, 0.125], abs=1e-4
    )


def test_the_bound_is_reached_where_alpha_is_beta_phi():
    twice, _ = advise(
        line_steps(alpha=BETA * PHI * math.sqrt(2)), an_estimate(), None
    ).regret
    assert max(twice.if_less, twice.if_more) == pytest.approx(twice.bound, rel=0.02)


@pytest.mark.parametrize(
    "alpha, beta, best, decided_by", [(0.0, BETA, 1, NOISE), (ALPHA, 0.0, 9830, MEMORY)]
)
def test_monotone_step_times(alpha, beta, best, decided_by):
    limit = (2**20 * 9830.5 + GIB) / 0.9
    advice = advise(line_steps(alpha, beta), an_estimate(), limit)
    assert (advice.best_batch, advice.decided_by) == (best, decided_by)
    assert advice.interval == (best, best)


def test_a_wall_below_the_best_batch_decides():
    advice = advise(line_steps(fixed=0), an_estimate(), 2**20 * 30.5, headroom=0.0)
    assert (advice.best_batch, advice.decided_by, advice.interval) == (
        30,
        MEMORY,
        (30, 30),
    )
    assert advice.unlimited_batch in (44, 45) and advice.within_5_percent[1] == 30
    assert [point.batch for point in advice.curve if not point.fits] == [
        32,
        64,
        128,
        256,
        512,
    ]
    assert advice.accumulation is None and "would not save time" in " ".join(
        advice.sentences
    )


def test_accumulation_past_the_wall_pays_for_the_optimisers_part_alone():
    optimizer_s = 0.9 * ALPHA
    advice = advise(
        line_steps(fixed=0),
        an_estimate(trace=4000.0, low=3500, high=4500),
        2**20 * 16.5,
        headroom=0.0,
        optimizer_s=optimizer_s,
    )

    def time(micro, count):
        step_s = count * (ALPHA + BETA * micro - optimizer_s) + optimizer_s
        return step_s * (1 + 4000 / (micro * count))

    micro, count = min(
        (
            (micro, count)
            for micro in (1, 2, 4, 8, 16)
            for count in range(2, 500)
            if micro * count > 16
        ),
        key=lambda pair: time(*pair),
    )
    found = advice.accumulation
    assert (found.micro_batch, found.count) == (micro, count) and micro * count > 16
    assert found.time_relative == pytest.approx(
        time(micro, count) / ((ALPHA + BETA * 16) * (1 + 4000 / 16))
    )
    assert found.time_relative < 1 and "micro-batches of 16" in " ".join(
        advice.sentences
    )


def test_a_cost_cap_limits_the_batch():
    advice = advise(line_steps(), an_estimate(), 16 * GIB, cost_cap=1.5)
    assert (advice.best_batch, advice.decided_by) == (
        20,
        COST,
    ) and advice.within_5_percent[1] == 20
    assert advice.at(20).examples_relative == pytest.approx(1.5)
    low, high = advice.interval
    assert low == pytest.approx(0.5 * 35, abs=1.5) and high == pytest.approx(
        0.5 * 46, abs=1.5
    )


def test_an_unbounded_noise_scale_is_said_and_memory_or_cost_decides():
    advice = advise(line_steps(), an_estimate(**UNBOUNDED), 4 * GIB)
    assert advice.best_batch == advice.largest_that_fits and advice.decided_by == MEMORY
    assert advice.noise_scale is None and advice.noise_interval == (30.0, None)
    assert advice.regret == () and advice.within_5_percent is None
    assert "cannot be bounded above (it is at least 30)" in advice.sentences[1]
    assert (
        f"if it is 30, that takes {units.ratio(advice.at(advice.best_batch).time_band[0])} the least time"
        in (advice.sentences[1])
    )
    low, high = advice.interval
    assert (
        low == pytest.approx(math.sqrt(ALPHA * 30 / BETA), abs=3)
        and high == advice.largest_that_fits
    )
    capped = advise(line_steps(), an_estimate(**UNBOUNDED), 4 * GIB, cost_cap=3.0)
    assert (capped.best_batch, capped.decided_by) == (
        60,
        COST,
    )  # (3 − 1)·30, the least that φ may be
    free = advise(
        line_steps(fixed=GIB, per_sample=0), an_estimate(**UNBOUNDED), 4 * GIB
    )
    assert (free.best_batch, free.decided_by) == (
        None,
        NOTHING,
    ) and "does not grow" in free.sentences[1]


def test_a_cliff_in_the_step_time_decides_where_the_noise_has_no_end():
    steps = line_steps()
    steps[-1]["samples_s"] = [1.0]
    advice = advise(steps, an_estimate(**UNBOUNDED), 4 * GIB)
    assert (advice.best_batch, advice.decided_by) == (256, STEP_TIME)


def test_without_a_signal_there_is_no_batch_but_what_to_do():
    advice = advise(line_steps(), an_estimate(**SILENT), 16 * GIB, current_batch=64)
    assert (
        advice.best_batch is advice.interval is advice.within_5_percent is None
        and advice.decided_by == NOTHING
    )
    assert (
        advice.largest_that_fits
        and "Measure later in training, or over more batches" in advice.sentences[0]
    )
    assert all(point.time_relative is None and point.fits for point in advice.curve)


def test_beyond_the_measured_batches_it_says_that_it_extrapolates():
    advice = advise(line_steps(batches=BATCHES[:5]), an_estimate(), 16 * GIB)
    assert (
        advice.best_batch in (44, 45)
        and "beyond the largest batch measured (16)" in advice.sentences[-1]
    )


def test_memory_without_a_law_limits_by_the_batches_measured():
    steps = line_steps()
    for step, peak in zip(steps, (1, 1, 1, 1, 1, 1, 2, 8, 9, 9)):
        step["peak_bytes"] = peak * GIB
    advice = advise(steps, an_estimate(trace=1e5, low=9e4, high=1.1e5), 5 * GIB)
    assert (advice.best_batch, advice.decided_by) == (
        64,
        MEMORY,
    ) and "misses a line" in advice.memory
    assert advise(steps, an_estimate(), 16 * GIB).largest_that_fits is None
    for step in steps:
        del step["peak_bytes"]
    advice = advise(steps, an_estimate(), 16 * GIB)
    assert (
        advice.largest_that_fits is None
        and advice.curve[0].fits is None
        and "fewer than three" in advice.memory
    )


@pytest.mark.parametrize(
    "estimate", [an_estimate(), an_estimate(**UNBOUNDED), an_estimate(**SILENT)]
)
def test_advice_is_plain_json_and_the_same_each_time(estimate):
    stored = [
        json.dumps(
            advise(line_steps(), estimate, 4 * GIB, current_batch=100).to_json(),
            allow_nan=False,
        )
        for _ in range(2)
    ]
    assert (
        stored[0] == stored[1]
        and json.loads(stored[0])["words"]
        and "1812.06162" in stored[0]
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"steps": line_steps(batches=(8,))}, "two batch sizes"),
        (
            {"steps": [{"batch": batch, "samples_s": [math.nan]} for batch in (1, 2)]},
            "seconds above 0",
        ),
        (
            {"estimate": an_estimate(trace=-3.0, low=0.0)},
            "above 0, and is estimated at -3",
        ),
        ({"estimate": an_estimate(trace=math.nan)}, "is no number"),
        ({"limit_bytes": GIB}, "no batch fits into"),
        ({"limit_bytes": math.nan}, "bytes above 0, and is nan"),
        ({"cost_cap": 0.9}, "a batch of 1 takes 1.02 times"),
        ({"cost_cap": 1.0}, "a batch of 1 takes 1.02 times"),
        ({"cost_cap": math.nan}, "no batch takes at most nan"),
        ({"headroom": 1.0}, "from 0 to below 1"),
        ({"current_batch": 0}, "1 or more, and is 0"),
        ({"optimizer_s": 1.0}, "less than a step at batch 1"),
    ],
)
def test_bad_input_is_an_error_of_one_line(change, words):
    with pytest.raises(ValueError, match=words) as error:
        advise(
            **{
                "steps": line_steps(),
                "estimate": an_estimate(),
                "limit_bytes": 16 * GIB,
            }
            | change
        )
    assert "\n" not in str(error.value)


ALPHA_S, BETA_S, SCALE = (
    1e-2,
    1e-5,
    1000.0,
)  # B* = 1000, where whole numbers make no interval wider


def _timed(generator, timing_noise):
    return [
        {
            "batch": batch,
            "samples_s": (ALPHA_S + BETA_S * batch)
            * generator.lognormal(0, timing_noise, 15),
        }
        for batch in (4 * batch for batch in (*BATCHES, 1024))
    ]


def _believed(generator, noise_error):
    """An estimate that is off by exp(σz), and the exact 95% interval that such an
    estimate has.
    """
    scale = SCALE * generator.lognormal(0, noise_error)
    low, high = (scale * math.exp(sign * 1.96 * noise_error) for sign in (-1, 1))
    return an_estimate(trace=scale, low=low, high=high)


def _over_batches(generator, count):
    """From independent batches' (S, G2), whose S is off by 10% and G2 by 25%."""
    return over_batches(
        [
            NoiseScale(SCALE * (1 + 0.1 * trace), 1 + 0.25 * square)
            for trace, square in generator.standard_normal((count, 2))
        ],
        32,
    ).to_json()


def coverage(draws, seed, estimate, timing_noise=0.03):
    """The share of measurements whose interval holds the true B*; `estimate`: makes one
    of them from a generator.
    """
    generator, held = np.random.default_rng(seed), 0
    for draw in range(draws):
        advice = advise(
            _timed(generator, timing_noise), estimate(generator), None, seed=draw
        )
        low, high = advice.interval or (
            1,
            None,
        )  # without a signal no batch is excluded
        held += (
            low
            <= math.sqrt(ALPHA_S * SCALE / BETA_S)
            <= (math.inf if high is None else high)
        )
    return held / draws


@pytest.mark.slow
@pytest.mark.parametrize(
    "noise_error, timing_noise",
    [(0.15, 0.03), (0.02, 0.15)],
    ids=["of φ", "of the timings"],
)
def test_the_interval_holds_the_best_batch_as_often_as_it_says(
    noise_error, timing_noise
):
    """95% ± 3% over 300 measurements."""
    assert (
        0.92
        <= coverage(
            300, 3, lambda generator: _believed(generator, noise_error), timing_noise
        )
        <= 0.98
    )


def test_the_interval_from_independent_batches_holds_it_too():
    assert coverage(100, 0, lambda generator: _over_batches(generator, 12)) >= 0.9


def test_an_interval_that_forgets_the_noise_of_the_noise_would_not(monkeypatch):
    monkeypatch.setattr(
        advisor,
        "draw_noise_scales",
        lambda estimate, draws, _: np.full(draws, estimate.scale.simple),
    )
    assert coverage(60, 0, lambda generator: _believed(generator, 0.5)) < 0.6
