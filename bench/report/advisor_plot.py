"""The advisor's two figures: step time, memory and noise over the batch; the time to a
loss, predicted and measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from batchline.bench import units
from batchline.bench.noise.advice import Advice
from batchline.bench.noise.time_to_target import TimeToTarget
from batchline.bench.report import plots

_BLUE, _RED, _GREEN, _GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "0.45",
)  # of Okabe and Ito, as in bench.report.plots
_COLORS = (_GREEN, _RED, _BLUE, "#CC79A7", "#E69F00", "#56B4E9")
_TOP = 5  # times the least: where the panel of T(B) is cut, or its ends would flatten the valley


def draw_advice(advice: Advice, title: str, path: Path) -> str | None:
    """Step time, memory with its wall, and T(B) with φ's band, over one batch axis:
    `path` as PNG and SVG.

    The line is the best batch, the bar its 95% interval, the shade the batches within
    5% of its time. Returns why nothing was drawn, or None.
    """
    if why_not := plots.why_no_plots():
        return why_not
    from matplotlib.ticker import MultipleLocator

    figure = plots.new_figure((7.2, 7.8))
    times, memory, noise = figure.subplots(
        3, 1, sharex=True, height_ratios=(1, 1, 1.25)
    )
    figure.subplots_adjust(left=0.13, right=0.97, top=0.92, bottom=0.13, hspace=0.24)
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
    predicted = [point for point in advice.curve if point.time_relative is not None]
    shown = [point.batch for point in predicted]
    if predicted:
        noise.plot(
            shown,
            [point.time_relative for point in predicted],
            color=_BLUE,
            marker="o",
            label="time to a loss",
        )
        noise.fill_between(
            shown,
            *zip(*(point.time_band for point in predicted)),
            color=_BLUE,
            alpha=0.18,
            linewidth=0,
            label="φ at the ends of its interval",
        )
        noise.plot(
            shown,
            [point.examples_relative for point in predicted],
            color=_RED,
            linestyle="--",
            marker="s",
            label="examples",
        )
        noise.set_ylim(
            0.9, min(_TOP, 1.2 * max(point.time_relative for point in predicted))
        )
    else:
        _note(noise, advice.sentences[0].partition(":")[0])
    _mark_best(advice, (times, memory, noise))
    _finish(
        times, "time of a step and of a sample", batches, units.duration, logarithmic=10
    )
    _finish(memory, "peak memory", batches, units.size)
    _finish(noise, "predicted, relative to the best batch", batches, units.ratio)
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
    plots.save(figure, path)
    return None


def draw_comparison(result: TimeToTarget, title: str, path: Path) -> str | None:
    """Time to the target over the batch: the median and range of the seeds, and each
    prediction with φ's band.

    `path` as PNG and SVG. Returns why nothing was drawn, or None.
    """
    if why_not := plots.why_no_plots():
        return why_not
    figure = plots.new_figure((7.2, 5.2))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.12, right=0.97, top=0.89, bottom=0.33)
    for prediction, color, line in zip(
        result.predictions, itertools.cycle(_COLORS), itertools.cycle(("-", "--", ":"))
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
    _finish(
        axes,
        f"time to a training loss of {result.target_loss:g}",
        [one.batch for one in result.measured],
        units.duration,
        logarithmic=10,
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
    plots.save(figure, path)
    return None


def _wall(axes, advice: Advice, most_bytes: float) -> None:
    """The room in the memory where it is in sight; words in its place where it is not,
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


def _note(axes, words: str) -> None:
    axes.annotate(
        words, (0.02, 0.9), xycoords="axes fraction", fontsize=8, color=_RED, va="top"
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


def _finish(
    axes,
    title: str,
    batches: Iterable[int],
    unit: Callable[[float], str],
    logarithmic: int | None = None,
):
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_title(title, fontsize=9.5)
    axes.set_xscale("log", base=2)
    last, ticks = 0.0, []
    for batch in sorted(batches):
        if batch >= 1.6 * last:  # nearer ones would be written over each other
            ticks.append(batch)
            last = batch
    axes.set_xticks(ticks, [f"{batch:,}" for batch in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    if logarithmic:
        axes.set_yscale("log", base=logarithmic)
        axes.yaxis.set_major_locator(
            LogLocator(logarithmic, subs=(1, 2, 5), numticks=12)
        )
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: unit(value))
    axes.grid(True, which="major", color="0.88", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)
