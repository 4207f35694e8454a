"""Latency, speed-up and memory over the batch: one figure a problem group, as PNG and
SVG.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchline.bench import units
from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record, Run
from batchline.bench.report.tables import unique
from batchline.bench.verdicts import ranking
from batchline.bench.verdicts.ranking import opponents

# Okabe and Ito's colours, told apart by all; the baseline is black. Markers repeat the
# distinction without colour.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F5F00")
_MARKERS = "osD^vPX"
_LINES = ("-", "--", ":")
_LEAST_SPAN = 8  # a logarithmic axis shows at least this ratio, or noise in a flat curve would look like a cliff


@dataclass(frozen=True)
class _LogTicks:
    """A logarithmic axis: its base, and the multiples of each power that get a tick."""

    base: int
    subs: tuple[int, ...]


def why_no_plots() -> str | None:
    """Why plots can't be drawn here, or None."""
    try:
        _matplotlib()
    except ImportError:
        return "matplotlib is not installed"
    return None


def _matplotlib():
    """matplotlib, imported whatever $MPLBACKEND names: a notebook's backend need not
    exist here, and none is used.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return matplotlib


def new_figure(size: tuple[float, float]):
    """A figure of this size in inches. It has no display: to save, it gets Agg's
    canvas, or SVG's.
    """
    _matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=size)


def save(figure, path: Path) -> None:
    """`path`.png and `path`.svg; matplotlib's settings stay the caller's."""
    figure.savefig(path.with_name(f"{path.name}.png"), dpi=110)
    settings = {
        "svg.hashsalt": "batchline",  # or the same run would give other bytes each time
        "svg.fonttype": "none",
    }  # text stays text
    with _matplotlib().rc_context(settings):
        figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None})


def draw(run: Run, folder: Path) -> dict[tuple[str, str, str], str]:
    """Draw every group that has a time; returns each group's file name without its
    ending, relative to `folder`.
    """
    names = {}
    for group, records in run.groups().items():
        timed = [record for record in records if record.status == MEASURED]
        if timed:
            names[group] = name_of(*group)
            _draw_group(timed, run, group, folder / names[group])
    return names


def name_of(op: str, scenario: str, dtype: str) -> str:
    """A group's file name, without its ending."""
    return f"{op}-{scenario}-{dtype}"


def _draw_group(
    records: Sequence[Record], run: Run, group: tuple[str, str, str], path: Path
) -> None:
    op, scenario, dtype = group
    baseline = run.about["baselines"][op]
    base = {
        problem[-1]: record.median_s for problem, record in opponents(records).items()
    }
    figure = new_figure((13, 3.9))
    latency, speedup, memory = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.06, right=0.99, top=0.83, bottom=0.22, wspace=0.22)
    others = [
        name
        for name in unique(record.variant for record in records)
        if name != baseline
    ]
    looks = {baseline: {"color": "black", "marker": "o"}}
    looks |= {
        name: {
            "color": _COLORS[i % len(_COLORS)],
            "linestyle": _LINES[i // len(_COLORS) % len(_LINES)],
            "marker": _MARKERS[(i + 1 + i // len(_COLORS)) % len(_MARKERS)],
        }
        for i, name in enumerate(others)
    }
    for variant in (baseline, *others):
        curve = sorted(
            (record for record in records if record.variant == variant),
            key=lambda record: record.batch,
        )
        batches = [record.batch for record in curve]
        look = looks[variant] | {"markersize": 4.5, "linewidth": 1.4}
        latency.plot(
            batches, [record.median_s for record in curve], label=variant, **look
        )
        quartiles = [record.quartiles_s for record in curve]
        latency.fill_between(
            batches,
            [low for low, _ in quartiles],
            [high for _, high in quartiles],
            color=look["color"],
            alpha=0.18,
            linewidth=0,
        )
        compared = [
            record
            for record in curve
            if record.batch in base and ranking.may_win(record)
        ]
        speedup.plot(
            [record.batch for record in compared],
            [base[record.batch] / record.median_s for record in compared],
            **look,
        )
        counted = [record for record in curve if record.facts.get("peak_bytes")]
        memory.plot(
            [record.batch for record in counted],
            [record.facts["peak_bytes"] for record in counted],
            **look,
        )
    batches = unique(sorted(record.batch for record in records))
    _finish(
        latency,
        "latency, median and quartiles",
        batches,
        units.duration,
        _LogTicks(10, (1, 2, 5)),
    )
    _finish(speedup, "speed-up over PyTorch's fastest", batches, units.ratio)
    _finish(
        memory, "peak memory above the inputs", batches, units.size, _LogTicks(2, (1,))
    )
    figure.legend(
        *latency.get_legend_handles_labels(),
        loc="lower center",
        ncols=6,
        frameon=False,
        fontsize=9,
    )
    partial = " (partial run)" if run.about["partial"] else ""
    figure.suptitle(
        f"{op} · {scenario} · {dtype} on {run.machine['device_name']}{partial}",
        fontsize=11,
    )
    save(figure, path)


def _finish(
    axes,
    title: str,
    batches: Sequence[int],
    unit: Callable[[float], str],
    ticks: _LogTicks | None = None,
):
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_title(title, fontsize=9.5)
    axes.set_xlabel("batch")
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    if ticks:
        axes.set_yscale("log", base=ticks.base)
        axes.yaxis.set_major_locator(
            LogLocator(ticks.base, subs=ticks.subs, numticks=12)
        )
        axes.yaxis.set_minor_locator(NullLocator())
        low, high = axes.get_ylim()
        widen = max(1.0, (_LEAST_SPAN * low / high) ** 0.5)
        axes.set_ylim(low / widen, high * widen)
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: unit(value))
    axes.grid(True, which="major", color="0.88", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)
