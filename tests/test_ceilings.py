"""The ceilings: all there, work counted as it is done, and what a library can't do or a
machine can't say left out.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from batchline.bench.cases import CLOCKS
from batchline.bench.measure.machine.state import NoGuard
from batchline.bench.measure.timing import ceilings, clocks, sampling
from batchline.bench.measure.timing.sampling import Effort, Samples
from batchline.bench.statuses import INVALID, NotMeasured

KIB, MIB = 2**10, 2**20
QUICK = Effort(precision=0.2, seconds=0.01, most=20)
RATES = ("copy_bytes_per_s", "read_bytes_per_s", "cache_bytes_per_s")
CACHE_BYTES, LEAST_STREAM_BYTES = 128 * KIB, 2 * MIB
SIZES = {"float32": 32, "float64": 48, "float16": 16, "bfloat16": 16}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Problems that take no time."""
    monkeypatch.setattr(clocks, "last_level_cache_bytes", lambda: CACHE_BYTES)
    monkeypatch.setattr(ceilings, "_LEAST_STREAM_BYTES", LEAST_STREAM_BYTES)
    monkeypatch.setattr(ceilings, "_SIZES", {"cpu": SIZES})


def test_every_ceiling_is_measured():
    found = ceilings.measure("cpu", ("float16", "bfloat16", "float64"), QUICK)
    best = found["best"]
    assert set(found) == {
        *RATES,
        "cache_bytes",
        "matmul_flops_per_s",
        "fma_flops_per_s",
        "launch_s",
        "best",
    }
    assert set(best) == {*RATES, "matmul_flops_per_s"}
    assert found["cache_bytes"] == CACHE_BYTES
    assert set(found["matmul_flops_per_s"]) == {
        "float16",
        "bfloat16",
        "float64",
        "float32",
    }
    assert set(found["launch_s"]) == set(CLOCKS["cpu"])
    rates = [
        *(found[name] for name in RATES),
        *found["matmul_flops_per_s"].values(),
        *found["launch_s"].values(),
        *best.values(),
    ]
    assert all(0 < rate < math.inf for rate in rates)
    assert all(best[name] >= found[name] for name in RATES)
    assert best["matmul_flops_per_s"] >= max(found["matmul_flops_per_s"].values())


@pytest.mark.parametrize("asked", [(), ("bfloat16",), ("float32", "float16")])
def test_fp32_is_always_among_the_products_and_once(monkeypatch, asked):
    monkeypatch.setattr(ceilings, "_seconds", lambda *_: {"median": 1.0, "best": 1.0})
    made, product = [], ceilings._product
    monkeypatch.setattr(
        ceilings,
        "_product",
        lambda dtype, device: made.append(dtype) or product(dtype, device),
    )
    assert (
        set(ceilings.measure("cpu", asked, QUICK)["matmul_flops_per_s"])
        == set(made)
        == {"float32", *asked}
    )
    assert len(made) == len(set(made))


class Work(TorchDispatchMode):
    """Counts what calls through torch really move and compute."""

    def __init__(self):
        super().__init__()
        self.kinds, self.bytes, self.flops = set(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        kind = str(function).split(".")[1]
        self.kinds.add(kind)
        if kind in ("sum", "copy_"):
            self.bytes += sum(
                tensor.nbytes for tensor in args if isinstance(tensor, torch.Tensor)
            )
        elif kind == "mm":
            (rows, depth), (_, columns) = args[0].shape, args[1].shape
            self.flops += 2 * rows * depth * columns
        return result


@pytest.fixture
def work_by_clock(monkeypatch):
    """(clock, kinds of call, bytes, flops, dtype of the result) of each launch; each
    takes 0.5 s, at best 0.25 s.
    """
    seen = []

    def seconds(machine, clock, launch, effort):
        with Work() as work:
            result = launch()
        seen.append(
            (
                clock,
                work.kinds,
                work.bytes,
                work.flops,
                str(result.dtype).removeprefix("torch."),
            )
        )
        return {"median": 0.5, "best": 0.25}

    monkeypatch.setattr(ceilings, "_seconds", seconds)
    monkeypatch.setattr(ceilings, "DTYPES", ())  # it calls nothing through torch
    return seen


@pytest.mark.parametrize(
    "cache_bytes, stream", [(CACHE_BYTES, LEAST_STREAM_BYTES), (MIB, 8 * MIB)]
)
def test_bytes_are_those_really_read_and_written(
    monkeypatch, work_by_clock, cache_bytes, stream
):
    monkeypatch.setattr(clocks, "last_level_cache_bytes", lambda: cache_bytes)
    found = ceilings.measure("cpu", (), QUICK)
    assert [(kinds, moved) for _, kinds, moved, _, _ in work_by_clock[:8]] == [
        ({"copy_"}, stream),
        ({"sum"}, stream),
        *(
            ({kind}, cache_bytes // share)
            for kind in ("copy_", "sum")
            for share in (2, 8, 32)
        ),
    ]
    assert found["copy_bytes_per_s"] == found["read_bytes_per_s"] == stream / 0.5
    assert found["cache_bytes_per_s"] == cache_bytes / 2 / 0.5  # the best of them
    assert found["best"] == {
        "copy_bytes_per_s": stream / 0.25,
        "read_bytes_per_s": stream / 0.25,
        "cache_bytes_per_s": cache_bytes / 2 / 0.25,
        "matmul_flops_per_s": 2 * 32**3 / 0.25,
    }


def test_operations_are_those_of_the_product_in_its_dtype(work_by_clock):
    found = ceilings.measure("cpu", ("float64", "float16"), QUICK)
    products = {dtype: flops for _, _, _, flops, dtype in work_by_clock if flops}
    assert products == {
        "float32": 2 * 32**3,
        "float64": 2 * 48**3,
        "float16": 2 * 16**3,
    }
    assert found["matmul_flops_per_s"] == {
        dtype: flops / 0.5 for dtype, flops in products.items()
    }
    assert found["best"]["matmul_flops_per_s"] == 2 * 48**3 / 0.25


def test_multiply_adds_are_counted_and_raise_the_best_rate(monkeypatch):
    monkeypatch.setattr(
        ceilings,
        "fma_launch",
        lambda dtype: (lambda: None, {"float32": 8e9, "float64": 4e9}[dtype]),
    )
    monkeypatch.setattr(ceilings, "_seconds", lambda *_: {"median": 0.5, "best": 0.25})
    found = ceilings.measure("cpu", (), QUICK)
    assert found["fma_flops_per_s"] == {"float32": 16e9, "float64": 8e9}
    assert found["best"]["matmul_flops_per_s"] == 32e9


@pytest.mark.skipif(ceilings.why_no_fma() is not None, reason="needs Numba")
@pytest.mark.parametrize("dtype", ceilings.DTYPES)
def test_a_multiply_add_call_writes_every_tile(dtype):
    call, flops = ceilings.fma_launch(dtype)
    call()
    assert flops > 1e8


def test_products_multiply_no_zeros():
    for dtype in SIZES:
        product = ceilings._product(dtype, "cpu")()
        assert str(product.dtype) == f"torch.{dtype}" and product.abs().min() > 0


def test_rates_and_launches_are_taken_by_the_right_clocks(work_by_clock):
    found = ceilings.measure("cpu", (), QUICK)
    assert {
        clock for clock, kinds, *_ in work_by_clock if kinds & {"copy_", "sum", "mm"}
    } == {"host"}
    assert [clock for clock, kinds, *_ in work_by_clock if kinds == {"add_"}] == list(
        CLOCKS["cpu"]
    )
    assert found["launch_s"] == dict.fromkeys(CLOCKS["cpu"], 0.5)


def test_seconds_are_the_median_and_the_fastest_of_the_samples(monkeypatch):
    taken = Samples("host", 1, [3.0, 1.0, 2.0, 9.0, 4.0])
    monkeypatch.setattr(
        ceilings, "sample", lambda clocks, *how, **clock: dict.fromkeys(clocks, taken)
    )
    seconds = ceilings._seconds(clocks.hardware("cpu"), "host", lambda: None, QUICK)
    assert seconds == {"median": 3.0, "best": 1.0}


def test_samples_of_a_throttled_machine_are_no_ceiling(monkeypatch):
    monkeypatch.setattr(
        ceilings,
        "state_of",
        lambda device: SimpleNamespace(why_throttled=lambda: "hot"),
    )
    monkeypatch.setattr(sampling, "_PAUSES_S", ())
    with pytest.raises(NotMeasured, match="the machine was throttled \\(hot\\)"):
        ceilings._seconds(clocks.hardware("cpu"), "host", lambda: None, QUICK)


def test_what_ended_the_sampling_is_raised(monkeypatch):
    throttled = NotMeasured(INVALID, "throttled")
    monkeypatch.setattr(
        ceilings,
        "sample",
        lambda clocks, *how, **clock: dict.fromkeys(clocks, throttled),
    )
    with pytest.raises(NotMeasured, match="throttled"):
        ceilings._seconds(clocks.hardware("cpu"), "host", lambda: None, QUICK)


def _refused():
    raise RuntimeError('"addmm_impl_cpu_" not implemented for this dtype')


@pytest.mark.parametrize(
    "refuse_at_once", [True, False], ids=["when made", "when launched"]
)
def test_a_dtype_that_the_library_refuses_has_no_ceiling_and_the_others_do(
    monkeypatch, refuse_at_once
):
    product = ceilings._product

    def make(dtype, device):
        if dtype != "float16":
            return product(dtype, device)
        return _refused() if refuse_at_once else _refused

    monkeypatch.setattr(ceilings, "_product", make)
    found = ceilings.measure("cpu", ("float16", "bfloat16"), QUICK)
    assert set(found["matmul_flops_per_s"]) == {"float32", "bfloat16"}
    assert 0 < found["best"]["matmul_flops_per_s"] < math.inf


@pytest.mark.parametrize(
    "error, reason",
    [
        (RuntimeError("no\nstack of frames"), "RuntimeError: no"),
        (MemoryError("too large"), "MemoryError: too large"),
        (NotMeasured(INVALID, "throttled"), "NotMeasured: invalid: throttled"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_where_they_can_not_be_measured_there_is_a_reason_of_one_line(
    monkeypatch, error, reason
):
    def seconds(*_):
        raise error

    monkeypatch.setattr(ceilings, "_seconds", seconds)
    assert ceilings.try_to_measure("cpu", (), QUICK, NoGuard()) == (None, reason)


def test_where_no_product_can_be_had_there_is_a_reason_too(monkeypatch):
    monkeypatch.setattr(ceilings, "_product", lambda dtype, device: _refused)
    found, reason = ceilings.try_to_measure("cpu", (), QUICK, NoGuard())
    assert found is None and reason


def test_where_they_can_be_measured_there_is_no_reason(work_by_clock):
    found, reason = ceilings.try_to_measure("cpu", (), QUICK, NoGuard())
    assert (
        found == ceilings.measure("cpu", (), QUICK) | {"quiet": True} and reason is None
    )


@pytest.mark.parametrize(
    "why, quiet", [(None, True), ("the machine was busy: twice", False)]
)
def test_of_several_attempts_on_a_busy_machine_the_best_of_each_is_kept(
    monkeypatch, why, quiet
):
    taken_s = {"median": 2.0, "best": 2.0}

    class Twice(NoGuard):
        def measured(self, work):
            work()
            taken_s["median"] = 1.0
            return work(), why

    monkeypatch.setattr(ceilings, "_seconds", lambda *_: dict(taken_s))
    found, _ = ceilings.try_to_measure("cpu", (), QUICK, Twice())
    assert (
        found["copy_bytes_per_s"] == LEAST_STREAM_BYTES / 1.0
        and found["quiet"] is quiet
    )


def test_a_floor_holds_for_numbas_threads_where_it_has_more_than_torch(monkeypatch):
    seen = []
    monkeypatch.setattr(ceilings, "threads", lambda: 2)
    monkeypatch.setattr(
        ceilings,
        "_seconds",
        lambda *_: seen.append(torch.get_num_threads()) or {"median": 1.0, "best": 1.0},
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ceilings.measure("cpu", (), QUICK)
        assert set(seen) == {2} and torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
