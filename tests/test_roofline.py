"""The roofline: which ceiling binds, its share, the floor below which no time is
believed, and the best of two runs.
"""

import copy

import pytest

from batchline.bench.stats import roofline
from batchline.bench.stats.roofline import CACHE, COMPUTE, LAUNCH, MEMORY, Bound

CACHE_BYTES = 32_000_000
CEILINGS = {
    "copy_bytes_per_s": 1e11,
    "read_bytes_per_s": 2e11,
    "cache_bytes_per_s": 1e12,
    "cache_bytes": CACHE_BYTES,
    "matmul_flops_per_s": {"float32": 1e12, "float16": 4e12},
    "fma_flops_per_s": {},
    "launch_s": {"host": 1e-6, "host_cold": 3e-6},
    "best": {
        "copy_bytes_per_s": 1.25e11,
        "read_bytes_per_s": 2.5e11,
        "cache_bytes_per_s": 1.6e12,
        "matmul_flops_per_s": 5e12,
    },
}


def _facts(flops=0.0, least_bytes=0, output_bytes=0):
    return {"flops": flops, "least_bytes": least_bytes, "output_bytes": output_bytes}


def _bound(facts, dtype="float32", clock="host", median_s=1.0):
    return roofline.bound(facts, dtype, clock, median_s, CEILINGS)


@pytest.mark.parametrize("clock, least_s", [("host", 1e-6), ("host_cold", 3e-6)])
def test_tiny_work_is_bound_by_the_launch_on_its_own_clock(clock, least_s):
    bound = _bound(_facts(flops=1e3, least_bytes=64, output_bytes=32), clock=clock)
    assert (bound.regime, bound.least_s) == (LAUNCH, least_s)


def test_a_clock_whose_empty_launch_is_not_known_has_no_launch_to_be_bound_by():
    assert _bound(_facts(flops=1.0), clock="graph") == Bound(COMPUTE, 1e-12, 1e-12)


def test_what_fits_the_last_cache_is_held_against_its_rate():
    bound = _bound(_facts(least_bytes=CACHE_BYTES, output_bytes=CACHE_BYTES // 2))
    assert (bound.regime, bound.least_s) == (CACHE, pytest.approx(32e-6))


@pytest.mark.parametrize(
    "facts, clock, least_s",
    [
        (
            _facts(least_bytes=CACHE_BYTES + 4, output_bytes=CACHE_BYTES),
            "host",
            (CACHE_BYTES + 4) / 1e11,
        ),
        (_facts(least_bytes=10**9, output_bytes=5 * 10**8), "host", 1e-2),
        (_facts(least_bytes=10**9, output_bytes=10**8), "host", 1e-2),
        (_facts(least_bytes=10**9, output_bytes=10**8 - 4), "host", 5e-3),
        (_facts(least_bytes=10**9, output_bytes=4), "host_cold", 5e-3),
        (_facts(least_bytes=10**7, output_bytes=5 * 10**6), "host_cold", 1e-4),
        (_facts(least_bytes=10**7, output_bytes=5 * 10**6), "device_cold", 1e-4),
    ],
    ids=[
        "just beyond the cache",
        "half written",
        "a tenth written",
        "under a tenth written",
        "a reduction, cold",
        "small and cold",
        "small and cold on a device",
    ],
)
def test_what_comes_from_memory_is_held_against_the_copy_or_where_it_mostly_reads_the_read(
    facts, clock, least_s
):
    bound = _bound(facts, clock=clock)
    assert (bound.regime, bound.least_s) == (MEMORY, pytest.approx(least_s))


@pytest.mark.parametrize("dtype, least_s", [("float32", 1.0), ("float16", 0.25)])
def test_many_operations_are_held_against_the_product_in_their_dtype(dtype, least_s):
    bound = _bound(_facts(flops=1e12, least_bytes=10**9, output_bytes=10**9), dtype)
    assert (bound.regime, bound.least_s) == (COMPUTE, least_s)


def test_without_a_product_in_that_dtype_the_data_binds():
    bound = _bound(
        _facts(flops=1e15, least_bytes=10**9, output_bytes=10**9), "bfloat16"
    )
    assert (bound.regime, bound.least_s) == (MEMORY, pytest.approx(1e-2))


def test_the_share_is_the_least_time_over_the_median():
    assert _bound(_facts(flops=1e12), median_s=4.0) == Bound(COMPUTE, 1.0, 0.25)


PRODUCT = _facts(
    flops=1e12, least_bytes=3 * 2**22, output_bytes=2**22
)  # 0.2 s at the best product's rate
REDUCTION = _facts(
    flops=2.5e8, least_bytes=10**9, output_bytes=4096
)  # 20 µs in cache, 3.872 ms beyond it
IN_CACHE = _facts(flops=1e3, least_bytes=CACHE_BYTES, output_bytes=4096)  # 20 µs


@pytest.mark.parametrize(
    "facts, floor_s",
    [(PRODUCT, 0.2), (REDUCTION, 3.892e-3), (IN_CACHE, 20e-6)],
    ids=["product", "reduction", "in cache"],
)
def test_the_floor_is_three_quarters_of_the_least_time_of_the_best_ceilings(
    facts, floor_s
):
    assert roofline.why_impossible(facts, 0.751 * floor_s, CEILINGS) is None
    assert roofline.why_impossible(facts, 0.749 * floor_s, CEILINGS)


def test_a_large_product_that_returns_at_once_is_refused_for_its_operations():
    reason = roofline.why_impossible(PRODUCT, 2e-6, CEILINGS)
    assert reason == (
        "2.00 µs is faster than its work allows: 1e+12 FLOP at the 5e+12 FLOP/s of the best product take "
        "200 ms, so it can't have done it"
    )


def test_a_large_reduction_that_returns_at_once_is_refused_for_its_bytes():
    reason = roofline.why_impossible(REDUCTION, 2e-6, CEILINGS)
    assert reason == (
        "2.00 µs is faster than its work allows: 954 MiB at the 1490 GiB/s of the cache and the "
        "233 GiB/s of memory take 3.89 ms, so it can't have done it"
    )


def test_nothing_to_do_takes_any_time():
    assert roofline.why_impossible(_facts(), 1e-9, CEILINGS) is None


def test_a_cache_measured_slower_than_memory_does_not_raise_the_floor():
    slow_cache = CEILINGS | {"best": CEILINGS["best"] | {"cache_bytes_per_s": 1e9}}
    assert (
        roofline.why_impossible(IN_CACHE, 0.76 * CACHE_BYTES / 2.5e11, slow_cache)
        is None
    )


def test_the_floor_knows_nothing_of_medians():
    slow_day = copy.deepcopy(CEILINGS)
    slow_day.update(
        copy_bytes_per_s=1.0,
        read_bytes_per_s=1.0,
        cache_bytes_per_s=1.0,
        matmul_flops_per_s={},
        launch_s={"host": 10.0},
    )
    assert roofline.why_impossible(PRODUCT, 0.16, slow_day) is None


def test_the_best_of_two_takes_the_highest_rates_and_the_shortest_launches():
    one = {
        "copy_bytes_per_s": 1.0,
        "cache_bytes": 7,
        "matmul_flops_per_s": {"float32": 5.0, "float16": 6.0},
        "launch_s": {"host": 1e-6, "host_cold": 4e-6},
        "best": {"copy_bytes_per_s": 2.0, "matmul_flops_per_s": 9.0},
    }
    other = {
        "copy_bytes_per_s": 3.0,
        "cache_bytes": 7,
        "matmul_flops_per_s": {"float32": 4.0, "float16": 8.0},
        "launch_s": {"host": 2e-6, "host_cold": 3e-6},
        "best": {"copy_bytes_per_s": 1.0, "matmul_flops_per_s": 8.0},
    }
    expected = {
        "copy_bytes_per_s": 3.0,
        "cache_bytes": 7,
        "matmul_flops_per_s": {"float32": 5.0, "float16": 8.0},
        "launch_s": {"host": 1e-6, "host_cold": 3e-6},
        "best": {"copy_bytes_per_s": 2.0, "matmul_flops_per_s": 9.0},
    }
    assert roofline.best_of(one, other) == roofline.best_of(other, one) == expected


@pytest.mark.parametrize(
    "with_it",
    [
        {"read_bytes_per_s": 2.0},
        {"matmul_flops_per_s": {"float16": 8.0}},
        {"launch_s": {"host": 0.0}},
        {"best": {"matmul_flops_per_s": 9.0}},
    ],
    ids=lambda value: next(iter(value)),
)
@pytest.mark.parametrize("none", [False, True], ids=["missing", "None"])
def test_what_only_one_of_two_has_is_kept(with_it, none):
    ((name, value),) = with_it.items()
    without = {name: None} if none else {}
    assert (
        roofline.best_of(with_it, without)
        == roofline.best_of(without, with_it)
        == with_it
    )


@pytest.mark.parametrize("name", ["matmul_flops_per_s", "launch_s", "best"])
def test_what_only_one_of_two_has_is_kept_inside_a_mapping_too(name):
    one, other = {name: {"a": 1.0, "b": 2.0}}, {name: {"b": 2.0, "c": 3.0}}
    assert (
        roofline.best_of(one, other)
        == roofline.best_of(other, one)
        == {name: {"a": 1.0, "b": 2.0, "c": 3.0}}
    )


def test_the_best_of_two_leaves_both_as_they_were():
    one, other = copy.deepcopy(CEILINGS), {
        "launch_s": {"host": 1e-9},
        "best": {"matmul_flops_per_s": 1e20},
    }
    roofline.best_of(one, other)
    assert one == CEILINGS and other == {
        "launch_s": {"host": 1e-9},
        "best": {"matmul_flops_per_s": 1e20},
    }


def test_multiply_adds_raise_the_ceiling_that_a_library_does_not_reach():
    facts = {"flops": 1e9, "least_bytes": 1e3, "output_bytes": 1e2}
    found = roofline.bound(
        facts,
        "float32",
        "host",
        1e-3,
        CEILINGS | {"fma_flops_per_s": {"float32": 2e12}},
    )
    assert (found.regime, found.share) == (roofline.COMPUTE, pytest.approx(0.5))
