"""The figures beside a report's README.md, each as PNG or SVG: latency, speed-up and memory
of a problem over the batch; of training the noise scale, the advised batch, and the time
to a loss; and the mean gradient over ranks.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchline.bench import units
from batchline.bench.noise.advice import Advice, Point
from batchline.bench.noise.advisor import Moment
from batchline.bench.noise.rank_scaling import At, Pair, Scaling
from batchline.bench.noise.time_to_target import TimeToTarget
from batchline.bench.report.document import unique
from batchline.bench.report.findings import TrainingFindings
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
# Of Okabe and Ito's colours; as in figures.COLORS.
_BLUE, _RED, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "0.45"
_PREDICTIONS = (_GREEN, _RED, _BLUE, "#CC79A7", "#E69F00", "#56B4E9")
_TOP = 5  # times the least: where the panel of T(B) is cut, or its ends would flatten the valley


@dataclass(frozen=True)
class LogTicks:
    """A logarithmic axis: its base, and the multiples of each power that get a tick."""

    base: int
    subs: tuple[int, ...]


DECADES = LogTicks(10, (1, 2, 5))
RANKS = "ranks"  # the name of its file, without the ending


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


def draw_training(
    findings: TrainingFindings, machine: Mapping, folder: Path
) -> set[str]:
    """Draw the figures of training; returns their names without the ending, none where
    there is no matplotlib.
    """
    if why_no_plots():
        return set()
    names = set()
    on = f"\non {machine['device_name']}"
    if findings.workloads:
        draw_noise(findings.moments, on, folder / "noise")
        names.add("noise")
    for name in findings.workloads:
        with contextlib.suppress(ValueError):  # the section says why there is no advice
            advice = findings.middle_advice(name)
            title = (
                f"{name}: a step, memory and the time to a loss, by the noise after "
                f"{findings.middle(name).updates} updates{on}"
            )
            draw_advice(advice, title, folder / f"advice-{name}")
            names.add(f"advice-{name}")
    result = findings.time_to_target
    if not isinstance(result, str):
        title = (
            f"{result.workload}: time to a training loss of {result.target_loss:g}{on}"
        )
        draw_comparison(result, title, folder / "time-to-target")
        names.add("time-to-target")
    return names


def draw_noise(workloads: Mapping[str, Sequence[Moment]], on: str, path: Path) -> None:
    """B_simple over the updates, as PNG and SVG; an arrow up where it can't be bounded
    above. `on` ends the title.
    """
    figure = new_figure((7.2, 3.9))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.11, right=0.97, top=0.9, bottom=0.13)
    for (name, moments), color, marker in zip(workloads.items(), COLORS, MARKERS):
        for moment in moments:
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
                label=name if moment.updates == moments[-1].updates else None,
            )
    axes.set_xscale("symlog", linthresh=10)
    axes.set_yscale("log")
    axes.set_xlabel("updates")
    axes.set_ylabel("B_simple, samples")
    axes.set_title(
        f"gradient noise scale over training (95% intervals; an arrow: no upper bound){on}",
        fontsize=9,
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save(figure, path)


def draw_advice(advice: Advice, title: str, path: Path) -> None:
    """Step time, memory with its wall, and T(B) with φ's band, over one batch axis:
    `path` as PNG and SVG.

    The line is the best batch, the bar its 95% interval, the shade the batches within
    5% of its time.
    """
    figure = new_figure((7.2, 7.8))
    times, memory, noise = figure.subplots(
        3, 1, sharex=True, height_ratios=(1, 1, 1.25)
    )
    figure.subplots_adjust(left=0.13, right=0.97, top=0.92, bottom=0.13, hspace=0.24)
    _draw_times(times, advice)
    _draw_memory(memory, advice)
    predicted = [point for point in advice.curve if point.time_relative is not None]
    if predicted:
        _draw_predicted(noise, predicted)
    else:
        _note(noise, advice.sentences[0].partition(":")[0])
    _mark_best(advice, (times, memory, noise))
    batches = [point.batch for point in advice.curve]
    _finish_training_panel(
        times,
        "time of a step and of a sample",
        batches,
        units.duration,
        ticks=DECADES,
    )
    _finish_training_panel(memory, "peak memory", batches, units.size)
    _finish_training_panel(
        noise, "predicted, relative to the best batch", batches, units.ratio
    )
    times.legend(fontsize=8, frameon=False, loc="lower left")
    if predicted:
        noise.legend(
            fontsize=8,
            frameon=False,
            loc="upper center",
            bbox_to_anchor=(0.45, -0.2),
            ncols=3,
        )
    noise.set_xlabel("batch")
    figure.suptitle(title, fontsize=11, x=0.55)
    save(figure, path)


def _draw_times(times, advice: Advice) -> None:
    batches = [point.batch for point in advice.curve]
    times.plot(
        batches,
        [point.step_s for point in advice.curve],
        color=_BLUE,
        marker="o",
        label="a step",
    )
    times.plot(
        batches,
        [point.step_s / point.batch for point in advice.curve],
        color=_RED,
        marker="s",
        linestyle="--",
        label="a sample",
    )


def _draw_memory(memory, advice: Advice) -> None:
    from matplotlib.ticker import MultipleLocator

    known = [point for point in advice.curve if point.peak_bytes is not None]
    memory.plot(
        [point.batch for point in known],
        [point.peak_bytes for point in known],
        color=_BLUE,
        marker="o",
    )
    most_bytes = max((point.peak_bytes for point in known), default=1)
    memory.set_ylim(0, 1.25 * most_bytes)
    _wall(memory, advice, most_bytes)
    memory.yaxis.set_major_locator(
        MultipleLocator(2 ** round(math.log2(memory.get_ylim()[1] / 5)))
    )


def _draw_predicted(noise, predicted: Sequence[Point]) -> None:
    """The time to a loss with φ's band, and the examples that it takes."""
    batches = [point.batch for point in predicted]
    noise.plot(
        batches,
        [point.time_relative for point in predicted],
        color=_BLUE,
        marker="o",
        label="time to a loss",
    )
    noise.fill_between(
        batches,
        *zip(*(point.time_band for point in predicted)),
        color=_BLUE,
        alpha=0.18,
        linewidth=0,
        label="φ at the ends of its interval",
    )
    noise.plot(
        batches,
        [point.examples_relative for point in predicted],
        color=_RED,
        linestyle="--",
        marker="s",
        label="examples",
    )
    noise.set_ylim(
        0.9, min(_TOP, 1.2 * max(point.time_relative for point in predicted))
    )


def draw_comparison(result: TimeToTarget, title: str, path: Path) -> None:
    """Time to the target over the batch: the median and range of the seeds, and each
    prediction with φ's band.

    `path` as PNG and SVG.
    """
    figure = new_figure((7.2, 5.2))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.12, right=0.97, top=0.89, bottom=0.33)
    for prediction, color, line in zip(
        result.predictions,
        itertools.cycle(_PREDICTIONS),
        itertools.cycle(("-", "--", ":")),
    ):
        batches = [one.batch for one in prediction.batches]
        axes.plot(
            batches,
            [one.time_s for one in prediction.batches],
            color=color,
            linestyle=line,
            label=f"predicted: {prediction.source}",
        )
        bands = [one.time_band_s for one in prediction.batches]
        if None not in bands:
            axes.fill_between(
                batches, *zip(*bands), color=color, alpha=0.15, linewidth=0
            )
    _draw_measured(axes, result)
    _finish_training_panel(
        axes,
        f"time to a training loss of {result.target_loss:g}",
        [one.batch for one in result.measured],
        units.duration,
        ticks=DECADES,
    )
    axes.set_xlabel("batch")
    axes.legend(
        fontsize=8,
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.45, -0.14),
        ncols=2,
    )
    figure.suptitle(title, fontsize=11, x=0.55)
    save(figure, path)


def _draw_measured(axes, result: TimeToTarget) -> None:
    """The median and the range of the seeds at each batch."""
    reached = [one for one in result.measured if one.time_s.median is not None]
    medians = [one.time_s.median for one in reached]
    highs = [
        one.time_s.high if one.time_s.high is not None else one.time_s.median
        for one in reached
    ]
    axes.errorbar(
        [one.batch for one in reached],
        medians,
        color="black",
        marker="o",
        linestyle="none",
        capsize=3,
        yerr=[
            [median - one.time_s.low for median, one in zip(medians, reached)],
            [high - median for high, median in zip(highs, medians)],
        ],
        label="measured: median and range of seeds",
    )


def draw_ranks(result: Scaling, machine: Mapping, path: Path) -> None:
    """The time of each way over the samples of a rank, a panel for each count of ranks:
    points and quartiles, dashed with bfloat16 on the wire, and each law as a thin line.

    `path` as PNG and SVG.
    """
    figure = new_figure((4.3 * len(result.ranks), 4.3))
    panels = figure.subplots(1, len(result.ranks), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(left=0.08, right=0.99, top=0.83, bottom=0.28, wspace=0.06)
    ways = unique(way for way, _ in result.medians_s)
    looks = _looks(ways[0], ways)
    for axes, ranks in zip(panels, result.ranks):
        for (way, wire), medians_s in result.medians_s.items():
            look = looks[way] | {"linestyle": "-" if wire == "float32" else "--"}
            at = sorted(place for place in medians_s if place[0] == ranks)
            _draw_way(axes, result, (way, wire), at, look)
        shares = ranks not in result.with_a_core_each
        on = f" on {result.times.cores} cores: they share them" if shares else ""
        _finish_training_panel(
            axes,
            f"{ranks} rank{'s' if ranks > 1 else ''}{on}",
            result.times.batches,
            units.duration,
            ticks=DECADES,
        )
        axes.set_xlabel("samples of each rank")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    figure.suptitle(
        f"the mean of {result.times.parameters:,} parameters over the samples of all ranks, medians and quartiles "
        f"(thin: the law), on {machine['device_name']}",
        fontsize=11,
    )
    save(figure, path)


def _draw_way(
    axes, result: Scaling, pair: Pair, places: Sequence[At], look: Mapping
) -> None:
    """One way and wire on one count of ranks."""
    batches = [batch for _, batch in places]
    axes.plot(
        batches,
        [result.medians_s[pair][at] for at in places],
        label=" ".join(pair),
        markersize=4.5,
        linewidth=1.4,
        **look,
    )
    axes.fill_between(
        batches,
        [result.quartiles_s[pair][at][0] for at in places],
        [result.quartiles_s[pair][at][1] for at in places],
        color=look["color"],
        alpha=0.12,
        linewidth=0,
    )
    law = result.laws.get(pair)
    if law and places and places[0][0] in result.with_a_core_each:
        axes.plot(
            batches,
            [law.seconds(batch, ranks) for ranks, batch in places],
            color=look["color"],
            linestyle=look["linestyle"],
            linewidth=0.6,
        )


def _wall(axes, advice: Advice, most_bytes: float) -> None:
    """The room in the memory where it is in sight; a note in its place where it is not,
    or where there is none.
    """
    if advice.largest_that_fits is None:
        _note(axes, f"no wall: {advice.memory}")
        return
    room = (1 - advice.headroom) * advice.limit_bytes
    if room <= 2 * most_bytes:
        axes.axhline(room, color=_RED, linewidth=1.2, linestyle=":")
        axes.annotate(
            f"{units.size(room)}: {advice.largest_that_fits:,} fit",
            (0.02, room),
            color=_RED,
            fontsize=8,
            xycoords=("axes fraction", "data"),
            va="bottom",
        )
        axes.set_ylim(top=1.25 * max(room, most_bytes))
    else:
        _note(axes, f"the wall is at {advice.largest_that_fits:,}, {units.size(room)}")


def _note(axes, text: str) -> None:
    axes.annotate(
        text, (0.02, 0.9), xycoords="axes fraction", fontsize=8, color=_RED, va="top"
    )


def _mark_best(advice: Advice, panels: Sequence) -> None:
    if advice.best_batch is None:
        return
    last = max(point.batch for point in advice.curve)
    for axes in panels:
        axes.axvline(advice.best_batch, color=_GREY, linewidth=1)
    if advice.within_5_percent:
        low, high = advice.within_5_percent
        panels[-1].axvspan(
            low,
            high or last,
            color=_GREEN,
            alpha=0.15,
            linewidth=0,
            label="within 5% of the least time",
        )
    low, high = advice.interval
    panels[-1].plot(
        [low, high or last],
        [0.95, 0.95],
        color="black",
        linewidth=3,
        solid_capstyle="butt",
        label=f"best batch {advice.best_batch:,}, 95% interval",
    )


def _finish_training_panel(
    axes,
    title: str,
    batches: Iterable[int],
    unit: Callable[[float], str],
    ticks: LogTicks | None = None,
) -> None:
    axes.set_xscale("log", base=2)
    last, labelled = 0.0, []
    for batch in sorted(batches):
        if batch >= 1.6 * last:  # nearer ones would be written over each other
            labelled.append(batch)
            last = batch
    axes.set_xticks(labelled, [f"{batch:,}" for batch in labelled])
    if ticks:
        set_logarithmic(axes, ticks)
    finish(axes, title, unit)
