"""How time and memory grow with the batch, on curves with known answers."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binom

from batchline.bench.errors import Missing
from batchline.bench.stats.fits import LatencyFit, MemoryLaw, fit_memory
from batchline.bench.stats.roofline import Waves
from batchline.bench.statuses import FAILED, MEASURED, OUT_OF_MEMORY
from batchline.bench.store.records import Record
from batchline.bench.verdicts.laws import (
    Cliff,
    LatencyLaw,
    MemoryGrowth,
    latency_laws,
    memory_growths,
    quickest,
)

QUICK = (1, 3, 8, 33, 64, 256, 1024, 4096)
FULL = tuple(sorted({3, 33, 100, 257} | {2**power for power in range(13)}))
LAUNCH_S, COST_S = 5e-6, 1e-7
OF_32 = Waves(ctas_per_sample=4, multiprocessors=64, ctas_per_multiprocessor=2)
KEY = "bmm", "triton_tiled", "tiny_16", "float32"


def _record(batch, seconds, status=MEASURED, clock="host", **other):
    identity = dict(zip(("op", "variant", "scenario", "dtype"), KEY)) | other
    return Record(
        **identity,
        batch=batch,
        status=status,
        samples_s=(seconds,),
        facts={"clock": clock},
    )


def _law(seconds, batches=QUICK, waves=None):
    """Of a curve: batch → seconds."""
    (law,) = latency_laws(
        [_record(batch, seconds(batch)) for batch in batches],
        {KEY: waves} if waves else None,
    ).values()
    return law


def _line(batch, launch=LAUNCH_S, cost=COST_S):
    return launch + cost * batch


def _bent(batch, launch, cost, at, then):
    return launch + cost * min(batch, at) + then * max(batch - at, 0)


def _noisy(curve, sigma, batches, count, seed, waves=None):
    generator = np.random.default_rng(seed)
    for factors in np.exp(generator.normal(0, sigma, (count, len(batches)))):
        noise = dict(zip(batches, factors))
        yield _law(lambda batch: curve(batch) * noise[batch], batches, waves)


def _covers(interval, truth):
    return truth in interval


def _is_95_percent(hits):
    """Whether the coverage is 95% ± 2%, as far as so many draws can tell."""
    return (
        binom.ppf(0.001, len(hits), 0.93)
        <= sum(hits)
        <= binom.ppf(0.999, len(hits), 0.97)
    )


@cache
def _of_lines():
    designs = [
        (QUICK, 0.005),
        (QUICK, 0.05),
        (FULL, 0.02),
        (QUICK[:4], 0.02),
        (QUICK[:5], 0.05),
    ]
    return [
        law
        for seed, (batches, sigma) in enumerate(designs)
        for law in _noisy(
            lambda batch: _line(batch, cost=1e-6), sigma, batches, 180, seed
        )
    ]


def test_the_intervals_of_lines_cover_launch_cost_and_saturation():
    found = _of_lines()
    assert _is_95_percent([_covers(law.launch_interval_s, LAUNCH_S) for law in found])
    assert _is_95_percent([_covers(law.cost_interval_s, 1e-6) for law in found])
    assert _is_95_percent(
        [
            law.saturation.low <= 9 * LAUNCH_S / 1e-6 <= law.saturation.high
            for law in found
        ]
    )


def test_at_most_two_percent_of_lines_get_a_second_slope_or_a_cliff():
    found = _of_lines()
    false = sum(law.bends is not None or law.cliffs != () for law in found)
    assert false <= binom.ppf(0.999, len(found), 0.02)
    assert all(isinstance(law, LatencyLaw) for law in found)


@pytest.mark.parametrize(
    "then", [0.4 * COST_S, 2.5 * COST_S], ids=["cheaper", "dearer"]
)
def test_a_second_slope_is_found_where_it_begins_and_its_interval_covers(then):
    found = list(
        _noisy(
            lambda batch: _bent(batch, LAUNCH_S, COST_S, 256, then),
            0.02,
            QUICK,
            200,
            seed=1,
        )
    )
    assert [law.bends.batch for law in found] == [256] * len(found)
    assert _is_95_percent([_covers(law.bends.cost_interval_s, then) for law in found])
    assert _is_95_percent([_covers(law.cost_interval_s, COST_S) for law in found])
    assert _is_95_percent([_covers(law.launch_interval_s, LAUNCH_S) for law in found])


def test_the_intervals_of_waves_cover():
    found = list(
        _noisy(
            lambda batch: 5e-6 + 3.2e-6 * OF_32.count(batch),
            0.02,
            FULL,
            120,
            seed=2,
            waves=OF_32,
        )
    )
    assert all(law.waves == OF_32 for law in found)
    assert _is_95_percent([_covers(law.launch_interval_s, 5e-6) for law in found])
    assert _is_95_percent([_covers(law.cost_interval_s, 1e-7) for law in found])


def test_no_interval_goes_below_zero():
    found = list(_noisy(lambda batch: 1e-6 * batch, 0.05, QUICK, 100, seed=3))
    assert all(
        0 <= law.launch_interval_s.low < law.launch_interval_s.high for law in found
    )
    assert all(
        law.launch_interval_s.low <= law.launch_s <= law.launch_interval_s.high
        for law in found
    )
    assert all(
        law.cost_interval_s.low <= law.cost_s <= law.cost_interval_s.high
        for law in found
    )


def test_a_line_is_recovered_from_records_in_any_order():
    ((key, law),) = latency_laws(
        [_record(batch, _line(batch)) for batch in (64, 1, 1024, 8)]
    ).items()
    assert key == (*KEY, "host")
    assert (law.op, law.variant, law.scenario, law.dtype) == KEY
    assert (law.clock, law.batches) == ("host", (1, 8, 64, 1024))
    assert (law.launch_s, law.cost_s) == pytest.approx((LAUNCH_S, COST_S))
    assert [*law.launch_interval_s] == pytest.approx([LAUNCH_S, LAUNCH_S])
    assert law.misfit == pytest.approx(0, abs=1e-9)
    assert (law.bends, law.waves, law.cliffs) == (None, None, ())


def test_the_misfit_is_of_the_worst_batch_as_a_share_of_the_law():
    law = _law(lambda batch: _line(batch) * {33: 1.04, 1024: 0.9}.get(batch, 1))
    worst = max(QUICK, key=lambda batch: abs(math.log(_misses(law)[batch] + 1)))
    assert worst == 1024 and law.misfit == pytest.approx(-_misses(law)[1024])


def _misses(law):
    factors = {33: 1.04, 1024: 0.9}
    return {
        batch: _line(batch)
        * factors.get(batch, 1)
        / (law.launch_s + law.cost_s * batch)
        - 1
        for batch in QUICK
    }


@pytest.mark.parametrize(
    "batches, why", [((1,), "1 of at least 4"), ((1, 2, 4), "3 of at least 4")]
)
def test_too_few_batch_sizes_make_no_law(batches, why):
    assert _law(_line, batches) == Missing(f"{why} batch sizes measured")


def test_a_median_of_nothing_makes_no_law():
    assert "no time above 0" in _law(lambda batch: 0.0 if batch == 8 else 1.0).reason


def test_what_is_no_line_has_no_law_and_its_worst_batch_says_so():
    law = _law(lambda batch: 1e-6 * batch**2, QUICK[:4])
    slope = (1 + 1 / 3 + 1 / 8) / (
        1 + 1 / 9 + 1 / 64
    )  # through 0, by hand; B=33 is off it by more, and left out
    assert law == Missing(
        f"the best line, bent or not, misses by {8 / slope - 1:.0%} at B=8"
    )
    assert _law(lambda batch: 1e-6 * batch**2, FULL).reason


@pytest.mark.parametrize("row, factor", [(0, 0.3), (3, 1.41), (3, 0.6), (7, 1.8)])
def test_a_batch_that_stands_out_is_named_and_does_not_bend_the_law(row, factor):
    generator = np.random.default_rng(4)
    noise = dict(zip(QUICK, np.exp(generator.normal(0, 0.01, len(QUICK)))))
    law = _law(
        lambda batch: _line(batch)
        * noise[batch]
        * (factor if batch == QUICK[row] else 1)
    )
    (cliff,) = law.cliffs
    assert cliff.batch == QUICK[row] and cliff.waves is None
    assert cliff.over == pytest.approx(factor - 1, abs=0.05) and law.misfit < 0.05
    assert (law.launch_s, law.cost_s) == pytest.approx((LAUNCH_S, COST_S), rel=0.03)


def test_five_batches_show_a_bend_that_no_line_is_near():
    law = _law(
        lambda batch: _bent(batch, 9e-5, 1.2e-5, 8, 3.8e-5)
        * (1.02 if batch % 3 else 0.98),
        QUICK[:5],
    )
    assert law.bends.batch == 8 and law.bends.cost_s == pytest.approx(3.8e-5, rel=0.1)


def _least_saturated(seconds, best_per_s):
    return next(
        batch
        for batch in itertools.count(1)
        if batch / seconds(batch) >= 0.9 * best_per_s * (1 - 1e-9)
    )


@pytest.mark.parametrize(
    "launch, then",
    [
        (1e-5, 4e-6),  # throughput is best at the bend
        (3e-4, 2e-6),  # 90% of the asymptote before the bend
        (1e-4, 0.5e-6),  # beyond it
        (0.0, 0.95e-6),
        (1e-3, 1e-6),
        (1e-5, 1e-6),
        (0.9e-5, 1e-6),
    ],
    ids=str,
)
def test_saturation_is_the_least_batch_at_90_percent_of_the_best(launch, then):
    def seconds(batch):
        return _bent(batch, launch, 1e-6, 256, then)

    law = _law(seconds, FULL)
    assert (law.bends is None) == (then == 1e-6)
    expected = _least_saturated(seconds, max(256 / seconds(256), 1 / then))
    assert (
        law.saturation.low
        <= law.saturation.batch
        == expected
        <= law.saturation.high
        <= expected + 1
    )


@pytest.mark.parametrize("launch", [1e-6, 1e-5, 3e-5, 1e-4])
@pytest.mark.parametrize(
    "waves", [OF_32, Waves(3, 16, 7)], ids=["32 samples", "37.3 samples"]
)
def test_saturation_by_waves_is_the_least_batch_too(launch, waves):
    def seconds(batch):
        return launch + 3e-6 * waves.count(batch)

    law = _law(seconds, FULL, waves)
    assert law.saturation.batch == _least_saturated(seconds, waves.samples / 3e-6)
    assert law.saturation.low <= law.saturation.batch <= law.saturation.high


def test_time_that_is_not_seen_to_grow_is_never_saturated():
    assert _law(lambda batch: LAUNCH_S).saturation is None
    found = list(_noisy(lambda batch: LAUNCH_S, 0.02, QUICK[:5], 40, seed=5))
    assert [law.saturation is None for law in found] == [
        law.cost_interval_s.low == 0 for law in found
    ]
    assert 30 < sum(law.saturation is None for law in found) < 40


def test_a_ratio_over_what_is_not_told_from_nothing_has_no_upper_end():
    times_s = LAUNCH_S * np.array([1.02, 0.97, 1.03, 0.99])
    value, interval = LatencyFit(np.array(QUICK[:4], float), times_s).ratio(
        np.array([1, 0]), np.array([1e-9, 1])
    )
    assert 0 < interval.low < value and interval.high == math.inf


@pytest.mark.parametrize(
    "batch, count, filled",
    [(1, 1, 32), (32, 1, 32), (33, 2, 64), (64, 2, 64), (65, 3, 96)],
)
def test_waves_are_counted(batch, count, filled):
    assert (
        OF_32.samples == 32
        and OF_32.count(batch) == count
        and OF_32.filled(batch) == filled
    )


def test_one_more_wave_is_named_and_full_waves_are_not():
    law = _law(lambda batch: 1e-6 + 5e-6 * OF_32.count(batch), waves=OF_32)
    assert law.waves == OF_32 and law.launch_s == pytest.approx(1e-6)
    assert law.cost_s * OF_32.samples == pytest.approx(5e-6)
    over = (1e-6 + 2 * 5e-6) / (1e-6 + 33 * 5e-6 / 32) - 1
    assert law.cliffs == (Cliff(33, pytest.approx(over), 2),)


def test_a_last_wave_that_is_nearly_full_is_no_cliff():
    law = _law(
        lambda batch: 1e-6 + 5e-6 * OF_32.count(batch),
        (32, 33, 64, 100, 256, 1024, 4065),
        OF_32,
    )
    assert [(cliff.batch, cliff.waves) for cliff in law.cliffs] == [(33, 2), (100, 4)]


def test_without_waves_the_same_curve_has_no_wave_to_name():
    law = _law(lambda batch: 1e-6 + 5e-6 * OF_32.count(batch))
    assert law.waves is None and all(cliff.waves is None for cliff in law.cliffs)


def test_waves_that_do_not_show_leave_a_line():
    assert _law(_line, waves=OF_32).waves is None
    assert _law(_line, waves=Waves(1, 132, 64)).waves is None  # all in a wave or so
    jump = _law(lambda batch: _line(batch) * (1.41 if batch == 33 else 1), waves=OF_32)
    assert jump.waves is None and jump.cliffs == (Cliff(33, pytest.approx(0.41), 2),)
    dip = _law(lambda batch: _line(batch) * (0.5 if batch == 33 else 1), waves=OF_32)
    assert dip.waves is None and dip.cliffs == (Cliff(33, pytest.approx(-0.5)),)


@pytest.mark.parametrize("key", ["op", "variant", "scenario", "dtype", "clock"])
def test_each_variant_scenario_dtype_and_clock_has_a_law_of_its_own(key):
    ours = [_record(batch, _line(batch)) for batch in QUICK]
    theirs = [
        _record(batch, _line(batch, cost=1e-5), **{key: "other"}) for batch in QUICK
    ]
    found = latency_laws([record for pair in zip(ours, theirs) for record in pair])
    assert [law.cost_s for law in found.values()] == pytest.approx([COST_S, 1e-5])
    assert [getattr(law, key) == "other" for law in found] == [False, True]
    assert list(found) == [
        (law.op, law.variant, law.scenario, law.dtype, law.clock)
        for law in found.values()
    ]


def test_what_was_not_measured_is_no_point_of_a_law():
    assert (
        latency_laws([_record(batch, _line(batch), status=FAILED) for batch in QUICK])
        == {}
    )


MIB = 2**20
SIZES = st.integers(0, 2**36)


def test_a_line_is_recovered():
    assert fit_memory(
        [1, 3, 8, 64], [4096 + 1000 * batch for batch in (1, 3, 8, 64)]
    ) == MemoryLaw(4096, 1000, 0)


@given(
    st.sets(st.integers(1, 4096), min_size=3, max_size=8), SIZES, st.integers(0, 2**30)
)
def test_any_line_is_recovered_at_its_points_in_any_order(batches, fixed, per_sample):
    sizes = [fixed + per_sample * batch for batch in batches]
    law = fit_memory(list(batches), sizes)
    assert [law.bytes_at(batch) for batch in batches] == pytest.approx(
        sizes, rel=1e-9, abs=1e-6
    )
    assert law.misfit <= 1e-9


@pytest.mark.parametrize(
    "sizes, fixed", [([0, 0, 6], -4), ([0, 6, 6], -2)], ids=["bends up", "bends down"]
)
def test_the_misfit_of_a_bend_is_its_worst_point_as_a_share_of_the_largest(
    sizes, fixed
):
    law = fit_memory([1, 2, 3], sizes)  # a slope of 3, which misses by 1, 2 and 1
    assert (law.fixed, law.per_sample) == pytest.approx(
        (fixed, 3)
    ) and law.misfit == pytest.approx(2 / 6)


def test_memory_that_is_never_taken_has_a_law_too():
    assert fit_memory([1, 2, 3], [0, 0, 0]) == MemoryLaw(0, 0, 0)


@pytest.mark.parametrize("batches", [[], [1], [1, 2], [1, 1, 2, 2], [4, 4, 4]])
def test_two_batches_make_no_law(batches):
    assert fit_memory(batches, [batch * 10 for batch in batches]) is None


@given(st.integers(-(2**30), 2**30), st.integers(1, 2**30), st.integers(0, 2**40))
def test_the_largest_batch_fits_and_one_more_does_not(fixed, per_sample, room):
    law = MemoryLaw(fixed, per_sample, 0)
    assume(law.bytes_at(0) <= room)
    batch = law.largest_batch(room)
    assert law.bytes_at(batch) <= room < law.bytes_at(batch + 1)


@pytest.mark.parametrize(
    "room, batch", [(99, 0), (100, 0), (109, 0), (110, 1), (119, 1), (120, 2)]
)
def test_the_largest_batch_at_the_boundaries(room, batch):
    assert MemoryLaw(100, 10, 0).largest_batch(room) == batch


@pytest.mark.parametrize("room", [0, 50, 99])
def test_no_batch_where_the_fixed_part_does_not_fit(room):
    assert MemoryLaw(100, 1, 0).largest_batch(room) == 0


@pytest.mark.parametrize("per_sample", [0, -1])
def test_memory_that_does_not_grow_has_no_largest_batch(per_sample):
    assert MemoryLaw(100, per_sample, 0).largest_batch(1000) is None


def _memory_record(batch, peak=0, inputs=0, seconds=1.0, status=MEASURED, **other):
    identity = {
        "op": "bmm",
        "variant": "torch_bmm",
        "scenario": "tiny_16",
        "dtype": "float32",
    } | other
    return Record(
        **identity,
        batch=batch,
        status=status,
        samples_s=(seconds,),
        facts={"peak_bytes": peak, "input_bytes": inputs},
    )


def test_a_growth_has_the_laws_of_peak_and_inputs_and_the_time_a_sample_of_the_largest_batch():
    (growth,) = memory_growths(
        [
            _memory_record(
                batch, peak=7 + 2 * batch, inputs=5 * batch, seconds=math.sqrt(batch)
            )
            for batch in (16, 1, 4)
        ]
    )
    assert (growth.op, growth.variant, growth.scenario, growth.dtype) == (
        "bmm",
        "torch_bmm",
        "tiny_16",
        "float32",
    )
    assert (growth.peak.fixed, growth.peak.per_sample) == pytest.approx((7, 2))
    assert (growth.inputs.fixed, growth.inputs.per_sample) == pytest.approx((0, 5))
    assert growth.seconds_at(160) == pytest.approx(160 * 4 / 16)
    assert growth.largest_batch(7 + 7 * 10 + 6.5) == 10  # inputs and peak together


@pytest.mark.parametrize("key", ["op", "variant", "scenario", "dtype"])
def test_each_op_variant_scenario_and_dtype_has_a_law_of_its_own(key):
    ours = [_memory_record(batch, peak=batch) for batch in (1, 2, 3)]
    theirs = [
        _memory_record(batch, peak=10 * batch, **{key: "other"}) for batch in (1, 2, 3)
    ]
    mixed = [record for pair in zip(ours, theirs) for record in pair]
    assert [
        (getattr(growth, key), round(growth.peak.per_sample))
        for growth in memory_growths(mixed)
    ] == [(getattr(ours[0], key), 1), ("other", 10)]


@pytest.mark.parametrize(
    "useless",
    [
        _memory_record(3, status=OUT_OF_MEMORY),
        _memory_record(3, status=FAILED),
        _memory_record(3, peak=None),
    ],
    ids=["out of memory", "failed", "peak not measured"],
)
def test_a_record_without_a_peak_is_no_point_of_a_law(useless):
    two = [_memory_record(batch, peak=batch) for batch in (1, 2)]
    assert memory_growths([*two, useless]) == []
    (growth,) = memory_growths([*two, useless, _memory_record(4, peak=4)])
    assert growth.peak.per_sample == pytest.approx(
        1
    ) and growth.peak.misfit == pytest.approx(0)


def _growth(
    scenario, per_sample, seconds_a_sample, op="bmm", variant="torch_bmm", fixed=0
):
    return MemoryGrowth(
        op,
        variant,
        scenario,
        "float32",
        MemoryLaw(fixed, per_sample / 2, 0),
        MemoryLaw(0, per_sample / 2, 0),
        MemoryLaw(fixed, per_sample, 0),
        64,
        seconds_a_sample,
    )


def test_the_misfit_that_counts_is_of_inputs_and_peak_together():
    pages = [
        _memory_record(batch, peak=20_000 + rounding, inputs=6144 * batch)
        for batch, rounding in ((1, 0), (8, 16_384), (64, 0), (4096, 8192))
    ]
    (growth,) = memory_growths(pages)
    assert growth.peak.misfit > 0.2 and growth.total.misfit < 0.001
    assert growth.largest_batch(2**30) == pytest.approx(2**30 / 6144, rel=0.01)
    bent = [_memory_record(batch, peak=batch**2, inputs=batch) for batch in (1, 8, 64)]
    (growth,) = memory_growths(bent)
    assert (
        not growth.is_a_line
        and growth.largest_batch(2**30) is None
        and quickest([growth], 2**30) == []
    )


CHEAP_SAMPLES = _growth(
    "cheap_samples", 2**10, 1e-5
)  # a room of 64 MiB holds 65536: 0.66 s
LARGE_SAMPLES = _growth("large_samples", MIB, 1e-3)  # holds 64: 0.064 s
SLOW_SAMPLES = _growth("slow_samples", MIB, 1e-2)  # holds 64: 0.64 s
DOES_NOT_GROW = _growth("does_not_grow", 0, 1e-9)
DOES_NOT_FIT = _growth("does_not_fit", MIB, 1e-9, fixed=65 * MIB)


@pytest.mark.parametrize(
    "order", list(itertools.permutations((CHEAP_SAMPLES, LARGE_SAMPLES, SLOW_SAMPLES)))
)
def test_the_quickest_is_the_one_whose_largest_batch_takes_the_least_time(order):
    assert quickest([DOES_NOT_GROW, *order, DOES_NOT_FIT], 64 * MIB) == [LARGE_SAMPLES]


def test_each_op_and_variant_has_its_own_quickest():
    other_variant = _growth("slow_samples", MIB, 1e-2, variant="torch_einsum")
    other_op = _growth("digits", MIB, 1e-1, op="grad_reduce")
    assert quickest([LARGE_SAMPLES, other_variant, other_op], 64 * MIB) == [
        LARGE_SAMPLES,
        other_variant,
        other_op,
    ]


def test_nothing_to_try_where_no_batch_is_the_largest():
    assert quickest([DOES_NOT_GROW, DOES_NOT_FIT], 64 * MIB) == []


@pytest.mark.parametrize(
    "curve, waves",
    [
        (_line, None),
        (lambda batch: _bent(batch, 5e-6, 1e-7, 64, 4e-7), None),
        (lambda batch: 5e-6 + 3e-6 * OF_32.count(batch), OF_32),
    ],
    ids=["line", "bent", "waves"],
)
def test_a_law_says_the_time_of_any_batch(curve, waves):
    law = _law(curve, FULL, waves)
    for batch in (1, 20, 63, 64, 200, 3000):
        assert law.seconds_at(batch) == pytest.approx(curve(batch), rel=0.02)
