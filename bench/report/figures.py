"""The figures beside a report's README.md, each as PNG and SVG: latency, speed-up and
memory of a problem over the batch; and what all figures share.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchline.bench import units
from batchline.bench.report.document import unique
from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record, Run
from batchline.bench.verdicts import ranking
from batchline.bench.verdicts.ranking import opponents

# Okabe and Ito's colours, which all readers can distinguish; the baseline is black.
# Markers repeat the distinction without colour.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F5F00")
MARKERS = "osD^vPX"
_LINES = ("-", "--", ":")
_LEAST_SPAN = 8  # a logarithmic axis shows at least this ratio, or noise in a flat curve would look like a cliff


@dataclass(frozen=True)
class LogTicks:
    """A logarithmic axis: its base, and the multiples of each power that get a tick."""

    base: int
    subs: tuple[int, ...]


DECADES = LogTicks(10, (1, 2, 5))


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


def draw_problems(run: Run, folder: Path) -> set[str]:
    """Draw every group that has a time; returns the files' names without the
    ending, relative to `folder`.
    """
    names = set()
    for group, records in run.groups().items():
        timed = [record for record in records if record.status == MEASURED]
        if timed:
            name = name_of(*group)
            _draw_problem(timed, run, group, folder / name)
            names.add(name)
    return names


def name_of(op: str, scenario: str, dtype: str) -> str:
    """A group's file name, without its ending."""
    return f"{op}-{scenario}-{dtype}"


def _draw_problem(
    records: Sequence[Record], run: Run, group: tuple[str, str, str], path: Path
) -> None:
    op, scenario, dtype = group
    base = {
        problem[-1]: record.median_s for problem, record in opponents(records).items()
    }
    figure = new_figure((13, 3.9))
    panels = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.06, right=0.99, top=0.83, bottom=0.22, wspace=0.22)
    variants = unique(record.variant for record in records)
    for variant, look in _looks(run.baselines[op], variants).items():
        curve = sorted(
            (record for record in records if record.variant == variant),
            key=lambda record: record.batch,
        )
        _draw_variant(panels, curve, base, variant, look)
    _finish_panels(panels, unique(sorted(record.batch for record in records)))
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="lower center",
        ncols=6,
        frameon=False,
        fontsize=9,
    )
    partial = " (partial run)" if run.partial else ""
    figure.suptitle(
        f"{op} · {scenario} · {dtype} on {run.machine['device_name']}{partial}",
        fontsize=11,
    )
    save(figure, path)


def _looks(baseline: str, variants: Sequence[str]) -> dict[str, dict]:
    """Colour, line and marker of each variant, the baseline first."""
    others = [name for name in variants if name != baseline]
    looks = {baseline: {"color": "black", "marker": "o"}}
    for i, name in enumerate(others):
        looks[name] = {
            "color": COLORS[i % len(COLORS)],
            "linestyle": _LINES[i // len(COLORS) % len(_LINES)],
            "marker": MARKERS[(i + 1 + i // len(COLORS)) % len(MARKERS)],
        }
    return looks


def _draw_variant(
    panels: Sequence,
    curve: Sequence[Record],
    base_s: Mapping[int, float],
    variant: str,
    look: Mapping,
) -> None:
    """One variant's curve in the panels of latency, speed-up and memory; `base_s` is
    the time that the speed-up is over, by batch.
    """
    latency, speedup, memory = panels
    look = look | {"markersize": 4.5, "linewidth": 1.4}
    batches = [record.batch for record in curve]
    latency.plot(batches, [record.median_s for record in curve], label=variant, **look)
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
        record for record in curve if record.batch in base_s and ranking.may_win(record)
    ]
    speedup.plot(
        [record.batch for record in compared],
        [base_s[record.batch] / record.median_s for record in compared],
        **look,
    )
    counted = [record for record in curve if record.facts.get("peak_bytes")]
    memory.plot(
        [record.batch for record in counted],
        [record.facts["peak_bytes"] for record in counted],
        **look,
    )


def _finish_panels(panels: Sequence, batches: Sequence[int]) -> None:
    latency, speedup, memory = panels
    _finish_panel(
        latency,
        "latency, median and quartiles",
        batches,
        units.duration,
        DECADES,
    )
    _finish_panel(speedup, "speed-up over PyTorch's fastest", batches, units.ratio)
    _finish_panel(
        memory, "peak memory above the inputs", batches, units.size, LogTicks(2, (1,))
    )


def _finish_panel(
    axes,
    title: str,
    batches: Sequence[int],
    unit: Callable[[float], str],
    ticks: LogTicks | None = None,
) -> None:
    axes.set_xlabel("batch")
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    if ticks:
        set_logarithmic(axes, ticks)
        low, high = axes.get_ylim()
        widen = max(1.0, (_LEAST_SPAN * low / high) ** 0.5)
        axes.set_ylim(low / widen, high * widen)
    else:
        axes.set_ylim(bottom=0)
    finish(axes, title, unit)


def finish(axes, title: str, unit: Callable[[float], str]) -> None:
    """What all panels over the batch share."""
    from matplotlib.ticker import NullLocator

    axes.set_title(title, fontsize=9.5)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: unit(value))
    axes.grid(True, which="major", color="0.88", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)


def set_logarithmic(axes, ticks: LogTicks) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log", base=ticks.base)
    axes.yaxis.set_major_locator(LogLocator(ticks.base, subs=ticks.subs, numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
