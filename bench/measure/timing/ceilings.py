"""What this machine can do, measured in the same run: the ceilings that results are
held against.

The processor's multiply-add peak: a register tile on one element of A and one row of
B, which stay in L1.

Kernels that walk a piece of a GPU's L2 cache many times in one launch: what the
cache gives, with no gap in it.

Half of a 50 MB L2 is read in 5 µs at 5 TB/s. Between two such launches a microsecond or
so goes by, also in a CUDA graph, so a rate that is taken from them is too low by that
share. Here one launch moves 4 GiB, for most of a millisecond at that rate, so that its
start and end are less than a hundredth of it. torch has no such launch: a sum over an
expanded tensor reads element by element, and its blocks read the same lines at the same
time, which are then in L1. Here loads leave L1 out, and neighbouring programs are at
different places.
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
from batchline.bench.measure import stand_in
from batchline.bench.measure.machine.state import Guard, NoGuard, state_of
from batchline.bench.measure.timing.clocks import Cpu, Cuda, hardware, make_clock
from batchline.bench.measure.timing.sampling import Effort, sample
from batchline.bench.stats import roofline
from batchline.bench.statuses import NotMeasured
from batchline.kernels._cpu.jit import threads
from batchline.kernels._torch.precision import tf32_products
from batchline.kernels.backends import numba, tl, triton, why_absent
from batchline.kernels.device import why_no_fp8
from batchline.kernels.op import FP8
from batchline.kernels.target import multiprocessors

DTYPES = ("float32", "float64")
_DEPTH = 2**14
_TILES = 16  # a thread's, in one call


def why_no_fma() -> str | None:
    """Why the peak can't be measured here, or None."""
    return why_absent("numba_cpu")


def fma_launch(dtype: str) -> tuple[Callable, float]:
    """A call that keeps every thread's units busy, and its floating-point operations."""
    from batchline.kernels._cpu.jit import threads
    from batchline.kernels._cpu.lanes import lanes_of
    from batchline.kernels._cpu.tasks import run, shares
    from batchline.kernels._cpu.vectors import TILE_ROWS, TILE_VECTORS

    width = TILE_VECTORS * lanes_of(getattr(torch, dtype).itemsize)
    tasks = _TILES * threads()
    operands = torch.zeros(width, dtype=getattr(torch, dtype))
    results = torch.empty(tasks, TILE_ROWS, width, dtype=getattr(torch, dtype))

    def call():
        run(
            _compiled(dtype),
            tasks,
            shares(tasks, alone=False),
            (operands.data_ptr(), results.data_ptr()),
        )

    return call, 2.0 * tasks * TILE_ROWS * width * _DEPTH


@functools.cache
def _compiled(dtype: str):
    from batchline.kernels._cpu.lanes import lanes_of
    from batchline.kernels._cpu.tasks import compile_tasks
    from batchline.kernels._cpu.vectors import TILE_ROWS, TILE_VECTORS, pointer, tile

    element, size = getattr(numba, dtype)(0), getattr(torch, dtype).itemsize
    width = TILE_VECTORS * lanes_of(size)

    def tiles(first, last, operands, results):
        for task in range(first, last):
            tile(
                pointer(operands, element),
                0,
                0,
                pointer(operands, element),
                0,
                _DEPTH,
                pointer(results + task * TILE_ROWS * width * size, element),
                width,
                TILE_ROWS,
                width,
                0,
            )

    return compile_tasks(tiles, 2)


SHARE = (
    4  # of the L2 that is walked on: it may hold a line once in each of its two halves
)
_BLOCK, _WARPS, _PROGRAMS_PER_SM = (
    4096,
    8,
    4,
)  # 64 bytes of loads in flight for each thread, and half of its registers


def why_no_cache_walk() -> str | None:
    """Why there is no such kernel here, or None."""
    return why_absent("triton")


@triton.jit
def _read_walk(source_ptr, sums_ptr, blocks, visits, BLOCK: tl.constexpr):
    """Each program adds up `visits` blocks of a source of so many, as many apart as
    there are programs.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    offsets = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float32)
    place = program % blocks
    for _ in range(visits):
        sums += tl.load(source_ptr + place * BLOCK + offsets, cache_modifier=".cg")
        place = (place + programs) % blocks
    tl.store(sums_ptr + program, tl.sum(sums))


@triton.jit
def _copy_walk(source_ptr, target_ptr, blocks, visits, BLOCK: tl.constexpr):
    """Each program copies `visits` blocks likewise; two that are at one place write the
    same.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    offsets = tl.arange(0, BLOCK)
    place = program % blocks
    for _ in range(visits):
        at = place * BLOCK + offsets
        tl.store(
            target_ptr + at,
            tl.load(source_ptr + at, cache_modifier=".cg"),
            cache_modifier=".cg",
        )
        place = (place + programs) % blocks


def reading(cache_bytes: int, least_bytes: int) -> tuple[Callable[[], object], int]:
    """A launch that reads `least_bytes` or a little more out of a share of such a
    cache, and how many those are.
    """
    source, programs = _walked(cache_bytes // SHARE)
    sums = torch.empty(programs, device="cuda")
    blocks, visits = len(source), _visits(least_bytes, programs)

    def launch() -> torch.Tensor:
        _read_walk[(programs,)](
            source, sums, blocks, visits, BLOCK=_BLOCK, num_warps=_WARPS
        )
        return sums

    return launch, programs * visits * _block_bytes()


def copying(cache_bytes: int, least_bytes: int) -> tuple[Callable[[], object], int]:
    """A launch that copies within a share of such a cache, and how many bytes it reads
    and writes, likewise.
    """
    source, programs = _walked(cache_bytes // SHARE // 2)
    target = torch.zeros_like(source)
    blocks, visits = len(source), _visits(least_bytes // 2, programs)

    def launch() -> torch.Tensor:
        _copy_walk[(programs,)](
            source, target, blocks, visits, BLOCK=_BLOCK, num_warps=_WARPS
        )
        return target

    return launch, 2 * programs * visits * _block_bytes()


def _walked(nbytes: int) -> tuple[torch.Tensor, int]:
    """fp32 [blocks, _BLOCK] of about so many bytes, and how many programs walk on it."""
    source = torch.ones(max(1, nbytes // _block_bytes()), _BLOCK, device="cuda")
    return source, _PROGRAMS_PER_SM * multiprocessors(source.device)


def _visits(nbytes: int, programs: int) -> int:
    return max(1, -(-nbytes // (programs * _block_bytes())))


def _block_bytes() -> int:
    return _BLOCK * torch.float32.itemsize


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
        (bench.measure.timing.ceilings); cache_bytes: its size.
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
        for name in DTYPES
        if device == "cpu" and not why_no_fma()
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
    if device == "cuda" and not why_no_cache_walk():
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
    for make in (copying, reading):
        yield make(cache_bytes, walked_bytes)


def _peak(rate: Callable, clock: str, dtype: str) -> dict[str, float]:
    launch, flops = fma_launch(dtype)
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
