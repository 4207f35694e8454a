"""Statistics of a linear layer's per-sample weight gradients, from its inputs and
output gradients.

X[B,T,I], dY[B,T,O]; sample b's gradient of the weight [O,I] is G_b = dY_bᵀ X_b, summed
over its T tokens. The result is the mean ḡ[O,I], the squared norms n[B] = ‖G_b‖² and
the inner products d[B] = ⟨G_b, ḡ⟩. Nothing asks for the B gradients themselves, which
are I·O/(T·(I+O)) times as large as what they are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from batchline.kernels import digits
from batchline.kernels.draw import Draw, with_infinities, with_nan
from batchline.kernels.elements import (
    distinct_bytes,
    dtype_name,
    rows_at_once,
    subnormal_step,
    unit_roundoff,
)
from batchline.kernels.op import (
    Audit,
    Calls,
    Op,
    Problems,
    Reference,
    Scenario,
    Tensors,
    Work,
)
from batchline.kernels.rounding import Typical, sum_in_any_order, sum_in_blocks
from batchline.kernels.statistics import (
    NAMES,
    accumulator,
    errors,
    summed,
    why_impossible,
)
from batchline.kernels.wgrad_stats._controls import CONTROLS


@dataclass(frozen=True)
class LayerScenario(Scenario):
    """sizes has T, I, O. `data` gives real inputs and output gradients."""

    data: Callable[[int, torch.dtype, str, int], Tensors] | None = None


def _digits(batch, dtype, device, seed):
    x, dy = digits.hidden_layer(batch, dtype, device, seed)
    return x[:, None], dy[:, None]


SCENARIOS = (
    LayerScenario(
        "digits_hidden",
        "real: the digits MLP's hidden layer 64 → 128, one token a sample",
        {"T": 1, "I": 64, "O": 128},
        data=_digits,
    ),
    LayerScenario(
        "linear_512_T1",
        "a 512 → 512 layer, one token a sample",
        {"T": 1, "I": 512, "O": 512},
    ),
    LayerScenario(
        "linear_512_T4",
        "a 512 → 512 layer, 4 tokens a sample",
        {"T": 4, "I": 512, "O": 512},
    ),
    LayerScenario(
        "linear_512_T16",
        "a 512 → 512 layer, 16 tokens a sample",
        {"T": 16, "I": 512, "O": 512},
    ),
    LayerScenario(
        "linear_512_T128",
        "a 512 → 512 layer, 128 tokens a sample",
        {"T": 128, "I": 512, "O": 512},
    ),
    LayerScenario(
        "linear_512_T512",
        "a 512 → 512 layer, 512 tokens a sample",
        {"T": 512, "I": 512, "O": 512},
        detail=True,
    ),
    LayerScenario(
        "linear_1024_T256",
        "a 1024 → 1024 layer, 256 tokens a sample",
        {"T": 256, "I": 1024, "O": 1024},
        detail=True,
    ),
    LayerScenario(
        "gpt2_mlp_T256",
        "GPT-2 small's first MLP layer 768 → 3072, 256 tokens a sample",
        {"T": 256, "I": 768, "O": 3072},
        detail=True,
    ),
    LayerScenario(
        "odd_37x127x257",
        "odd sizes: nothing divides a tile",
        {"T": 37, "I": 127, "O": 257},
    ),
)


def inputs(
    scenario: LayerScenario, batch: int, dtype: torch.dtype, device: str, seed: int
) -> Tensors:
    """X[B,T,I] and dY[B,T,O]: real, or X normal and dY = X E/√I plus unit noise, so
    that the samples share a direction.

    E is one fixed normal matrix; without it ḡ would be noise alone.
    """
    if scenario.data:
        return scenario.data(batch, dtype, device, seed)
    tokens, i, o = (scenario.sizes[name] for name in "TIO")
    draw = Draw(dtype, device, seed)
    x, dy = draw.normal(batch, tokens, i), draw.normal(batch, tokens, o)
    if device == "meta":
        return x, dy
    return x, dy.add_(x @ draw.normal(i, o, scale=0.3 / i**0.5))


def reference(x: torch.Tensor, dy: torch.Tensor) -> Tensors:
    """{ḡ, n, d} in fp64. B = 0 gives a mean of NaN and no norms."""
    mean = _mean(x, dy)
    n, d = (torch.zeros(len(x), dtype=torch.float64, device=x.device) for _ in range(2))
    for samples, gradients in _gradients(x, dy):
        n[samples], d[samples] = gradients.square().sum((1, 2)), (gradients * mean).sum(
            (1, 2)
        )
    return mean, n, d


def tolerance(
    expected: Tensors,
    x: torch.Tensor,
    dy: torch.Tensor,
    error_of_sum: Callable[[int, torch.dtype], float] = summed,
) -> Tensors:
    """How far each of {ḡ, n, d} may be off; γ(k) = (2√k + 64)·u₃₂ for a blocked sum of
    k terms.

    An element of G_b is a sum of T products, off by (T+1)·u₃₂·A_b at most, A_b =
    |dY_b|ᵀ|X_b| (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
    §3.5), and one of ḡ, which a library makes as one product over all tokens, by
    (BT+1)·u₃₂·mean A. So with e = (T+1)·u₃₂: n_b: 2e·‖G_b‖·‖A_b‖ + e²·‖A_b‖² +
    γ(IO)·n_b. d_b: e·‖A_b‖·‖ḡ‖ + ‖G_b‖·δ + γ(IO)·‖G_b‖·‖ḡ‖, δ what ‖ḡ‖ may be off.
    ‖A_b‖ is taken at its bound Σ_t ‖x_t‖·‖dy_t‖. `error_of_sum` takes γ's place over
    the parameters.
    """
    mean, n, _ = expected
    out = accumulator(x.dtype)
    product = (x.shape[1] + 1) * unit_roundoff(out)
    over_parameters = error_of_sum(mean.numel(), x.dtype)
    least = subnormal_step(out) * (mean.numel() + 1)
    off = (len(x) * x.shape[1] + 1) * unit_roundoff(out) * _mean(x, dy, torch.abs)
    magnitude = torch.empty_like(n)
    for samples, rows, columns in _in_fp64(x, dy):
        magnitude[samples] = (rows.norm(dim=2) * columns.norm(dim=2)).sum(1)
    norm, norm_of_mean = n.sqrt(), mean.norm()
    n_off = (2 * norm + product * magnitude) * product * magnitude + over_parameters * n
    d_off = (
        product * magnitude * norm_of_mean
        + norm * off.norm()
        + over_parameters * norm * norm_of_mean
    )
    return off + least, n_off + least, d_off + least


def typical(x: torch.Tensor, dy: torch.Tensor) -> tuple[Typical, Typical, Typical]:
    """Of {ḡ, n, d}: a product over all tokens, and sums over I·O of what is itself a
    sum over T.
    """
    out, truncated = accumulator(x.dtype), x.dtype.itemsize < 4
    samples, tokens, features = x.shape
    over_all_tokens = sum_in_any_order(samples * tokens, out, out, truncated)
    over_tokens = sum_in_any_order(tokens, out, out, truncated)
    over_parameters = sum_in_blocks(features * dy.shape[2], out)
    both = Typical(
        max(over_tokens.of_tolerance, over_parameters.of_tolerance),
        over_parameters.of_value,
    )
    return over_all_tokens, both, both


def _mean(
    x: torch.Tensor,
    dy: torch.Tensor,
    of: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> torch.Tensor:
    """The mean of the products [O,I], or of those of a function of the elements, in
    fp64; NaN where B is 0.
    """
    total = torch.zeros(dy.shape[2], x.shape[2], dtype=torch.float64, device=x.device)
    for _, rows, columns in _in_fp64(x, dy):
        total += of(columns).flatten(0, 1).T @ of(rows).flatten(0, 1)
    return total / len(x)


def _in_fp64(
    x: torch.Tensor, dy: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """x and dy in fp64, a block of samples at a time, after the block's slice."""
    count = rows_at_once(x.shape[1] * (x.shape[2] + dy.shape[2]))
    for start in range(0, len(x), count):
        samples = slice(start, start + count)
        yield samples, x[samples].double(), dy[samples].double()


def _gradients(
    x: torch.Tensor, dy: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor]]:
    """The per-sample gradients [b,O,I] in fp64, a block of samples at a time, after the
    block's slice.
    """
    count = rows_at_once(x.shape[2] * dy.shape[2])
    for start in range(0, len(x), count):
        samples = slice(start, start + count)
        yield samples, torch.bmm(dy[samples].double().mT, x[samples].double())


def describe(x: torch.Tensor, dy: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    """("float16", (B, T, I, O)), with "/one_token" where T = 1, which has ways of its
    own.
    """
    return dtype_name(x.dtype) + ("/one_token" if x.shape[1] == 1 else ""), (
        *x.shape,
        dy.shape[2],
    )


def rule(x: torch.Tensor, dy: torch.Tensor) -> tuple[str, ...]:
    """For one token the closed form, else the kernel that materialises nothing."""
    return "torch_rank_one", "triton_fused", "numba_cpu_fused"


def flops(x: torch.Tensor, dy: torch.Tensor) -> int:
    """2·B·T·I·O: the mean's product. Every way needs that; what n and d cost depends on
    the way.
    """
    return 2 * x.numel() * dy.shape[2]


def least_bytes(x: torch.Tensor, dy: torch.Tensor) -> int:
    """X and dY read once; ḡ, n and d written once."""
    outputs = x.shape[2] * dy.shape[2] + 2 * len(x)
    return (
        distinct_bytes(x) + distinct_bytes(dy) + outputs * accumulator(x.dtype).itemsize
    )


def _probe(batch, tokens, i, o, scale=1.0):
    def make(dtype, device, seed):
        draw = Draw(dtype, device, seed)
        return draw.uniform(batch, tokens, i, scale=scale), draw.uniform(
            batch, tokens, o, scale=scale
        )

    return make


def _sliced(dtype, device, seed):
    """Every second sample and token of X, an inner window of dY's outputs."""
    draw = Draw(dtype, device, seed)
    return draw.uniform(6, 10, 9)[::2, ::2], draw.uniform(3, 5, 12)[:, :, 2:9]


def _tokens_first(dtype, device, seed):
    """[T, B, size] in memory, as sequence-first models have it."""
    draw = Draw(dtype, device, seed)
    return draw.uniform(5, 3, 8).transpose(0, 1), draw.uniform(5, 3, 7).transpose(0, 1)


def _features_last_but_one(dtype, device, seed):
    """Features along memory's slow dimension, as a convolution's unfolded patches are."""
    draw = Draw(dtype, device, seed)
    return draw.uniform(3, 9, 6).mT, draw.uniform(3, 10, 6).mT


def _equal(dtype, device, seed):
    """One sample seen as a batch of five (stride 0): n = d = ‖ḡ‖², no noise at all."""
    draw = Draw(dtype, device, seed)
    return draw.uniform(1, 4, 10).expand(5, -1, -1), draw.uniform(1, 4, 11).expand(
        5, -1, -1
    )


def _scaled(scale_of):
    """Elements of X and dY so large, or so small, that n comes near the end of what
    fp32 can hold.
    """

    def make(dtype, device, seed):
        return _probe(3, 5, 16, 17, scale=scale_of(torch.finfo(dtype)))(
            dtype, device, seed
        )

    return make


def _aligned_tokens(dtype, device, seed):
    """Tokens along memory's fast dimension, in rows of whole 16-byte words."""
    draw = Draw(dtype, device, seed)
    return draw.uniform(3, 24, 136).mT, draw.uniform(3, 72, 136).mT


def _spoiled(spoil, tokens, i=19, o=18):
    """Numbers that are not finite in both operands, in different samples."""

    def make(dtype, device, seed):
        draw = Draw(dtype, device, seed)
        x, dy = draw.uniform(6, tokens, i), draw.uniform(6, tokens, o)
        return spoil(x), spoil(dy.flip(0)).flip(0)

    return make


def _subnormal(dtype, device, seed):
    """Features of X under the smallest normal number among others, and large dY: ḡ has
    normal numbers everywhere.

    The squares of the small ones underflow in any way to compute n; the others hide
    that.
    """
    draw = Draw(dtype, device, seed)
    x, dy = draw.uniform(4, 3, 19), draw.uniform(
        4, 3, 17, scale=16.0 if dtype == torch.float16 else 2.0**20
    )
    x[:, :, ::4] = draw.subnormal(4, 3, 5)
    return x, dy


# The last ones walk several tiles of the usual sizes, and more samples than grid.y or
# grid.z can count. Those called aligned have strides of whole 16-byte words, as TMA wants
# them, and no tile divides their sizes.
PROBES = {
    "ragged": _probe(3, 5, 19, 17),
    "one_token": _probe(7, 1, 21, 18),
    "one_sample": _probe(1, 6, 9, 11),
    "one_element": _probe(1, 1, 1, 1),
    "sliced": _sliced,
    "tokens_first": _tokens_first,
    "features_strided": _features_last_but_one,
    "equal_samples": _equal,
    "large": _scaled(lambda info: min(info.max / 4, 2e8)),
    "small": _scaled(lambda info: max(info.smallest_normal * 4, 1e-8)),
    "nan": _spoiled(with_nan, tokens=3),
    "infinite": _spoiled(with_infinities, tokens=3),
    "infinite_one_token": _spoiled(with_infinities, tokens=1),
    "subnormal": _subnormal,
    "empty_batch": _probe(0, 5, 6, 7),
    "no_tokens": _probe(3, 0, 6, 7),
    "empty_inputs": _probe(2, 5, 0, 7),
    "empty_outputs": _probe(2, 5, 6, 0),
    "aligned_tokens": _aligned_tokens,
    "aligned_infinite": _spoiled(with_infinities, tokens=3, i=24, o=16),
    "aligned_samples": _probe(30, 40, 24, 520),
    "aligned_tiles": _probe(3, 584, 40, 136),
    "long": _probe(2, 150, 20, 18),
    "tiles": _probe(3, 40, 130, 150),
    "tiles_one_token": _probe(70, 1, 130, 150),
    "many_tiles": _probe(9, 70, 300, 531),
    "many_samples": _probe(4099, 3, 33, 17),
    "batch_over_65535": _probe(65537, 2, 3, 5),
}


def _layer(tokens, features=64, signal=1.0, scale=1.0):
    """16 samples: X normal, dY = signal·XE/√I plus unit noise, both times scale; drawn
    in fp32, and rounded.
    """

    def make(dtype, device, seed):
        draw = Draw(torch.float32, device, seed)
        x, dy = draw.normal(16, tokens, features), draw.normal(16, tokens, features)
        dy = dy + x @ draw.normal(features, features, scale=signal / features**0.5)
        return x.mul_(scale).to(dtype), dy.mul_(scale).to(dtype)

    return make


def _alike(dtype, device, seed):
    """16 samples of one token that are one sample but for 1/1400: mean²/variance of a
    gradient is 1e6.
    """
    draw = Draw(torch.float32, device, seed)

    def near_one():
        return draw.normal(1, 1, 64) * draw.normal(
            16, 1, 64, scale=2**-0.5 * 1e-3
        ).add_(1)

    return near_one().to(dtype), near_one().to(dtype)


def _cancelling(dtype, device, seed):
    """512 tokens whose second half takes back what the first gave, but for 1%: that is
    what is left of a gradient.
    """
    draw = Draw(torch.float32, device, seed)
    x, dy, left = (draw.normal(16, 256, 64) for _ in range(3))
    left = left.add_(dy @ draw.normal(64, 64, scale=0.3 / 8)).mul_(0.01)
    return torch.cat([x, left - x], 1).to(dtype), torch.cat([dy, dy], 1).to(dtype)


CONDITIONS = {
    "well": _layer(tokens=64),
    "one_token": _layer(tokens=1),
    "mean_over_noise": _alike,
    "mean_under_noise": _layer(tokens=1, signal=1e-3),
    "cancelling_tokens": _cancelling,
    "tiny": _layer(tokens=4, scale=1e-10),  # elements of G_b near 1e-20
    "huge": _layer(
        tokens=4, features=8, scale=4e8
    ),  # and near 1e18: in a larger layer n is no fp32 number
}

wgrad_stats = Op(
    __name__,
    signature="X[B,T,I], dY[B,T,O] → ḡ[O,I], n[B] = ‖G_b‖², d[B] = ⟨G_b,ḡ⟩, where G_b = dY_bᵀ X_b",
    problems=Problems(SCENARIOS, inputs, PROBES, example=("linear_512_T128", 64)),
    reference=Reference(
        reference,
        tolerance,
        typical,
        dtypes=lambda x, dy: accumulator(x.dtype),
        rows=(1,),
        regrouped=(1, 2),
    ),
    work=Work(flops, least_bytes),
    calls=Calls("torch_materialize", describe, rule),
    audit=Audit(CONDITIONS, NAMES, errors, why_impossible, CONTROLS),
)
