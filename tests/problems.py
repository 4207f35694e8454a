"""Batched products that kernels trip over, drawn by hypothesis: ragged sizes, odd
layouts, extreme values.

What lies in memory around a window is NaN: whoever reads it and multiplies it by a
zero, instead of masking it, is found out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st

MANY = 65537  # more entries than grid.y or grid.z can count
MOST_ELEMENTS = 10**7  # of one matrix: they are drawn in fp64
SIZES = (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 0)


@dataclass(frozen=True)
class Problem:
    """A[B,M,K] and B[B,K,N]: sizes, how each operand lies in memory, what values it
    has.
    """

    batch: int
    m: int
    n: int
    k: int
    layout_a: str = "rows"
    layout_b: str = "rows"
    values: str = "unit"
    seed: int = 0

    def inputs(
        self, dtype: torch.dtype, device: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both operands, in fresh memory, the same values each time."""
        generator = torch.Generator().manual_seed(self.seed)
        values = VALUES[
            self.values if dtype.itemsize > 1 or self.values in VALUES_FP8 else "unit"
        ]
        a = values(0, dtype, (self.batch, self.m, self.k), max(1, self.k), generator)
        b = values(1, dtype, (self.batch, self.k, self.n), max(1, self.k), generator)
        return LAYOUTS[self.layout_a](a.to(device, dtype)), LAYOUTS[self.layout_b](
            b.to(device, dtype)
        )

    def kin(self) -> tuple["Problem", ...]:
        """This one, and its like that variants with demands take: with whole windows
        and sizes in 16s; with no size over 16 too; with B shared too.
        """
        shared = {"layout_a": "rows", "layout_b": "shared_columns"}
        if self.batch == MANY:
            return self, replace(self, **shared)
        tame = replace(
            self,
            **{name: -(-getattr(self, name) // 16) * 16 for name in "mnk"},
            **{
                side: TAMED.get(getattr(self, side), getattr(self, side))
                for side in ("layout_a", "layout_b")
            },
        )
        return (
            self,
            tame,
            replace(tame, **{name: min(16, getattr(tame, name)) for name in "mnk"}),
            replace(tame, **shared),
        )


def _rows(values):
    return values.clone()


def _columns(values):
    return values.mT.clone(memory_format=torch.contiguous_format).mT


def _batch_inside(values):
    """[rows, batch, columns] in memory, as attention's [tokens, heads, size]."""
    return (
        values.transpose(0, 1)
        .clone(memory_format=torch.contiguous_format)
        .transpose(0, 1)
    )


def _batch_last(values):
    return (
        values.permute(1, 2, 0)
        .clone(memory_format=torch.contiguous_format)
        .permute(2, 0, 1)
    )


def _sliding(values):
    """Windows on one sequence, each an element further, as unfold makes them: the batch
    has stride 1.
    """
    batch, rows, columns = values.shape
    if not values.numel():
        return values.clone()
    pitch = -(-columns // 16) * 16
    length = batch - 1 + (rows - 1) * pitch + columns
    sequence = values.flatten().repeat(-(-length // values.numel()))[:length].clone()
    return sequence.as_strided(values.shape, (1, pitch, 1))


def _in_nan(values, shape, window):
    around = values.new_full(shape, float("nan"))
    around[window] = values
    return around[window]


def _padded(values):
    """Rows that start every 16 elements, and more."""
    batch, rows, columns = values.shape
    return _in_nan(
        values, (batch, rows, columns // 16 * 16 + 32), (..., slice(0, columns))
    )


def _window(values):
    """An inner window, off the start of its storage."""
    batch, rows, columns = values.shape
    return _in_nan(
        values,
        (batch, rows + 3, columns + 5),
        (..., slice(1, 1 + rows), slice(3, 3 + columns)),
    )


def _stepped(values):
    """Every second entry, row and column: no stride is 1."""
    return _in_nan(
        values, [2 * size + 1 for size in values.shape], (slice(1, None, 2),) * 3
    )


def _shared(values):
    return _one(values).clone().expand(values.shape)


def _shared_columns(values):
    return _columns(_one(values)).expand(values.shape)


def _row_repeated(values):
    """One row a matrix, seen as all of its rows."""
    return values[:, :1].clone().expand(values.shape)


def _one(values):
    return values[:1] if len(values) else values.new_zeros(1, *values.shape[1:])


LAYOUTS = {
    "rows": _rows,
    "columns": _columns,
    "shared": _shared,
    "shared_columns": _shared_columns,
    "batch_inside": _batch_inside,
    "padded": _padded,
    "window": _window,
    "stepped": _stepped,
    "row_repeated": _row_repeated,
    "batch_last": _batch_last,
    "sliding": _sliding,
}
TAMED = {
    "window": "rows",
    "stepped": "columns",
    "row_repeated": "padded",
    "batch_last": "columns",
    "sliding": "rows",
}


def _unit(side, dtype, shape, k, generator):
    values = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    return (values * 8).round() / 8 if dtype.itemsize == 1 else values


def _small(*asked):
    return 1e-3 * _unit(*asked)


def _positive(*asked):
    """Of one sign, so that sums grow and every lost term shows."""
    return _unit(*asked).abs()


def _integers(side, dtype, shape, k, generator):
    """Every sum of products is exact in fp32, in any order, and inside fp16's range: it
    is rounded once.
    """
    most = min(8, math.isqrt(int(torch.finfo(torch.float16).max) // k))
    return torch.randint(-most, most + 1, shape, generator=generator).double()


def _zeros(*asked):
    """Half of the elements, and every third row, are 0."""
    values = _unit(*asked)
    values[:, ::3] = 0
    return values.where(values.abs() > 0.5, 0)


def _spike(side, dtype, shape, k, generator):
    """One huge element a matrix among small ones."""
    values = 1e-2 * _unit(side, dtype, shape, k, generator)
    if values[:1].numel():
        place = int(torch.randint(shape[1] * shape[2], (), generator=generator))
        values.view(shape[0], -1)[:, place] = 2.0 ** (
            7 if dtype == torch.float16 else 20
        )
    return values


def _top(side, dtype, shape, k, generator):
    """Sums that come near the top of the dtype's range."""
    return _unit(side, dtype, shape, k, generator) * (torch.finfo(dtype).max / k) ** 0.5


def _far_apart(side, dtype, shape, k, generator):
    """A near the top of the dtype's range, B so small that the sums stay inside it."""
    return _unit(side, dtype, shape, k, generator) * (
        1 / k if side else torch.finfo(dtype).max / 2
    )


def _tiny(side, dtype, shape, k, generator):
    """A near the dtype's smallest normal numbers; fp16's are subnormal, which fp32 sums
    hold exactly.

    The wider types have no wider sum: there B is so large that no product underflows.
    """
    values, least = (
        _unit(side, dtype, shape, k, generator),
        torch.finfo(dtype).smallest_normal,
    )
    if dtype == torch.float16:
        return values if side else values * least
    values = values.sign() * (0.5 + values.abs() / 2)
    return values * 2.0**30 if side else values * least * 4


def _nan(side, dtype, shape, k, generator):
    """One NaN in each operand: it belongs in its row or column of the result, and
    nowhere else.
    """
    values = _unit(side, dtype, shape, k, generator)
    if values.numel():
        values.view(-1)[int(torch.randint(values.numel(), (), generator=generator))] = (
            float("nan")
        )
    return values


VALUES = {
    "unit": _unit,
    "integers": _integers,
    "positive": _positive,
    "small": _small,
    "zeros": _zeros,
    "spike": _spike,
    "top": _top,
    "far_apart": _far_apart,
    "tiny": _tiny,
    "nan": _nan,
}
VALUES_FP8 = (
    "unit",
    "integers",
    "zeros",
    "nan",
)  # whose sums no fp8 tensor core rounds: kernels.draw says why
# Eight times these is exact, and so it is for their products.
MODERATE = ("unit", "integers", "positive", "small", "zeros", "spike")

EDGES = (
    Problem(0, 3, 4, 5),
    Problem(2, 0, 4, 5),
    Problem(2, 3, 0, 5),
    Problem(2, 3, 4, 0),
    Problem(1, 1, 1, 1),
    Problem(2, 3, 5, 17, "stepped", "window", "nan"),
    Problem(3, 5, 3, 2, "shared_columns", "shared_columns"),
    Problem(2, 1, 3, 16, "columns"),
    Problem(2, 3, 16, 32, "sliding", "batch_last"),
)


def scale(tensor, factor):
    """Multiply a tensor's whole memory, whatever its strides."""
    memory = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
        tensor.untyped_storage()
    )
    memory.copy_(memory.double() * factor)


@st.composite
def problems(
    draw,
    most_flops: float,
    most_results: float = math.inf,
    sizes: tuple[int, ...] = SIZES,
    depths: tuple[int, ...] = (150, 1027),
    batches: tuple[int, ...] = (2, 1, 3, 5),
) -> Problem:
    """A problem of at most `most_flops` and `most_results` elements of C. `depths` are
    sizes that only K takes.
    """
    choices = {"batch": batches, "m": sizes, "n": sizes, "k": sizes + depths}
    drawn = dict.fromkeys(choices, 1)
    for name in draw(
        st.permutations(tuple(choices))
    ):  # what comes first leaves the others what remains
        drawn[name] = draw(
            st.sampled_from(
                [
                    size
                    for size in choices[name]
                    if _fits(drawn | {name: size}, most_flops, most_results)
                ]
                or [1]
            )
        )
    return Problem(
        **drawn,
        layout_a=draw(st.sampled_from(tuple(LAYOUTS))),
        layout_b=draw(st.sampled_from(tuple(LAYOUTS))),
        values=draw(st.sampled_from(tuple(VALUES))),
        seed=draw(st.integers(0, 999)),
    )


def _fits(sizes, most_flops, most_results):
    batch, m, n, k = (
        max(1, size) for size in sizes.values()
    )  # an operand can be large where the product is empty
    return (
        batch * m * n <= most_results
        and 2 * batch * m * n * k <= most_flops
        and batch * max(m * k, k * n, m * n) <= MOST_ELEMENTS
    )
