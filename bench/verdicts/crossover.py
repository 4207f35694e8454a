"""From how many tokens a sample on the fused statistics of weight gradients beat ghost
norms: predicted, and measured.

Pure arithmetic on the records of `wgrad_stats`. Ghost norms pay 2T²(I+O) operations a
sample for two Grams; the fused way pays for walking I·O numbers. So they meet at T* =
√(κ·IO/(I+O)), where κ says what one of those numbers costs in multiply-adds of a
product: 1 if as little as one, 25 if it is bound by loads and stores at a fifth of a
unit's rate each way. κ is the machine's; hence a range, and a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchline.bench.store.records import Record
from batchline.bench.verdicts import eligible

OP, FUSED = "wgrad_stats", ("triton_fused", "numba_cpu_fused")
GHOST = ("torch_ghost", "torch_ghost_tf32", "torch_ghost_3xbf16", "torch_ghost_6xbf16")
KAPPA = (1, 25)
_GHOST = "ghost"


@dataclass(frozen=True)
class Crossing:
    """One layer at one batch: fused over ghost by T, the T* predicted (a range), and
    the T* measured.

    `ratios` are ghost's time over fused's, by T, ascending. `between` is the pair of T
    around the last change of leader and `tokens` the T* in between, interpolated in
    logarithms; both None where one leads throughout.
    """

    dtype: str
    inputs: int
    outputs: int
    batch: int
    fused: str
    ratios: tuple[tuple[int, float], ...]
    predicted: tuple[float, float]
    between: tuple[int, int] | None
    tokens: float | None


def predicted(inputs: int, outputs: int) -> tuple[float, float]:
    """The range of T* for a layer of these sizes."""
    low, high = (
        math.sqrt(kappa * inputs * outputs / (inputs + outputs)) for kappa in KAPPA
    )
    return low, high


def crossings(
    records: Sequence[Record], sizes: Mapping[str, Mapping[str, int]]
) -> list[Crossing]:
    """Every layer and batch at which both ways were measured for two T or more; `sizes`
    are by scenario.

    Ghost's time is that of the fastest form of it that is ranked.
    """
    times: dict[tuple, dict[int, dict[str, float]]] = {}
    for record in records:
        if (
            record.op == OP
            and eligible.may_win(record)
            and record.variant in (*GHOST, *FUSED)
        ):
            size = sizes[record.scenario]
            layer = record.dtype, size["I"], size["O"], record.batch
            medians = times.setdefault(layer, {}).setdefault(size["T"], {})
            way = _GHOST if record.variant in GHOST else record.variant
            medians[way] = min(record.median_s, medians.get(way, math.inf))
    found = []
    for (dtype, inputs, outputs, batch), by_tokens in times.items():
        for fused in FUSED:
            ratios = tuple(
                (tokens, medians[_GHOST] / medians[fused])
                for tokens, medians in sorted(by_tokens.items())
                if _GHOST in medians and fused in medians
            )
            if len(ratios) > 1:
                between, tokens = _last_change(ratios)
                found.append(
                    Crossing(
                        dtype,
                        inputs,
                        outputs,
                        batch,
                        fused,
                        ratios,
                        predicted(inputs, outputs),
                        between,
                        tokens,
                    )
                )
    return found


def _last_change(
    ratios: Sequence[tuple[int, float]],
) -> tuple[tuple[int, int] | None, float | None]:
    for (low, before), (high, after) in reversed(list(zip(ratios, ratios[1:]))):
        if before < 1 <= after:
            share = math.log(before) / (math.log(before) - math.log(after))
            return (low, high), low * (high / low) ** share
    return None, None
