"""The noise scale over training, with its interval, one curve a workload."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from batchline.bench.noise.stored_survey import moments
from batchline.bench.report import plots

_COLORS, _MARKERS = ("#0072B2", "#D55E00", "#009E73"), "osD"


def draw(workloads: Mapping[str, Mapping], on: str, path: Path) -> str | None:
    """B_simple over the updates, as PNG and SVG; an arrow up where it can't be bounded
    above. `on` ends the title.

    Returns why nothing was drawn, or None.
    """
    if why_not := plots.why_no_plots():
        return why_not
    figure = plots.new_figure((7.2, 3.9))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.11, right=0.97, top=0.9, bottom=0.13)
    for (name, workload), color, marker in zip(workloads.items(), _COLORS, _MARKERS):
        for moment in moments(workload):
            low, high = moment.estimate.simple.low, moment.estimate.simple.high
            if not low > 0:
                continue  # nothing is known of it; the table says so
            bounded = math.isfinite(high)
            value = moment.estimate.scale.simple if bounded else low
            axes.errorbar(
                [moment.updates],
                [value],
                yerr=[[value - low], [high - value if bounded else value]],
                lolims=not bounded,
                color=color,
                marker=marker,
                capsize=3,
                label=name if moment.updates == moments(workload)[-1].updates else None,
            )
    axes.set_xscale("symlog", linthresh=10)
    axes.set_yscale("log")
    axes.set_xlabel("updates")
    axes.set_ylabel("B_simple, samples")
    axes.set_title(
        "gradient noise scale over training (95% intervals; an arrow: no upper bound){on}",
        fontsize=9,
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    plots.save(figure, path)
    return None
