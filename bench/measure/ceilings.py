"""What this machine can do, measured in the same run: the ceilings that results are
held against.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import sys
from collections.abc import Callable, Iterator

import torch

from batchline.bench import texts
from batchline.bench.cases import CLOCKS
from batchline.bench.measure import cache_walk, fma, stand_in
from batchline.bench.measure.busy import Guard, NoGuard
from batchline.bench.measure.clocks import make_clock
from batchline.bench.measure.hardware import Cpu, Cuda, hardware
from batchline.bench.measure.sampling import Effort, sample
from batchline.bench.measure.state import state_of
from batchline.bench.stats import roofline
from batchline.bench.statuses import NotMeasured
from batchline.kernels._cpu.jit import threads
from batchline.kernels._torch.precision import tf32_products
from batchline.kernels.backends import why_absent
from batchline.kernels.device import why_no_fp8
from batchline.kernels.op import FP8

_LEAST_STREAM_BYTES = 2**28
_LONG_STREAM_BYTES = 2**30
_CACHE_SHARES = (
    2,
    8,
    32,
)  # of the last level; the smaller ones come from the level before it
_WALKED_BYTES = 2**32  # in a launch on a GPU: most of a millisecond
_STAND_IN_SIZE, _STAND_IN_BYTES = (
    64,
    2**22,
)  # of products and streams whose times are made up
_STAND_IN_WALKED_BYTES = 2**24
_SIZES = {
    "cpu": {"float32": 1024, "float64": 1024, "float16": 256, "bfloat16": 256},
    "cuda": {
        "float32": 4096,
        "tf32": 8192,
        "float64": 4096,
        "float16": 8192,
        "bfloat16": 8192,
        FP8: 8192,
    },
}


def measure(
    device: str,
    dtypes: tuple[str, ...],
    effort: Effort,
    tell: Callable[[str], None] = lambda what: None,
) -> dict:
    """The ceilings of "cpu" or "cuda"; `tell` is told of each before it is measured.

    Returns:
        copy_bytes_per_s: device memory, bytes read plus bytes written.
        read_bytes_per_s: read only (a sum). cache_bytes_per_s: the best of copy and sum
        over what the last level of cache holds, on a GPU many times over in one launch
        (bench.measure.cache_walk); cache_bytes: its size.
        matmul_flops_per_s: by dtype, square products through the vendor's library.
        fma_flops_per_s: by dtype, a processor's multiply-adds on what stays in L1 (a
        GPU's are not measured: {}). launch_s: by clock, what an empty launch reads on
        it. Rates are of the median; `best` has the same of the fastest sample, for
        floors.
    """
    if device == "cpu":
        with _as_many_threads_as_numba():
            return _measure(device, dtypes, effort, tell)
    return _measure(device, dtypes, effort, tell)


def _measure(
    device: str, dtypes: tuple[str, ...], effort: Effort, tell: Callable[[str], None]
) -> dict:
    machine = hardware(device)
    clock = CLOCKS[device][0]
    stream = stream_bytes(machine.cache_bytes)

    def rate(clock: str, launch: Callable, work: float) -> dict[str, float]:
        tell(f"{work:.2e} bytes or FLOPs by {clock}")
        return _rate(machine, clock, launch, work, effort)

    found = {
        "copy_bytes_per_s": rate(clock, _copy(stream, device), stream),
        "read_bytes_per_s": rate(clock, _read(stream, device), stream),
    }
    cached = _cache_rates(device, machine.cache_bytes, rate)
    found["cache_bytes_per_s"] = {
        key: max(one[key] for one in cached) for key in ("median", "best")
    }
    products = {}
    for name in _dtypes(device, dtypes):
        with contextlib.suppress(
            RuntimeError
        ):  # what the library can't multiply in has no ceiling
            products[name] = rate(
                clock, _product(name, device), 2 * _size(name, device) ** 3
            )
    if not products:
        raise RuntimeError("no matrix product could be timed in any dtype")
    peaks = {
        name: _peak(rate, clock, name)
        for name in fma.DTYPES
        if device == "cpu" and not fma.why_not()
    }
    rates = {name: value["median"] for name, value in found.items()}
    best = {name: value["best"] for name, value in found.items()}
    return rates | {
        "cache_bytes": machine.cache_bytes,
        "matmul_flops_per_s": {
            name: value["median"] for name, value in products.items()
        },
        "fma_flops_per_s": {name: value["median"] for name, value in peaks.items()},
        "launch_s": {
            name: _seconds(machine, name, machine.empty_launch(), effort)["median"]
            for name in CLOCKS[device]
        },
        "best": best
        | {
            "matmul_flops_per_s": max(
                value["best"] for value in (*products.values(), *peaks.values())
            )
        },
    }


@contextlib.contextmanager
def _as_many_threads_as_numba() -> Iterator[None]:
    """A floor must hold for Numba's kernels too, where Numba was told to take more
    threads than torch.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(before, before if why_absent("numba_cpu") else threads()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def stream_bytes(cache_bytes: int) -> int:
    """How much to stream so that it comes from memory: eight times the last cache, or
    twice one of 480 MiB.
    """
    if stand_in.is_on():
        return _STAND_IN_BYTES
    return max(
        _LEAST_STREAM_BYTES,
        min(8 * cache_bytes, max(2 * cache_bytes, _LONG_STREAM_BYTES)),
    )


def _size(dtype: str, device: str) -> int:
    """Of a square product, in each of its three dimensions."""
    return (
        _STAND_IN_SIZE
        if device == "cuda" and stand_in.is_on()
        else _SIZES[device][dtype]
    )


def _dtypes(device: str, dtypes: tuple[str, ...]) -> list[str]:
    """fp32 always: on a CPU it is the best of the rates, and a floor needs the best."""
    names = [
        name
        for name in dict.fromkeys(("float32", *dtypes))
        if name in _SIZES[device] and name != FP8
    ]
    if device == "cuda":
        names.append("tf32")
        if why_no_fp8(device) is None:
            names.append(FP8)
    return names


def _cache_rates(
    device: str, cache_bytes: int, rate: Callable
) -> list[dict[str, float]]:
    """What each way of moving data within the last level of cache reaches.

    On a GPU they are walks by Triton. Where that compiles nothing they are torch's
    launches, in a graph, where the gaps between them are smallest.
    """
    if device == "cuda" and not cache_walk.why_not():
        try:
            return [rate("device_hot", *walk) for walk in _walks(cache_bytes)]
        except (
            Exception
        ) as error:  # whatever Triton raises where it has no C compiler, or a broken one
            print(
                f"the cache's ceiling is torch's, for no kernel could walk it: {texts.error_line(error)}",
                file=sys.stderr,
            )
    clock = "graph" if device == "cuda" else CLOCKS[device][0]
    return [
        rate(clock, make(cache_bytes // share, device), cache_bytes // share)
        for make in (_copy, _read)
        for share in _CACHE_SHARES
    ]


def _walks(cache_bytes: int) -> Iterator[tuple[Callable, int]]:
    """Launches that walk within the cache, and the bytes that each moves."""
    walked_bytes = _STAND_IN_WALKED_BYTES if stand_in.is_on() else _WALKED_BYTES
    for make in (cache_walk.copying, cache_walk.reading):
        yield make(cache_bytes, walked_bytes)


def _peak(rate: Callable, clock: str, dtype: str) -> dict[str, float]:
    launch, flops = fma.launch(dtype)
    return rate(clock, launch, flops)


def _rate(
    machine: Cpu | Cuda, clock: str, launch: Callable, work: float, effort: Effort
) -> dict[str, float]:
    seconds = _seconds(machine, clock, launch, effort)
    return {"median": work / seconds["median"], "best": work / seconds["best"]}


def _seconds(
    machine: Cpu | Cuda, clock: str, launch: Callable, effort: Effort
) -> dict[str, float]:
    for _ in range(3):
        start_s = machine.now_s()
        launch()
        machine.synchronize()
        call_s = max(machine.now_s() - start_s, 1e-7)
    clocks = {"": make_clock(clock, machine, [launch], call_s, effort.sample_s)}
    taken = sample(
        clocks, effort, state_of(machine.name).why_throttled, now_s=machine.now_s
    )[""]
    if isinstance(taken, BaseException):
        raise taken
    return {"median": statistics.median(taken.samples_s), "best": min(taken.samples_s)}


def _copy(stream_bytes: int, device: str) -> Callable:
    """Half the bytes read, half of them written."""
    source = torch.ones(stream_bytes // 8, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _read(stream_bytes: int, device: str) -> Callable:
    source = torch.ones(stream_bytes // 4, dtype=torch.float32, device=device)
    return lambda: source.sum()


def _product(dtype: str, device: str) -> Callable:
    size = _size(dtype, device)
    generator = torch.Generator(device).manual_seed(0)
    a, b = (
        torch.rand(size, size, device=device, generator=generator).mul_(2).sub_(1)
        for _ in "ab"
    )
    if dtype == FP8:
        a, b = (
            a.to(torch.float8_e4m3fn),
            b.to(torch.float8_e4m3fn).t(),
        )  # cuBLAS takes fp8 as row times column
        one = torch.ones((), device=device)
        return lambda: torch._scaled_mm(
            a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16
        )
    if dtype == "tf32":
        return functools.partial(_with_tf32, a, b)
    a, b = a.to(getattr(torch, dtype)), b.to(getattr(torch, dtype))
    return lambda: torch.mm(a, b)


def _with_tf32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    with tf32_products():
        return torch.mm(a, b)


def try_to_measure(
    device: str,
    dtypes: tuple[str, ...],
    effort: Effort,
    guard: Guard | NoGuard,
    tell: Callable[[str], None] = lambda what: None,
) -> tuple[dict | None, str | None]:
    """The ceilings, or None and why they could not be had: a run without them has no
    shares, regimes and floors.

    Of several attempts on a busy machine the best of each counts. `quiet` is whether
    one met a machine that was not: of a machine that never was the ceilings are too
    low, and no floor follows from them.
    """
    measured: list[dict] = []
    try:
        _, why_busy = guard.measured(
            lambda: measured.append(measure(device, dtypes, effort, tell))
        )
    except (RuntimeError, MemoryError, NotMeasured) as error:
        return None, texts.error_line(error)
    return functools.reduce(roofline.best_of, measured) | {"quiet": not why_busy}, None
