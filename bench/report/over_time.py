"""A history for a terminal, as figures, and as Apache Otava reads it: what changed when,
at which revision, by how much.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from batchline.bench import units
from batchline.bench.report import figures
from batchline.bench.report.document import unique
from batchline.bench.report.render.terminal import wrapped
from batchline.bench.stats.fits import LEAST_RUNS, LEAST_SEGMENT, ChangePoint
from batchline.bench.store.accepted import AcceptedStep
from batchline.bench.store.history import Entry
from batchline.bench.texts import one_line
from batchline.bench.verdicts.across_runs import Group, Series, toolchain_changes

OTAVA_CONFIG = "otava.yaml"
_MOST_NAMED = 3
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F5F00")
_MARKERS = "osD^vPX"


def terminal(name: str, groups: Sequence[Group]) -> str:
    """The answer for each machine and profile in a history, then one line per change
    and per change of toolchain.
    """
    if not groups:
        return f"{name}: no run in this history"
    return "\n\n".join(
        "\n".join(_lines(name, group, len(groups) > 1)) for group in groups
    )


def _lines(name: str, group: Group, several: bool) -> Iterator[str]:
    yield wrapped(summarize(name, group))
    if several:
        yield wrapped(
            "on "
            + ", ".join(f"{fact} {value}" for fact, value in group.machine.items()),
            "  ",
        )
    for index, differ in toolchain_changes(group.entries):
        yield wrapped(
            f"toolchain at {_revision(group.entries[index])}: {', '.join(differ)}", "  "
        )
    for series, change in group.changed:
        yield wrapped(f"{series.case}: {_change(series, change)}", "  ")
    for series in group.series:
        if series.accepted:
            yield wrapped(
                f"{series.case}: begins at {accepted_step(series.accepted)}", "  "
            )


def summarize(name: str, group: Group) -> str:
    """How many runs, and which cases changed when, at which revision, by how much: one
    sentence.
    """
    lead = f"{name}, {group.profile}: {_number(len(group.entries), 'run')}"
    judged = [series for series in group.series if series.is_long_enough]
    if not judged:
        return f"{lead}; too few to see a change: it takes {LEAST_RUNS} of a case"
    changed = group.changed
    short = len(group.series) - len(judged)
    rest = (
        f"; {_number(short, 'case')} with fewer than {LEAST_RUNS} runs not looked at"
        if short
        else ""
    )
    if not changed:
        return f"{lead}, no change in {_number(len(judged), 'case')}{rest}"
    named = "; ".join(
        f"{series.case} {units.change(change.effect)} at {_revision(series.entries[change.index])}, "
        f"{series.cause(change).kind}"
        for series, change in changed[:_MOST_NAMED]
    )
    more = (
        f"; and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
    )
    cases = len({id(series) for series, _ in changed})
    return f"{lead}, {cases} of {_number(len(judged), 'case')} changed: {named}{more}{rest}"


def _change(series: Series, change: ChangePoint) -> str:
    last, first = series.entries[change.index - 1], series.entries[change.index]
    since = len(series.entries) - change.index
    soon = "" if since > LEAST_SEGMENT else "; the newest runs, and few"
    return (
        f"{units.change(change.effect)} at {_revision(first)}, last before it {_revision(last)}: "
        f"{one_line(str(series.cause(change)))}{soon}"
    )


def accepted_step(step: AcceptedStep) -> str:
    """The run after an accepted step, the step, and who accepted it when and why."""
    return one_line(
        f"{step.commit[:9]} ({step.since[:10]}), {units.change(step.effect)} accepted by {step.who} "
        f"on {step.when[:10]}: {step.why}"
    )


def accepted_lines(name: str, steps: Sequence[AcceptedStep]) -> str:
    """A line for each accepted step of a history."""
    if not steps:
        return f"{name}: no step was accepted"
    lines = [
        wrapped(
            f"{step.case} {step.clock}, {step.profile}: {accepted_step(step)}", "  "
        )
        for step in steps
    ]
    return "\n".join([f"{name}: {_number(len(steps), 'accepted step')}", *lines])


def _revision(entry: Entry) -> str:
    return (
        f"{entry.commit[:9]}{' + changes' if entry.dirty else ''} ({entry.when[:10]})"
    )


def folder_name(group: Group, number: int, groups: Sequence[Group]) -> str:
    """A folder for the group's files: its profile, and a number where several machines
    share it.
    """
    profile = "".join(letter if letter.isalnum() else "-" for letter in group.profile)
    return (
        profile
        if [one.profile for one in groups].count(group.profile) == 1
        else f"{profile}-{number}"
    )


def draw(name: str, group: Group, folder: Path) -> list[str]:
    """One plot per kernel, as PNG and SVG: each batch over its first level; returns the
    names without their ending.
    """
    names = []
    for kernel in unique(series.kernel for series in group.series):
        names.append(kernel.replace("/", "-"))
        _draw_kernel(
            f"{kernel} on {name}, {group.profile}",
            group.entries,
            [series for series in group.series if series.kernel == kernel],
            folder / names[-1],
        )
    return names


def _draw_kernel(
    title: str, entries: Sequence[Entry], kernel: Sequence[Series], path: Path
) -> None:
    figure = figures.new_figure((9, 4.2))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.08, right=0.84, top=0.9, bottom=0.26)
    place = {id(entry): index for index, entry in enumerate(entries)}
    marked: dict[int, list[str]] = {}
    for number, series in enumerate(kernel):
        color, marker = (
            _COLORS[number % len(_COLORS)],
            _MARKERS[(number // len(_COLORS)) % len(_MARKERS)],
        )
        first = (
            series.changes[0].before
            if series.changes
            else sorted(series.medians_s)[len(series.medians_s) // 2]
        )
        xs = [place[id(entry)] for entry in series.entries]
        axes.plot(
            xs,
            [median / first for median in series.medians_s],
            color=color,
            marker=marker,
            markersize=3,
            linewidth=1,
            label=f"{series.batch} {series.clock}",
        )
        ends = [*(change.index - 1 for change in series.changes[1:]), len(xs) - 1]
        for change, end in zip(series.changes, ends):
            x = xs[change.index]
            axes.hlines(
                change.after / first,
                x,
                xs[end],
                color=color,
                linestyle="--",
                linewidth=0.8,
            )
            marked.setdefault(x, []).append(
                f"{series.batch} {units.change(change.effect)}"
            )
    for x, changes in marked.items():
        axes.axvline(x - 0.5, color="black", linestyle="--", linewidth=0.9)
        _note(
            axes, x - 0.5, f"{_revision(entries[x])}: {', '.join(changes)}", 0.98, "top"
        )
    for x, differ in toolchain_changes(entries):
        axes.axvline(x - 0.5, color="0.5", linestyle=":", linewidth=1.2)
        _note(axes, x - 0.5, ", ".join(differ), 0.02, "bottom")
    step = max(1, len(entries) // 16)
    axes.set_xticks(range(0, len(entries), step))
    axes.set_xticklabels(
        [entry.commit[:9] for entry in entries[::step]],
        rotation=35,
        ha="right",
        fontsize=7,
        parse_math=False,
    )
    axes.set_ylabel("median latency over its first level")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8
    )
    figures.save(figure, path)


def _note(axes, x: float, text: str, height: float, align: str) -> None:
    axes.text(
        x,
        height,
        f" {one_line(text)}",
        transform=axes.get_xaxis_transform(),
        rotation=90,
        va=align,
        ha="right",
        fontsize=7,
        parse_math=False,
    )


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def write_otava(group: Group, folder: Path) -> list[Path]:
    """Write one CSV per kernel (medians in seconds, one column per batch) and
    otava.yaml, for Apache Otava; returns the files.

    Relied on (apache-otava 0.8.0, otava/importer.py and otava/test_config.py): a test
    of type `csv` names a file with a header row, its time column (ISO 8601), attributes
    that are copied, and metrics, each with its column and a direction (-1: less is
    better). A cell that is empty stops its import, so the cases of one file are those
    that the same runs have timed. Its paths are taken from where it is started: start
    it in the folder of these files.
    """
    tests, written = {}, []
    for name, series in _otava_files(group).items():
        path = folder / f"{name}.csv"
        columns = [f"{one.batch}_{one.clock}_s" for one in series]
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["time", "commit", *columns])
            for index, entry in enumerate(series[0].entries):
                rows.writerow(
                    [
                        entry.when,
                        entry.commit,
                        *(one.medians_s[index] for one in series),
                    ]
                )
        tests[name] = {
            "type": "csv",
            "file": path.name,
            "time_column": "time",
            "attributes": ["commit"],
            "metrics": {
                column: {"column": column, "direction": -1, "scale": 1}
                for column in columns
            },
        }
        written.append(path)
    config = folder / OTAVA_CONFIG
    config.write_text(
        json.dumps({"tests": tests}, indent=1) + "\n", encoding="utf-8"
    )  # YAML 1.2 contains JSON
    return [*written, config]


def _otava_files(group: Group) -> dict[str, list[Series]]:
    """File name → its series: those of one kernel that the same runs have timed."""
    together: dict[tuple, list[Series]] = {}
    for series in group.series:
        together.setdefault((series.kernel, tuple(map(id, series.entries))), []).append(
            series
        )
    named: dict[str, list[Series]] = {}
    for (kernel, _), series in together.items():
        name = kernel.replace("/", "-")
        number = sum(one[0].kernel == kernel for one in named.values()) + 1
        named[name if number == 1 else f"{name}-{number}"] = series
    return named
