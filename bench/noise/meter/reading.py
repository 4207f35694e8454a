"""What a metered step says: statistics by parameter, by layer and of the whole model,
and what follows from them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from batchline.bench.errors import UsageError
from batchline.bench.noise.meter.step import ParameterStatistics
from batchline.bench.stats.batch_statistics import (
    BatchStatistics,
    BatchTest,
    inner_product_test,
    norm_test,
    orthogonality_test,
)
from batchline.bench.stats.noise_scale import NoiseEstimate, within_batch

TESTS = (norm_test, inner_product_test, orthogonality_test)


@dataclass(frozen=True)
class Reading:
    """Of one batch, whose samples' gradients are those of their own losses: times B
    where the loss was their mean.

    `fallbacks`: layers that torch.func took apart, name → type. `frozen` and
    `without_gradient`: names of parameters that asked for no gradient, and that the
    loss does not depend on; both count as zeros.
    A loss scale multiplies gradients, so tr Σ and ‖G‖² have its square in them;
    B_simple and the tests do not.
    """

    batch: int
    parameters: Mapping[str, BatchStatistics]
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    without_gradient: tuple[str, ...] = ()

    @functools.cached_property
    def layers(self) -> dict[str, BatchStatistics]:
        """By module; a shared parameter is the first one's that has it."""
        by_layer: dict[str, BatchStatistics] = {}
        for name, statistics in self.parameters.items():
            layer = name.rpartition(".")[0] or "the model"
            by_layer[layer] = (
                by_layer[layer] + statistics if layer in by_layer else statistics
            )
        return by_layer

    @functools.cached_property
    def whole(self) -> BatchStatistics:
        """Of all parameters as one vector."""
        first, *others = self.parameters.values()
        return sum(others, first)

    def noise(
        self, layer: str | None = None, confidence: float = 0.95
    ) -> NoiseEstimate:
        """The noise scale of a layer, or of the whole model, with its interval."""
        return within_batch(self._of(layer), confidence)

    def tests(self, layer: str | None = None) -> tuple[BatchTest, ...]:
        """The norm, inner-product and orthogonality test of a layer, or of the whole
        model.
        """
        return tuple(test(self._of(layer)) for test in TESTS)

    def _of(self, layer: str | None) -> BatchStatistics:
        if layer is not None and layer not in self.layers:
            raise UsageError(
                f"no layer {layer!r} was measured: there are {', '.join(self.layers)}"
            )
        return self.whole if layer is None else self.layers[layer]

    def __str__(self) -> str:
        lines = [
            f"gradient noise of a batch of {self.batch}: B_simple {self.noise().text()}"
        ]
        lines += [f"  {test.name} test {test.value:.3g}" for test in self.tests()]
        lines += [
            f"  {layer}: B_simple {self.noise(layer).text()}" for layer in self.layers
        ]
        lines += [
            f"  {layer} ({kind}) went through torch.func"
            for layer, kind in self.fallbacks.items()
        ]
        for what, names in (
            ("frozen", self.frozen),
            ("without gradient", self.without_gradient),
        ):
            lines += [f"  {what}: {', '.join(names)}"] if names else []
        return "\n".join(lines)


def read(
    statistics: Mapping[str, ParameterStatistics], batch: int, factor: float, **named
) -> Reading:
    """The reading of a step: one transfer from the device.

    Args:
        statistics: of each parameter, what its samples contributed to the gradient.
        factor: the square of what a contribution times makes the sample's own gradient.

    Raises:
        UsageError: for a gradient that is NaN or infinite, a batch of one, or a ḡ that
        is not autograd's.
    """
    rows = torch.stack([_as_row(one) for one in statistics.values()]).cpu().numpy()
    parameters = {}
    for (name, one), row in zip(statistics.items(), rows):
        norm, gap = row[:2] / batch
        n = row[2 : 2 + batch]
        d = row[2 + batch :]
        try:
            parameters[name] = BatchStatistics(factor * norm**2, factor * n, factor * d)
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from error
        if one.gap is not None and gap > one.eps**0.5 * n.mean() ** 0.5:
            raise UsageError(
                f"{name}: its samples' gradients don't add up to its own (off by {gap / norm:.2g} of it): "
                "it is used outside its module's call, or the layer mixes samples or draws random numbers"
            )
    return Reading(batch, parameters, **named)


def _as_row(one: ParameterStatistics) -> torch.Tensor:
    """[2 + 2B] in fp64: the norm, the gap (the norm where there is none), n and d."""
    gap = one.norm if one.gap is None else one.gap
    norms = torch.stack([one.norm, gap]).double()
    return torch.cat([norms, one.squared_norms.double(), one.inner_products.double()])
