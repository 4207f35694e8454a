"""Batched matrix product: A[B,M,K] @ B[B,K,N] → C[B,M,N], accumulated in fp32 or wider."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from batchline.kernels import digits
from batchline.kernels.bmm._autograd import batched_product  # noqa: F401
from batchline.kernels.draw import Draw, with_infinities, with_nan
from batchline.kernels.elements import (
    distinct_bytes,
    dtype_name,
    rows_at_once,
    subnormal_step,
    unit_roundoff,
)
from batchline.kernels.op import (
    FP8,
    WIDE,
    Calls,
    Op,
    Problems,
    Reference,
    Scenario,
    Work,
)
from batchline.kernels.rounding import Typical, sum_in_any_order

LAYOUTS = ("nn", "nt", "tn")
_TINY, _MANY = (
    32,
    32,
)  # sizes so small and entries so many that the library's work for each outweighs a compilation


@dataclass(frozen=True)
class BmmScenario(Scenario):
    """sizes has M, N, K. `layout` says which operand is stored transposed; `shared_rhs`
    gives all entries one B.
    """

    dtypes: tuple[str, ...] = (*WIDE, FP8)
    layout: str = "nn"
    shared_rhs: bool = False
    data: (
        Callable[[int, torch.dtype, str, int], tuple[torch.Tensor, torch.Tensor]] | None
    ) = None


def _digits_forward(batch, dtype, device, seed):
    """32 images an entry times the trained hidden weight, stored [out, in] as a linear
    layer stores it.
    """
    x, _ = digits.hidden_layer(batch * 32, dtype, device, seed)
    return x.view(batch, 32, digits.PIXELS), digits.hidden_weight(
        dtype, device
    ).T.expand(batch, -1, -1)


def _digits_wgrad(batch, dtype, device, seed):
    """dYᵀ X over 32 images an entry: each micro-batch's gradient of the hidden weight."""
    x, dy = digits.hidden_layer(batch * 32, dtype, device, seed)
    return dy.view(batch, 32, digits.HIDDEN).transpose(1, 2), x.view(
        batch, 32, digits.PIXELS
    )


SCENARIOS = (
    BmmScenario(
        "attention_scores",
        "Q Kᵀ of one GPT-2 small head over 512 tokens; B = sequences x heads",
        {"M": 512, "N": 512, "K": 64},
        layout="nt",
    ),
    BmmScenario(
        "attention_values",
        "P V of one GPT-2 small head over 512 tokens; B = sequences x heads",
        {"M": 512, "N": 64, "K": 512},
    ),
    BmmScenario(
        "attention_grad_key",
        "dSᵀ Q of the same head, as dV = Pᵀ dO is; B = sequences x heads",
        {"M": 512, "N": 64, "K": 512},
        layout="tn",
    ),
    BmmScenario(
        "linear_forward",
        "X Wᵀ of the base Transformer's 512 → 2048 layer, 128 tokens a sample, W shared",
        {"M": 128, "N": 2048, "K": 512},
        layout="nt",
        shared_rhs=True,
    ),
    BmmScenario(
        "linear_grad_input",
        "dY W of the same layer, W shared",
        {"M": 128, "N": 512, "K": 2048},
        shared_rhs=True,
    ),
    BmmScenario(
        "linear_grad_weight",
        "dYᵀ X: per-sample weight gradients of a 512 → 512 layer, 128 tokens a sample",
        {"M": 512, "N": 512, "K": 128},
        layout="tn",
    ),
    BmmScenario(
        "tiny_4",
        "many 4x4 matrices, as poses and transforms are",
        {"M": 4, "N": 4, "K": 4},
    ),
    BmmScenario(
        "tiny_8",
        "many 8x8 matrices, between those beside it",
        {"M": 8, "N": 8, "K": 8},
        detail=True,
    ),
    BmmScenario(
        "tiny_16",
        "many 16x16 matrices, as in block-diagonal preconditioners",
        {"M": 16, "N": 16, "K": 16},
    ),
    BmmScenario(
        "tiny_32",
        "many 32x32 matrices, as capsules' or the blocks of a block-sparse layer",
        {"M": 32, "N": 32, "K": 32},
        detail=True,
    ),
    BmmScenario(
        "square_64",
        "squares of 64: one head's size squared",
        {"M": 64, "N": 64, "K": 64},
    ),
    BmmScenario(
        "square_128",
        "squares of 128: one tile of a GPU each",
        {"M": 128, "N": 128, "K": 128},
    ),
    BmmScenario(
        "square_256", "squares of 256: few tiles each", {"M": 256, "N": 256, "K": 256}
    ),
    BmmScenario("square_1024", "squares of 1024", {"M": 1024, "N": 1024, "K": 1024}),
    BmmScenario("square_4096", "squares of 4096", {"M": 4096, "N": 4096, "K": 4096}),
    BmmScenario(
        "odd_127x257x65",
        "odd sizes: nothing divides a tile",
        {"M": 127, "N": 257, "K": 65},
    ),
    BmmScenario(
        "skinny_long_k",
        "16 rows, 64 columns, 8192 deep: too few tiles for a chip",
        {"M": 16, "N": 64, "K": 8192},
    ),
    BmmScenario(
        "outer_512",
        "outer products: per-sample weight gradients of a 512 → 512 layer, one token a sample",
        {"M": 512, "N": 512, "K": 1},
        dtypes=WIDE,
        layout="tn",
        detail=True,
    ),
    BmmScenario(
        "digits_forward",
        "real: 32 digits an entry through the MLP's hidden layer, W shared",
        {"M": 32, "N": 128, "K": 64},
        dtypes=WIDE,
        layout="nt",
        shared_rhs=True,
        data=_digits_forward,
    ),
    BmmScenario(
        "digits_grad_weight",
        "real: the hidden layer's weight gradient of 32 digits an entry",
        {"M": 128, "N": 64, "K": 32},
        dtypes=WIDE,
        layout="tn",
        data=_digits_wgrad,
    ),
)  # the real ones not in fp8: its tensor cores can round sums of other numbers than Draw's by more than the tolerance


def inputs(
    scenario: BmmScenario, batch: int, dtype: torch.dtype, device: str, seed: int
):
    """A[B,M,K] and B[B,K,N] of the scenario: real data, or uniform on [-1, 1)."""
    if scenario.data:
        return scenario.data(batch, dtype, device, seed)
    draw = Draw(dtype, device, seed)
    m, n, k = (scenario.sizes[name] for name in "MNK")
    rhs_batch = 1 if scenario.shared_rhs else batch
    a, b = stored(draw, scenario.layout, batch, rhs_batch, m, n, k)
    return a, b.expand(batch, -1, -1)


def stored(
    draw: Draw,
    layout: str,
    batch: int,
    rhs_batch: int,
    m: int,
    n: int,
    k: int,
    scale: float = 1.0,
):
    """A[batch,M,K] and B[rhs_batch,K,N] where "t" in the layout means that the operand
    lies transposed in memory.
    """
    a = (
        draw.uniform(batch, k, m, scale=scale).transpose(1, 2)
        if layout[0] == "t"
        else draw.uniform(batch, m, k, scale=scale)
    )
    b = (
        draw.uniform(rhs_batch, n, k, scale=scale).transpose(1, 2)
        if layout[1] == "t"
        else draw.uniform(rhs_batch, k, n, scale=scale)
    )
    return a, b


def reference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """C[B,M,N] in fp64."""
    return _product(a, b)


def tolerance(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """|C − c| that fp32 accumulation in any order can give, elementwise:
    (K+1)·u₃₂·|A||B| + u_out·|c|.

    Higham, Accuracy and Stability of Numerical Algorithms (2nd ed.), §3.5; the second
    term is the rounding to the output's dtype, the last a subnormal step of it. The
    whole is taken 1% wider, for the terms of order u² left out.

    fp8 is asked for the same: its tensor cores on sm_90 add in fewer bits, so a kernel
    moves their sums to fp32 as it goes (Triton's max_num_imprecise_acc, torch's
    use_fast_accum=False), every 128 products at the latest. Inputs as Draw makes them
    lose nothing in between; other inputs may miss this bound by what an instruction
    rounds off.
    """
    accumulator = torch.float64 if a.dtype == torch.float64 else torch.float32
    growth = (a.shape[2] + 1) * unit_roundoff(accumulator)
    out = output_dtype(a.dtype)
    return 1.01 * (
        growth * _product(a, b, torch.abs) + unit_roundoff(out) * c.abs()
    ) + subnormal_step(out)


def typical(a: torch.Tensor, b: torch.Tensor) -> tuple[Typical]:
    """Of sums of K products; those of narrow inputs are made by tensor cores, which cut
    off what they add.
    """
    accumulator = torch.float64 if a.dtype == torch.float64 else torch.float32
    return (
        sum_in_any_order(
            a.shape[2],
            accumulator,
            output_dtype(a.dtype),
            truncated=a.dtype.itemsize < 4,
        ),
    )


def nan_by_torch(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor] | None:
    """The elements of C that are NaN by torch.bmm on a CPU, in 16 bits or 8.

    On a CPU with AMX oneDNN's kernel reads whole tiles: behind a row of A it reads the
    beginning of the next one, and multiplies it by zeros. A NaN there makes the row NaN
    (torch 2.13, K no multiple of 32).
    """
    is_narrow = a.dtype.itemsize < 4 and a.device.type == "cpu"
    if not is_narrow or bool(a.float().isfinite().all() & b.float().isfinite().all()):
        return None
    multiplied = torch.float16 if a.dtype == torch.float16 else torch.bfloat16
    return (torch.bmm(a.to(multiplied), b.to(multiplied)).isnan(),)


def _product(a, b, of=lambda tensor: tensor):
    """The products in fp64, a block of entries at a time."""
    shared = (
        of(b[0].double()) if b.stride(0) == 0 and len(b) else None
    )  # one right side, and no copy for every entry
    count = rows_at_once(a[:1].numel() + (0 if shared is not None else b[:1].numel()))
    products = [
        torch.matmul(
            of(a[entries].double()),
            of(b[entries].double()) if shared is None else shared,
        )
        for start in range(0, max(1, len(a)), count)
        for entries in [slice(start, start + count)]
    ]
    return products[0] if len(products) == 1 else torch.cat(products)


def output_dtype(dtype: torch.dtype) -> torch.dtype:
    """The inputs' own; bfloat16 for fp8, in which a sum of products has neither the
    digits nor the range.
    """
    return torch.bfloat16 if dtype.itemsize == 1 else dtype


def describe(a: torch.Tensor, b: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    """("float16/nt", (B, M, N, K)), with "/shared" where the right side has stride 0
    over the batch.
    """
    layout = "".join(
        "n" if tensor.stride(2) == 1 else "t" if tensor.stride(1) == 1 else "s"
        for tensor in (a, b)
    )
    shared = "/shared" if b.stride(0) == 0 else ""
    return f"{dtype_name(a.dtype)}/{layout}{shared}", (
        a.shape[0],
        a.shape[1],
        b.shape[2],
        a.shape[2],
    )


def rule(a: torch.Tensor, b: torch.Tensor) -> tuple[str, ...]:
    """A shared right side is one product; many tiny ones on a CPU cost the library more
    to call than to do.
    """
    many_tiny = (
        not a.is_cuda and max(a.shape[1], *b.shape[1:]) <= _TINY and len(a) >= _MANY
    )
    return (
        *(["torch_folded"] if b.stride(0) == 0 else []),
        *(["numba_cpu_tiny"] if many_tiny else []),
    )


def flops(a: torch.Tensor, b: torch.Tensor) -> int:
    """2·B·M·N·K."""
    return 2 * a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2]


def least_bytes(a: torch.Tensor, b: torch.Tensor) -> int:
    """A and B read once (a shared B counts once), C written once."""
    output_bytes = a.shape[0] * a.shape[1] * b.shape[2] * output_dtype(a.dtype).itemsize
    return distinct_bytes(a) + distinct_bytes(b) + output_bytes


def _probe(batch, m, n, k, layout="nn", scale=1.0):
    def make(dtype, device, seed):
        return stored(Draw(dtype, device, seed), layout, batch, batch, m, n, k, scale)

    return make


def _sliced(dtype, device, seed):
    """Every second row of A, an inner window of B, both off the start of their storage."""
    draw = Draw(dtype, device, seed)
    return draw.uniform(2, 10, 9)[:, ::2, 3:], draw.uniform(2, 9, 11)[:, 2:8, 4:]


def _aligned_windows(dtype, device, seed):
    """Inner windows whose first elements and strides are multiples of 16 elements: TMA
    must stop at their edges, and not at those of their storages.
    """
    draw = Draw(dtype, device, seed)
    a, b = draw.uniform(2, 24, 96), draw.uniform(2, 40, 96)
    return a[:, 3:21, 16:56], b[:, 7:31, 32:72].transpose(1, 2)


def _aligned_shared_b(dtype, device, seed):
    """One right side for all entries, whose rows are whole 16-byte words in every
    dtype.
    """
    a, b = stored(Draw(dtype, device, seed), "nt", 3, 1, 40, 24, 32)
    return a, b.expand(3, -1, -1)


def _batch_inside(dtype, device, seed):
    """The batch as the middle dimension of memory, as attention's [tokens, heads, size]
    has it.
    """
    draw = Draw(dtype, device, seed)
    return draw.uniform(5, 3, 8).transpose(0, 1), draw.uniform(8, 3, 7).transpose(0, 1)


def _shared(side):
    def make(dtype, device, seed):
        a, b = stored(
            Draw(dtype, device, seed),
            "nn",
            1 if side == "a" else 3,
            1 if side == "b" else 3,
            5,
            6,
            7,
        )
        return a.expand(3, -1, -1), b.expand(3, -1, -1)

    return make


def _large(dtype, device, seed):
    """Products whose sums come near the top of the output's range, or factors near the
    top of the inputs'.
    """
    largest = 2.0 ** (math.frexp(torch.finfo(dtype).max)[1] - 1)
    scale = min((torch.finfo(output_dtype(dtype)).max / 40) ** 0.5, largest)
    return stored(Draw(dtype, device, seed), "nn", 2, 2, 6, 7, 40, scale=scale)


def _spoiled(spoil):
    """Numbers that are not finite in both operands: they belong in their rows and
    columns of C, and nowhere else.
    """

    def make(dtype, device, seed):
        a, b = stored(Draw(dtype, device, seed), "nn", 2, 2, 19, 21, 37)
        return spoil(a), spoil(b)

    return make


def _subnormal(dtype, device, seed):
    """A under the smallest normal number, B so large that most products are normal;
    fp16 and fp8 need no such B.
    """
    draw = Draw(dtype, device, seed)
    return draw.subnormal(2, 18, 33), draw.uniform(
        2,
        33,
        20,
        scale=2.0**30 if dtype.itemsize > 2 or (dtype == torch.bfloat16) else 1.0,
    )


def _returning(dtype, device, seed):
    """Sums that rise to 1,000 and come back to nearly nothing: what a short accumulator
    lost on the way shows.
    """
    draw = Draw(dtype, device, seed)
    up, weights, last_a, last_b = (
        draw.uniform(*shape).double()
        for shape in ((1, 5, 4096), (1, 4096, 7), (1, 5, 33), (1, 33, 7))
    )
    up, weights = up.abs(), weights.abs()
    return torch.cat([up, -up, last_a], dim=2).to(dtype), torch.cat(
        [weights, weights, last_b], dim=1
    ).to(dtype)


# The first ones are tiny, for the interpreters (Numba's CUDA simulator starts a thread
# for each thread); the last ones walk many tiles of the usual sizes, and more entries
# than grid.y or grid.z can count. Those called aligned have sizes and strides of whole
# 16-byte words, as TMA wants them, and no tile divides their sizes; "aligned_entries"
# has more tiles than there are programs that stay on an H200.
PROBES = {
    "ragged": _probe(2, 17, 5, 19),
    "one_element": _probe(1, 1, 1, 1),
    "transposed_a": _probe(2, 3, 4, 5, layout="tn"),
    "transposed_b": _probe(2, 3, 4, 5, layout="nt"),
    "sliced": _sliced,
    "batch_inside": _batch_inside,
    "shared_a": _shared("a"),
    "shared_b": _shared("b"),
    "deep": _probe(1, 2, 3, 150),
    "large": _large,
    "subnormal": _subnormal,
    "nan": _spoiled(with_nan),
    "infinite": _spoiled(with_infinities),
    "empty_batch": _probe(0, 5, 6, 7),
    "empty_m": _probe(2, 0, 6, 7),
    "empty_n": _probe(2, 5, 0, 7),
    "empty_k": _probe(2, 5, 6, 0),
    "ragged_tiles": _probe(3, 37, 29, 65),
    "tall": _probe(1, 1100, 30, 5),
    "deep_1027": _probe(2, 5, 7, 1027),
    "deep_8200": _probe(2, 9, 11, 8200),
    "aligned_nt": _probe(2, 32, 48, 64, layout="nt"),
    "aligned_tiny": _probe(37, 16, 8, 32),
    "aligned_windows": _aligned_windows,
    "aligned_shared_b": _aligned_shared_b,
    "returning_sums": _returning,
    "aligned_tiles": _probe(2, 72, 88, 136),
    "aligned_tiles_tn": _probe(2, 136, 40, 192, layout="tn"),
    "aligned_tiles_nt": _probe(3, 136, 48, 208, layout="nt"),
    "aligned_entries": _probe(531, 8, 16, 80, layout="nt"),
    "many_tiles": _probe(3, 300, 531, 270),
    "many_tiles_tn": _probe(2, 290, 301, 133, layout="tn"),
    "many_tiles_nt": _probe(2, 290, 301, 133, layout="nt"),
    "batch_over_65535": _probe(65537, 2, 3, 5),
}

bmm = Op(
    __name__,
    signature="A[B,M,K], B[B,K,N] → C[B,M,N]",
    problems=Problems(SCENARIOS, inputs, PROBES, example=("linear_grad_weight", 16)),
    reference=Reference(
        reference,
        tolerance,
        typical,
        dtypes=lambda a, b: output_dtype(a.dtype),
        rows=(0,),
        nan_by_torch=nan_by_torch,
    ),
    work=Work(flops, least_bytes),
    calls=Calls("torch_bmm", describe, rule),
)
