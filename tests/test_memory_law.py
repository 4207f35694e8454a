"""The memory law: its fit, the batch that it says is the largest, and which records and
scenarios it is taken from.
"""

import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from batchline.bench.verdicts.memory_law import Growth, Law, fit, growths, quickest
from batchline.bench.statuses import FAILED, MEASURED, OUT_OF_MEMORY
from batchline.bench.store.records import Record

MIB = 2**20
SIZES = st.integers(0, 2**36)


def test_a_line_is_recovered():
    assert fit([1, 3, 8, 64], [4096 + 1000 * batch for batch in (1, 3, 8, 64)]) == Law(
        4096, 1000, 0
    )


@given(
    st.sets(st.integers(1, 4096), min_size=3, max_size=8), SIZES, st.integers(0, 2**30)
)
def test_any_line_is_recovered_at_its_points_in_any_order(batches, fixed, per_sample):
    sizes = [fixed + per_sample * batch for batch in batches]
    law = fit(list(batches), sizes)
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
    law = fit([1, 2, 3], sizes)  # a slope of 3, which misses by 1, 2 and 1
    assert (law.fixed, law.per_sample) == pytest.approx(
        (fixed, 3)
    ) and law.misfit == pytest.approx(2 / 6)


def test_memory_that_is_never_taken_has_a_law_too():
    assert fit([1, 2, 3], [0, 0, 0]) == Law(0, 0, 0)


@pytest.mark.parametrize("batches", [[], [1], [1, 2], [1, 1, 2, 2], [4, 4, 4]])
def test_two_batches_make_no_law(batches):
    assert fit(batches, [batch * 10 for batch in batches]) is None


@given(st.integers(-(2**30), 2**30), st.integers(1, 2**30), st.integers(0, 2**40))
def test_the_largest_batch_fits_and_one_more_does_not(fixed, per_sample, room):
    law = Law(fixed, per_sample, 0)
    assume(law.bytes_at(0) <= room)
    batch = law.largest_batch(room)
    assert law.bytes_at(batch) <= room < law.bytes_at(batch + 1)


@pytest.mark.parametrize(
    "room, batch", [(99, 0), (100, 0), (109, 0), (110, 1), (119, 1), (120, 2)]
)
def test_the_largest_batch_at_the_boundaries(room, batch):
    assert Law(100, 10, 0).largest_batch(room) == batch


@pytest.mark.parametrize("room", [0, 50, 99])
def test_no_batch_where_the_fixed_part_does_not_fit(room):
    assert Law(100, 1, 0).largest_batch(room) == 0


@pytest.mark.parametrize("per_sample", [0, -1])
def test_memory_that_does_not_grow_has_no_largest_batch(per_sample):
    assert Law(100, per_sample, 0).largest_batch(1000) is None


def _record(batch, peak=0, inputs=0, seconds=1.0, status=MEASURED, **other):
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
    (growth,) = growths(
        [
            _record(
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
    ours = [_record(batch, peak=batch) for batch in (1, 2, 3)]
    theirs = [_record(batch, peak=10 * batch, **{key: "other"}) for batch in (1, 2, 3)]
    mixed = [record for pair in zip(ours, theirs) for record in pair]
    assert [
        (getattr(growth, key), round(growth.peak.per_sample))
        for growth in growths(mixed)
    ] == [(getattr(ours[0], key), 1), ("other", 10)]


@pytest.mark.parametrize(
    "useless",
    [
        _record(3, status=OUT_OF_MEMORY),
        _record(3, status=FAILED),
        _record(3, peak=None),
    ],
    ids=["out of memory", "failed", "peak not measured"],
)
def test_a_record_without_a_peak_is_no_point_of_a_law(useless):
    two = [_record(batch, peak=batch) for batch in (1, 2)]
    assert growths([*two, useless]) == []
    (growth,) = growths([*two, useless, _record(4, peak=4)])
    assert growth.peak.per_sample == pytest.approx(
        1
    ) and growth.peak.misfit == pytest.approx(0)


def _growth(
    scenario, per_sample, seconds_a_sample, op="bmm", variant="torch_bmm", fixed=0
):
    return Growth(
        op,
        variant,
        scenario,
        "float32",
        Law(fixed, per_sample / 2, 0),
        Law(0, per_sample / 2, 0),
        Law(fixed, per_sample, 0),
        64,
        seconds_a_sample,
    )


def test_the_misfit_that_counts_is_of_inputs_and_peak_together():
    pages = [
        _record(batch, peak=20_000 + rounding, inputs=6144 * batch)
        for batch, rounding in ((1, 0), (8, 16_384), (64, 0), (4096, 8192))
    ]
    (growth,) = growths(pages)
    assert growth.peak.misfit > 0.2 and growth.total.misfit < 0.001
    assert growth.largest_batch(2**30) == pytest.approx(2**30 / 6144, rel=0.01)
    bent = [_record(batch, peak=batch**2, inputs=batch) for batch in (1, 8, 64)]
    (growth,) = growths(bent)
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
