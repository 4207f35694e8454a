"""Two stored runs side by side, in the terminal and on a page: the answer first, then
one table per kernel.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

from batchline.bench import units
from batchline.bench.report.document import (
    Bullets,
    Details,
    Document,
    Fact,
    Facts,
    Map,
    Only,
    Part,
    Place,
    Section,
    Table,
    Text,
    select,
    table,
    unique,
)
from batchline.bench.report.render.terminal import render
from batchline.bench.store.records import Record, Run
from batchline.bench.texts import one_line
from batchline.bench.verdicts.across_runs import Comparison, Pair
from batchline.bench.verdicts.judge import Findings, judge

_MOST_NAMED = 3
_HEADERS = ("B", "latency", "change [95%], %", "class", "memory", "error/tol.")
_RATIO_HEADERS = ("B", "latency", "B over A [95%]", "memory", "error/tol.")
_CAUTION = (
    "This shows and does not judge: each side is one process, and two processes of the same code differ by "
    "more than the intervals say. `make regress` judges. * is worth a look: wholly beyond 1% and 1 µs. Its class "
    "is what it would be put down to, were it confirmed."
)
_OTHER_MACHINE = (
    "The ratios are of two machines or toolchains: they say nothing of the code. Under 1x B is the faster one. The "
    "least and the largest are of single cases."
)


def terminal(comparison: Comparison) -> str:
    """At most COLUMNS characters a line where the ids allow it."""
    return render(_placed(comparison, Place.TERMINAL))


def document(comparison: Comparison) -> Document:
    """The same for a page: what changed stands first, the largest change on top."""
    return _placed(comparison, Place.PAGE)


def _placed(comparison: Comparison, place: Place) -> Document:
    sections = [
        *(_of_machines(comparison) if comparison.other_machine else ()),
        Section(
            "changed",
            "What changed",
            (Only(Place.PAGE, tuple(_changed(comparison))),),
        ),
        Section("cases", "Every case", tuple(_every(comparison))),
        Section(
            "alone",
            "Timed in one run only, or by another clock",
            tuple(_alone(comparison)),
        ),
    ]
    return Document(
        "Batchline: two runs, A and B",
        select(tuple(_lead(comparison)), place),
        select(sections, place),
    )


def _lead(comparison: Comparison) -> Iterator[Part]:
    answer = f"{summarize(comparison)}."
    yield Only(Place.PAGE, (Text(f"**{answer}**"),))
    yield Only(Place.TERMINAL, (Text(answer),))
    yield sides({"A": comparison.a, "B": comparison.b})
    if comparison.other_machine:
        differ = "; ".join(comparison.other_machine)
        yield Facts((Fact("other machine", differ, is_bad=True),))
    yield Text(_OTHER_MACHINE if comparison.other_machine else _CAUTION)


def _of_machines(comparison: Comparison) -> Iterator[Section]:
    """How two machines compare as a whole: in ratios, and by who wins on each."""
    yield Section("ratios", "B's time over A's, by op", (_ratios(comparison),))
    for side, run in (("A", comparison.a), ("B", comparison.b)):
        yield map_section(side, judge(run))


def map_section(letter: str, findings: Findings) -> Section:
    """Who wins which problem on the device of one run."""
    of = findings.winners
    device = findings.run.machine["device_name"]
    return Section(
        f"map-{letter}",
        f"Which wins where on {letter}, {device}",
        (Map(of, is_linked=False) if of.rows else Text("Nothing was timed."),),
    )


def _ratios(comparison: Comparison) -> Table | Text:
    """One row per op that both have timed."""
    if not comparison.ratios:
        return Text("No op has a case that both have timed by one clock.")
    return table(
        ["op", "cases", "geometric mean", "least", "largest"],
        (
            [
                one.op,
                str(one.count),
                *map(units.ratio, (one.mean, one.least, one.largest)),
            ]
            for one in comparison.ratios
        ),
    )


def _every(comparison: Comparison) -> Iterator[Details]:
    headers, row = (
        (_RATIO_HEADERS, _ratio_row) if comparison.other_machine else (_HEADERS, _row)
    )
    for kernel, pairs in _by_kernel(comparison).items():
        yield Details(kernel, (table(headers, map(row, pairs)),))


def _changed(comparison: Comparison) -> Iterator[Part]:
    if comparison.other_machine:  # all that differs is the machine's
        return
    if not comparison.moved:
        yield Text("No case, of those that are timed in both.")
        return
    yield table(
        ["case", "B is", *_HEADERS[1:]],
        (
            [pair.a.id, "slower" if pair.change > 0 else "faster", *_row(pair)[1:]]
            for pair in comparison.moved
        ),
    )


def _alone(comparison: Comparison) -> Iterator[Table]:
    rows = [
        [side, kernel, ", ".join(batches), why]
        for side in ("A", "B")
        for (kernel, why), batches in _alone_in(comparison, side).items()
    ]
    if rows:
        yield table(["only in", "kernel", "B", "why not in the other"], rows)


def summarize(comparison: Comparison) -> str:
    """The whole comparison in one sentence."""
    count, moved = len(comparison.pairs), comparison.moved
    if not count:
        verdict = (
            "No case is timed in both runs by one clock, so there is nothing to compare"
        )
    elif comparison.other_machine:
        verdict = f"B takes {units.ratio(comparison.mean_ratio)} of A's time, in the geometric mean of {count} cases"
    elif moved:
        slower = sum(pair.change > 0 for pair in moved)
        named = ", ".join(
            f"{pair.a.id} {units.change(pair.change)}" for pair in moved[:_MOST_NAMED]
        )
        more = (
            f" and {len(moved) - _MOST_NAMED} more" if len(moved) > _MOST_NAMED else ""
        )
        verdict = (
            f"{len(moved)} of {count} cases differ by more than their intervals and 1% or 1 µs (B slower "
            f"in {slower}, faster in {len(moved) - slower}): {named}{more}"
        )
    else:
        verdict = (
            f"None of {count} cases differs by more than its interval and 1% or 1 µs"
        )
    alone = (
        f"; {len(comparison.alone)} timed in one run only, or by another clock"
        if comparison.alone
        else ""
    )
    classes = "" if comparison.other_machine else _classes(moved)
    return one_line(f"{verdict}{classes}{alone}")


def _classes(moved: list[Pair]) -> str:
    """How many of what moved are of each class, and of one class why, if that is said
    of all.
    """
    counts = Counter(pair.cause.kind for pair in moved)
    return "".join(
        f"; {count} put down to {kind}{_why(kind, moved)}"
        for kind, count in counts.most_common()
    )


def _why(kind: str, moved: list[Pair]) -> str:
    reasons = unique(pair.cause.why for pair in moved if pair.cause.kind == kind)
    return f" ({reasons[0]})" if len(reasons) == 1 and reasons[0] else ""


def sides(runs: Mapping[str, Run]) -> Bullets:
    """Of what each run is: revision, profile, device and when."""
    return Bullets(tuple(f"{letter}: {_side(run)}" for letter, run in runs.items()))


def _side(run: Run) -> str:
    revision = run.machine.get("revision", {})
    changed = " with uncommitted changes" if revision.get("dirty") else ""
    stopped = "; stopped before its end" if run.partial else ""
    return (
        f"{str(revision.get('commit', 'unknown'))[:9]}{changed}, {run.plan.profile} on "
        f"{run.machine.get('device_name')}, {str(run.started)[:16]}{stopped}"
    )


def _by_kernel(comparison: Comparison) -> dict[str, list[Pair]]:
    by_kernel: dict[str, list[Pair]] = {}
    for pair in comparison.pairs:
        by_kernel.setdefault(_kernel(pair.a), []).append(pair)
    return by_kernel


def _kernel(record: Record) -> str:
    return record.id.rpartition("/")[0]


def _row(pair: Pair) -> list[str]:
    mark = " *" if pair.moved else ""
    return [*_times(pair), f"{_change(pair)}{mark}", pair.cause.kind, *_others(pair)]


def _ratio_row(pair: Pair) -> list[str]:
    return [*_times(pair), _ratio(pair), *_others(pair)]


def _times(pair: Pair) -> list[str]:
    return [
        str(pair.a.batch),
        f"{units.duration(pair.a.median_s)} → {units.duration(pair.b.median_s)}",
    ]


def _others(pair: Pair) -> list[str]:
    return [
        _both(pair, "peak_bytes", units.size),
        _both(pair, "error_of_tolerance", lambda value: f"{value:.1%}"),
    ]


def _change(pair: Pair) -> str:
    """+2.1 [+1.0, +3.2], in percent."""
    if not math.isfinite(pair.high):
        return f"{units.change(pair.change)[:-1]} [too few samples]"
    return f"{units.change(pair.change)[:-1]} [{units.change(pair.low)[:-1]}, {units.change(pair.high)[:-1]}]"


def _ratio(pair: Pair) -> str:
    """0.52x [0.51x, 0.53x]."""
    mean = units.ratio(pair.ratio)
    if not math.isfinite(pair.high):
        return f"{mean} [too few samples]"
    return f"{mean} [{units.ratio(1 + pair.low)}, {units.ratio(1 + pair.high)}]"


def _both(pair: Pair, fact: str, unit) -> str:
    """A → B, one of them where both read the same."""
    values = [
        (
            unit(value)
            if isinstance(value := record.facts.get(fact), (int, float))
            else "n/a"
        )
        for record in (pair.a, pair.b)
    ]
    return values[0] if values[0] == values[1] else " → ".join(values)


def _alone_in(comparison: Comparison, side: str) -> dict[tuple[str, str], list[str]]:
    """The batches timed on one side only, by kernel and by why not on the other."""
    batches: dict[tuple[str, str], list[str]] = {}
    for of, record, why in comparison.alone:
        if of == side:
            batches.setdefault((_kernel(record), why), []).append(str(record.batch))
    return batches
