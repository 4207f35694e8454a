"""What holds for {ḡ, n, d} of any batch, on drawn problems: wherever a variant can run,
as in test_variants.py.

They agree with fp64 inside the tolerance, give the same bits when they are called
again, 2ᵏ, 4ᵏ and 4ᵏ times themselves for 2ᵏ times the gradients, the same n and d in
another order for samples in another order, and for samples that are all equal n = d =
‖ḡ‖². What lies in memory around the inputs is NaN.
"""

import zlib
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st

from batchline import kernels
from batchline.bench.measure.checking.check import checked_call, expect, held_to
from batchline.bench.statuses import WRONG, NotMeasured
from batchline.kernels.op import Variant
from tests.problems import scale
from tests.test_variants import DEVICES, DTYPES, INTERPRETED, _takes

SETTINGS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
SIZES = (1, 3, 8, 17, 33, 64, 100, 257, 1000, 0)
BATCHES = (5, 1, 2, 3, 8, 33, 64, 100, 257, 1025, 4096, 0)
LAYOUTS = ("rows", "window", "stepped", "features_first", "batch_inside")
VALUES = ("unit", "equal", "mean_over_noise", "small", "large", "zeros")
EXACT = (
    "unit",
    "mean_over_noise",
    "zeros",
)  # eight times these is exact, and so is it for what is made of them


@dataclass(frozen=True)
class Problem:
    """`batch` samples of g[P], or with `tokens` of X[T,I] and dY[T,O]."""

    batch: int
    sizes: tuple[int, ...]
    layout: str = "rows"
    values: str = "unit"
    number: int = 0

    def inputs(self, op, dtype, device):
        generator = torch.Generator().manual_seed(self.number)
        shapes = (
            [(self.batch, self.sizes[0])]
            if op.name == "grad_stats"
            else [
                (self.batch, self.sizes[1], size)
                for size in (self.sizes[0], self.sizes[2])
            ]
        )
        return tuple(
            _laid_out(
                self.layout,
                _values(self.values, shape, dtype, len(shapes), generator).to(
                    device, dtype
                ),
            )
            for shape in shapes
        )


def _values(kind, shape, dtype, factors, generator):
    """In fp64; `factors` of them are multiplied for one element of a gradient."""
    values = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    if kind == "equal":
        return values[:1].expand(shape).clone()
    if kind == "mean_over_noise":
        return values + 30
    if kind == "zeros":
        return values.where(values.abs() > 0.5, 0)
    if kind == "small":
        return values * max(
            1e-16 ** (1 / factors), 4 * torch.finfo(dtype).smallest_normal
        )
    if kind == "large":
        return values * min(1e16 ** (1 / factors), torch.finfo(dtype).max / 4)
    return values


def _laid_out(layout, values):
    if layout == "rows":
        return values.clone()
    if layout == "features_first":
        return (
            values.movedim(-1, 0)
            .clone(memory_format=torch.contiguous_format)
            .movedim(0, -1)
        )
    if layout == "batch_inside":
        return (
            values.movedim(0, -2)
            .clone(memory_format=torch.contiguous_format)
            .movedim(-2, 0)
        )
    step, margin = (2, 1) if layout == "stepped" else (1, 3)
    around = values.new_full(
        [step * size + 2 * margin for size in values.shape], float("nan")
    )
    window = around[
        tuple(slice(margin, margin + step * size, step) for size in values.shape)
    ]
    return window.copy_(values)


@dataclass(frozen=True)
class Reach:
    """How many problems are walked, of how many elements of all samples' gradients at
    most, and which at least.
    """

    examples: int
    most: int
    explicit: tuple[tuple[int, tuple[int, ...]], ...]
    batches: tuple[int, ...] = BATCHES


LARGE = (
    (4096, (65, 1, 3)),
    (3, (1000, 40, 33)),
    (1, (257, 5, 100)),
    (0, (3, 4, 5)),
    (5, (0, 3, 2)),
)
REACHES = {
    "cuda": Reach(40, 10**7, (*LARGE, (70_000, (17, 2, 5)), (64, (1000, 257, 1000)))),
    "numba_cuda": Reach(2, 200, ((3, (17, 2, 5)), (0, (3, 4, 5))), batches=(5, 1, 2)),
    # Its programs are interpreted one after another: a hundredth of a second each.
    "triton": Reach(
        3,
        2_000,
        ((5, (33, 2, 17)), (1, (100, 5, 33)), (0, (3, 4, 5))),
        batches=(5, 1, 2, 3, 8),
    ),
}
NATIVE = Reach(15, 300_000, LARGE)
# What is about indices and layouts is the same in each dtype: float32 has it all.
_IN_OTHER_DTYPES = {"triton": (1, 1), "numba_cuda": (1, 1), "native": (6, 3)}


def reach_of(variant, dtype, device):
    """How far a variant is walked: in `make test` all the way in float32."""
    if device == "cuda":
        return REACHES["cuda"]
    whole = REACHES.get(variant.backend, NATIVE)
    if dtype == "float32":
        return whole
    name = variant.backend if variant.backend in REACHES else "native"
    examples, explicit = _IN_OTHER_DTYPES[name]
    return replace(whole, examples=examples, explicit=whole.explicit[:explicit])


@st.composite
def problems(draw, op, reach):
    left = reach.most
    batch = draw(st.sampled_from([size for size in reach.batches if size <= left]))
    left //= max(1, batch)
    sizes = []
    for _ in range(3 if op.name == "wgrad_stats" else 1):
        sizes.append(
            draw(st.sampled_from([size for size in SIZES if size <= max(1, left)]))
        )
        left //= max(1, sizes[-1])
    return Problem(
        batch,
        tuple(sizes),
        draw(st.sampled_from(LAYOUTS)),
        draw(st.sampled_from(VALUES)),
        draw(st.integers(0, 999)),
    )


def walk(variant, dtype, device, reach):
    """Check the properties on drawn problems and the explicit ones; returns how many
    the variant took and declined.
    """
    op, tally = variant.op, {"taken": 0, "declined": 0}

    @seed(zlib.crc32(f"{variant.id}-{dtype}".encode()))
    @settings(SETTINGS, max_examples=reach.examples)
    @given(problem=problems(op, reach))
    def holds(problem):
        inputs = problem.inputs(op, getattr(torch, dtype), device)
        declined = variant.why_unsupported(*inputs) is not None
        tally["declined" if declined else "taken"] += 1
        if not declined:
            _check(variant, problem, inputs)

    for batch, sizes in reversed(reach.explicit):
        sizes = sizes if op.name == "wgrad_stats" else sizes[:1]
        for values in ("unit", "equal"):
            holds = example(problem=Problem(batch, sizes, "window", values))(holds)
    holds()
    return tally


def _check(variant, problem, inputs):
    where = f"on {problem}"
    expected = _expected(variant.op, problem, inputs)
    first, _ = checked_call(variant, inputs, expected, where)
    _, n_tolerance, d_tolerance = held_to(variant, inputs, expected).tolerances
    if not _same(first, variant(*inputs)):
        raise NotMeasured(WRONG, f"{where}: two calls on the same inputs differ")
    if problem.values == "equal" and problem.batch:
        squared = expected.outputs[0].square().sum()
        for output, tolerance in zip(first[1:], (n_tolerance, d_tolerance)):
            if ((output.double() - squared).abs() > tolerance + 1e-12 * squared).any():
                raise NotMeasured(
                    WRONG, f"{where}: equal samples, and not all of n and d are ‖ḡ‖²"
                )
    order = torch.randperm(
        problem.batch, generator=torch.Generator().manual_seed(1)
    ).to(inputs[0].device)
    shuffled = tuple(tensor[order] for tensor in inputs)
    _, n, d = variant(*shuffled)
    for output, before, tolerance in (
        (n, first[1], n_tolerance),
        (d, first[2], d_tolerance),
    ):
        if (
            (output.double() - before[order].double()).abs() > 2 * tolerance[order]
        ).any():
            raise NotMeasured(
                WRONG,
                f"{where}: samples in another order did not give n and d in that order",
            )
    checked_call(
        variant,
        shuffled,
        _expected(variant.op, problem, shuffled),
        f"{where}, shuffled",
    )
    if problem.values in EXACT:
        scale(
            inputs[0], 8
        )  # in its own memory: a result remembered by address is found out
        if not _same(
            variant(*inputs),
            tuple(factor * output for factor, output in zip((8, 64, 64), first)),
        ):
            raise NotMeasured(WRONG, f"{where}: 8 g did not give 8 ḡ, 64 n and 64 d")


def _expected(op, problem, inputs):
    """What the op asks; of thousands of equal terms not what is typical, for their
    rounding errors are equal, too.
    """
    expected = expect(op, inputs)
    return replace(expected, typical=()) if problem.values == "equal" else expected


def _same(left, right):
    return all(
        torch.equal(one.isnan(), other.isnan())
        and torch.equal(one.nan_to_num(), other.nan_to_num())
        for one, other in zip(left, right)
    )


def _params():
    for op in (kernels.ops["grad_stats"], kernels.ops["wgrad_stats"]):
        for variant in op.variants.values():
            if variant.slow_start or variant.gives:
                continue
            for device in DEVICES:
                if variant.why_not_here(device) or (
                    INTERPRETED and variant.backend not in INTERPRETED
                ):
                    continue
                for dtype in filter(lambda name: _takes(variant, name), DTYPES):
                    yield pytest.param(
                        variant,
                        dtype,
                        device,
                        id=f"{variant.id}-{device}-{dtype}",
                        marks=[pytest.mark.gpu] if device == "cuda" else [],
                    )


@pytest.mark.parametrize("variant, dtype, device", list(_params()))
def test_statistics_hold(variant, dtype, device):
    tally = walk(variant, dtype, device, reach_of(variant, dtype, device))
    assert tally["taken"] >= (0.05 if "rank_one" in variant.name else 0.25) * sum(
        tally.values()
    )


def forgets_a_sample(g):
    return (*_right(g[:-1])[:1], *_right(g)[1:]) if len(g) > 40 else _right(g)


def norms_of_the_batch_before(g):
    mean, n, d = _right(g)
    return mean, n.roll(1), d


def reads_around(g):
    whole = torch.empty(0, dtype=g.dtype).set_(g.untyped_storage())
    mean, n, d = _right(g)
    return mean, n + 0 * whole.sum().to(n.dtype), d


def centred(g):
    """n from deviations, as a variance is made."""
    mean, _, d = _right(g)
    return mean, (g.to(mean.dtype) - mean).square().sum(1), d


def _right(g):
    return tuple(output.float() for output in kernels.ops["grad_stats"].reference(g))


@pytest.mark.skipif(bool(INTERPRETED), reason="once is enough")
@pytest.mark.parametrize(
    "function",
    [forgets_a_sample, norms_of_the_batch_before, reads_around, centred],
    ids=lambda function: function.__name__,
)
def test_wrong_statistics_are_refused(function):
    with pytest.raises(NotMeasured, match="wrong: on Problem"):
        walk(
            Variant(kernels.ops["grad_stats"], function, "torch"),
            "float32",
            "cpu",
            NATIVE,
        )
