"""From how many tokens on not materialising beats ghost norms: the measured T* beside
the predicted.
"""

from __future__ import annotations

from batchline.bench import units
from batchline.bench.store.records import Run
from batchline.bench.report.tables import Style
from batchline.bench.verdicts import crossovers

NOTE = (
    "Ghost norms cost 2T²(I+O) operations a sample, the fused kernels a walk over I·O numbers, so they meet at "
    "T* = √(κ·IO/(I+O)), predicted for κ from 1 to 25. Measured: between the two T around the change of leader, "
    "interpolated in logarithms."
)


def table(run: Run, style: Style) -> str | None:
    """A row a layer and batch; None where the run has nothing to compare."""
    sizes = run.about.get("sizes", {}).get(crossovers.TOKENS_OP, {})
    rows = [
        [
            f"{crossing.inputs} → {crossing.outputs} · {crossing.dtype}",
            str(crossing.batch),
            crossing.fused,
            " to ".join(f"{tokens:.0f}" for tokens in crossing.predicted),
            _measured(crossing),
            ", ".join(
                f"T={tokens}: {units.ratio(ratio)}" for tokens, ratio in crossing.ratios
            ),
        ]
        for crossing in crossovers.token_crossings(run.records, sizes)
    ]
    if not rows:
        return None
    return style.render(
        [
            "layer",
            "batch",
            "against ghost",
            "T* predicted",
            "T* measured",
            "ghost's time over fused's",
        ],
        rows,
    )


def _measured(crossing: crossovers.TokenCrossing) -> str:
    if crossing.tokens is not None:
        return f"{crossing.tokens:.3g} (between {crossing.between[0]} and {crossing.between[1]})"
    tokens, ratio = (
        crossing.ratios[0] if crossing.ratios[-1][1] >= 1 else crossing.ratios[-1]
    )
    return (
        f"fused leads from T={tokens} on"
        if ratio >= 1
        else f"ghost leads up to T={tokens}"
    )
