"""What a metered step says: statistics by parameter, by layer and of the whole model, and
what follows from them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from batchline.bench.errors import UsageError
from batchline.bench.noise.meter.step import ParameterStatistics
from batchline.bench.stats.noise_scale import (
    BatchStatistics,
    BatchTest,
    NoiseEstimate,
    NoiseScale,
    inner_product_test,
    noise_scale,
    norm_test,
    orthogonality_test,
    within_batch,
)

TESTS = (norm_test, inner_product_test, orthogonality_test)
_ROUNDING = (
    256  # times the dtype's spacing, of the whole gradient: what sums that cancel leave
)
_MOST_ROUNDING = 2**-5  # of the whole gradient, however coarse the dtype


@dataclass(frozen=True, eq=False)
class Norms:
    """M = ‖ḡ‖² and n[B] = ‖g_b‖² of one batch, in float64, where d was not taken."""

    mean_square: float
    squared_norms: np.ndarray

    @property
    def batch(self) -> int:
        return len(self.squared_norms)

    def __add__(self, other: Norms) -> Norms:
        return Norms(
            self.mean_square + other.mean_square,
            self.squared_norms + other.squared_norms,
        )


@dataclass(frozen=True)
class Reading:
    """Of one batch, whose samples' gradients are those of their own losses: times B
    where the loss was their mean.

    `fallbacks`: layers that torch.func took apart, name → type. `frozen` and
    `without_gradient`: names of parameters that asked for no gradient, and that the
    loss does not depend on; both count as zeros, and so do those of `rounding`, whose
    gradient is what rounding left of 0. `left_out`: not measured, for `layers=` says so.
    `assumed`: what the figures rest on and can't be seen. `why_not`: why there is no
    noise scale with an interval, None where there is one. `norms`: the parameters of
    normalisations. `preconditioned`: of the gradients over the optimizer's √v̂ + eps,
    None where the step was told no optimizer.
    B_simple and the tests are free of the loss's scale; tr Σ and ‖G‖² have its square
    in them, unless the step was told it.
    """

    batch: int
    parameters: Mapping[str, BatchStatistics | Norms]
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    without_gradient: tuple[str, ...] = ()
    rounding: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    why_not: str | None = None
    norms: tuple[str, ...] = ()
    preconditioned: Reading | None = None

    @functools.cached_property
    def layers(self) -> dict[str, BatchStatistics | Norms]:
        """By module; a shared parameter is the first one's that has it."""
        by_layer: dict[str, BatchStatistics | Norms] = {}
        for name, statistics in self.parameters.items():
            layer = name.rpartition(".")[0] or "the model"
            by_layer[layer] = (
                by_layer[layer] + statistics if layer in by_layer else statistics
            )
        return by_layer

    @functools.cached_property
    def whole(self) -> BatchStatistics | Norms:
        """Of all parameters as one vector.

        Raises:
            UsageError: `why_not`, where nothing is known.
        """
        if not self.parameters:
            raise UsageError(self.why_not or "no parameter had a gradient")
        first, *others = self.parameters.values()
        return sum(others, first)

    @functools.cached_property
    def of_norms(self) -> Reading:
        """Of the normalisations alone, whose noise scale follows that of the whole in
        transformers (Gray et al. 2024, arXiv:2411.00999).

        Raises:
            UsageError: where none was measured.
        """
        own = {
            name: self.parameters[name]
            for name in self.norms
            if name in self.parameters
        }
        if not own:
            raise UsageError(self.why_not or "no normalisation was measured")
        return replace(self, parameters=own, preconditioned=None)

    def scale(self, layer: str | None = None) -> NoiseScale:
        """S and G2 of a layer or of the whole model, without an interval."""
        statistics = self._of(layer)
        return noise_scale(statistics.mean_square, statistics.squared_norms)

    def noise(
        self, layer: str | None = None, confidence: float = 0.95
    ) -> NoiseEstimate:
        """The noise scale of a layer, or of the whole model, with its interval.

        Raises:
            UsageError: `why_not`.
        """
        statistics = self._of(layer)
        if self.why_not:
            raise UsageError(self.why_not)
        return within_batch(statistics, confidence)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the interval of the whole model may cover less than it claims; empty
        where nothing says so, and where there is no interval.

        One from fewer than 1,000 samples always has one: rare samples that make the
        noise can't have been seen.
        """
        return () if self.why_not else self.noise().warnings

    def tests(self, layer: str | None = None) -> tuple[BatchTest, ...]:
        """The norm, inner-product and orthogonality test of a layer, or of the whole
        model; the norm test alone where d was not taken.
        """
        statistics = self._of(layer)
        tests = TESTS if isinstance(statistics, BatchStatistics) else (norm_test,)
        return tuple(test(statistics) for test in tests)

    def _of(self, layer: str | None) -> BatchStatistics | Norms:
        if layer is not None and self.parameters and layer not in self.layers:
            raise UsageError(
                f"no layer {layer!r} was measured: there are {', '.join(self.layers)}"
            )
        return self.whole if layer is None else self.layers[layer]

    def _text(self, layer: str | None = None) -> str:
        if self.why_not is None:
            return f"B_simple {self.noise(layer).text()}"
        scale = self.scale(layer)
        return (
            f"B_simple {scale.simple:.3g}" if scale.square > 0 else "‖G‖² lost in noise"
        )

    def __str__(self) -> str:
        lines = [f"gradient noise of a batch of {self.batch}: "]
        if self.parameters:
            lines[0] += self._text()
            lines += [f"  {test.name} test {test.value:.3g}" for test in self.tests()]
            lines += [f"  {layer}: {self._text(layer)}" for layer in self.layers]
        else:
            lines[0] += "not known"
        lines += [f"  why not: {self.why_not}"] if self.why_not else []
        lines += [f"  warning: {warning}" for warning in self.warnings]
        lines += [
            f"  {layer} ({kind}) went through torch.func"
            for layer, kind in self.fallbacks.items()
        ]
        lines += [f"  assumed: {assumption}" for assumption in self.assumed]
        for what, names in (
            ("frozen", self.frozen),
            ("without gradient", self.without_gradient),
            ("a gradient of rounding alone", self.rounding),
            ("left out", self.left_out),
        ):
            lines += [f"  {what}: {', '.join(names)}"] if names else []
        if self.preconditioned is not None:
            known = self.preconditioned
            words = known._text() if known.parameters else f"not known: {known.why_not}"
            lines.append(f"  over the optimizer's √v̂ + eps: {words}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Taken:
    """{‖B·ḡ‖, gap, n, d} of each parameter, on the CPU in fp64: one transfer.

    `dots`: whether d is among them. `eps` is None where no gap was taken.
    """

    names: tuple[str, ...]
    rows: np.ndarray
    eps: tuple[float | None, ...]
    batch: int
    dots: bool

    def only(self, names: Sequence[str]) -> Taken:
        """Of those of these parameters that are here."""
        kept = [number for number, name in enumerate(self.names) if name in names]
        return replace(
            self,
            names=tuple(self.names[number] for number in kept),
            rows=self.rows[kept],
            eps=tuple(self.eps[number] for number in kept),
        )

    def without(self, names: Sequence[str]) -> Taken:
        """With zeros for these parameters."""
        zeros = [name in names for name in self.names]
        return replace(self, rows=np.where(np.array(zeros)[:, None], 0.0, self.rows))

    @classmethod
    def of(
        cls, steps: Sequence[tuple[Mapping[str, ParameterStatistics], int]]
    ) -> list[Taken]:
        """Of each step, from its statistics and its batch: one transfer for all."""
        if not steps:
            return []
        scalars: list[torch.Tensor] = []
        vectors: list[torch.Tensor] = []
        for statistics, _ in steps:
            every = statistics.values()
            scalars += [one.norm for one in every]
            scalars += [one.norm if one.gap is None else one.gap for one in every]
            vectors += [one.squared_norms for one in every]
            if _has_dots(statistics):
                vectors += [one.inner_products for one in every]
        flat = torch.cat([torch.stack(scalars), *vectors]).double().cpu().numpy()
        first, rest = flat[: len(scalars)], flat[len(scalars) :]
        found = []
        for statistics, batch in steps:
            count = len(statistics)
            dots = _has_dots(statistics)
            size = (1 + dots) * count * batch
            rows = np.concatenate(
                [
                    *first[: 2 * count].reshape(2, count, 1),
                    *rest[:size].reshape(-1, count, batch),
                ],
                1,
            )
            first, rest = first[2 * count :], rest[size:]
            eps = (None if one.gap is None else one.eps for one in statistics.values())
            found.append(cls(tuple(statistics), rows, tuple(eps), batch, dots))
        return found


def _has_dots(statistics: Mapping[str, ParameterStatistics]) -> bool:
    return all(one.inner_products is not None for one in statistics.values())


@dataclass(frozen=True)
class Way:
    """How a loss puts its samples together: `factor`, the square of what a contribution
    times makes the sample's own gradient, and `weights`[B] of a weighted mean, or None.
    """

    factor: float
    weights: np.ndarray | None = None


def put_together(
    taken: Taken, way: Way, row: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray | None]:
    """M, n[B] and d[B] (None where it was not taken) from a row of what samples
    contributed: the one place where they meet.

    n and d are those of the samples in the row, M that of the gradient whose norm is in
    it: of all samples that it is the mean of.
    """
    square = way.factor * float(row[0] / taken.batch) ** 2
    n = way.factor * row[2 : 2 + taken.batch]
    if not taken.dots:
        return square, n, None
    d = way.factor * row[2 + taken.batch :]
    if way.weights is not None:
        n, d = of_ratio(way.weights, square, n, d)
    return square, n, d


def _statistics(
    taken: Taken, way: Way, row: np.ndarray
) -> BatchStatistics | Norms | str:
    """Of one parameter, or a line that says why it has none."""
    square, n, d = put_together(taken, way, row)
    if d is None:
        return Norms(square, n)
    try:
        return BatchStatistics(square, n, d)
    except ValueError as error:
        return str(error)


def of_ratio(
    weights: np.ndarray, square: float, n: np.ndarray, d: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """n and d of the samples of a weighted mean, from those of g_b = u_b/w̄.

    ḡ = Σu_b/Σw_b is a ratio: to first order its error is the mean of z_b = g_b − v_b·ḡ,
    v_b = w_b/w̄. So the samples' gradients are taken as ḡ + z_b: then n̄ − M is the mean
    of ‖z_b‖² = n_b − 2v_b·d_b + v_b²·M.
    """
    rest = 1 - weights / weights.mean()
    n = np.maximum(n + 2 * rest * d + rest**2 * square, 0.0)
    return n, d + rest * square


def noise_scale_of(taken: Taken, way: Way) -> NoiseScale | None:
    """S and G2 of the whole model, without what a reading costs; None where there are
    none, or a ḡ is not autograd's.
    """
    if taken.batch < 2 or not np.isfinite(taken.rows).all():
        return None
    if any(eps is not None for eps in taken.eps):
        wrong, of_rounding = _gaps(taken)
        if (wrong & ~of_rounding).any():
            return None
    whole = taken.rows.sum(0)
    whole[0] = np.linalg.norm(taken.rows[:, 0])
    square, n, _ = put_together(taken, way, whole)
    return noise_scale(square, n)


def _gaps(taken: Taken) -> tuple[np.ndarray, np.ndarray]:
    """By parameter, whether ḡ is too far from autograd's, and whether both are no more
    than the rounding of the whole gradient.
    """
    sizes = np.sqrt(taken.rows[:, 2 : 2 + taken.batch].mean(1))
    gaps = taken.rows[:, 1] / taken.batch
    eps = np.array([one or 0.0 for one in taken.eps])
    seen = np.array([one is not None for one in taken.eps])
    wrong = seen & (gaps > np.sqrt(eps) * sizes)
    finest = np.where(eps > 0, eps, np.finfo(np.float32).eps)
    largest = np.maximum(sizes, np.where(seen, gaps, 0.0))
    share = np.minimum(_ROUNDING * finest, _MOST_ROUNDING)
    return wrong, largest <= share * np.linalg.norm(sizes)


def read(taken: Taken, way: Way, reading: Reading) -> Reading:
    """The reading with the step's statistics in it, or with `why_not`.

    Raises:
        UsageError: if a ḡ is not autograd's.
    """
    why_not = _why_nothing(taken)
    if why_not:
        return replace(reading, why_not=why_not)
    found: dict[str, BatchStatistics | Norms] = {}
    zeros = []
    for name, row, wrong, small in zip(taken.names, taken.rows, *_gaps(taken)):
        statistics = _statistics(taken, way, row)
        fault = statistics if isinstance(statistics, str) else None
        if wrong and not fault:
            fault = (
                f"its samples' gradients don't add up to its own (off by {row[1] / row[0]:.2g} of it): it is "
                "used outside its module's call, or the layer mixes samples or draws random numbers"
            )
        if fault and not small:
            raise UsageError(f"{name}: {fault}")
        if fault:
            nothing = np.zeros(taken.batch)
            statistics = Norms(0.0, nothing)
            if taken.dots:
                statistics = BatchStatistics(0.0, nothing, nothing)
            zeros.append(name)
        found[name] = statistics
    return replace(
        reading,
        parameters=found,
        rounding=tuple(zeros),
        why_not=_why_no_interval(taken),
    )


def _why_nothing(taken: Taken) -> str | None:
    if taken.batch < 2:
        return (
            f"a noise scale needs two samples or more, and this batch has {taken.batch}"
        )
    for name, row in zip(taken.names, taken.rows):
        if not np.isfinite(row).all():
            return f"{name}: its gradient or its square is NaN or infinite, as in a step that overflows"
    return None


def _why_no_interval(taken: Taken) -> str | None:
    if taken.batch < 3:
        return f"an interval within a batch needs three samples or more, and this batch has {taken.batch}"
    if not taken.dots:
        return (
            "a step of several backward passes or ranks has no interval of its own: meter.history().estimate() has one "
            "over steps (or NoiseMeter(…, within=True), which keeps all activations until the step ends)"
        )
    return None


def assumptions(count: int, mean: bool, weighted: bool) -> str:
    """What the loss of so many samples is taken for: nothing of it is seen but its
    gradient.
    """
    if weighted:
        return f"the loss is Σ of {count} samples' losses over Σ of their weights"
    how = "mean" if mean else "sum"
    return f"the loss is the {how} of {count} samples' own losses, none of which looks at another sample"
