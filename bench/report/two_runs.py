"""Two stored runs side by side, in the terminal and on a page: the answer first, then
one table per kernel.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterator

from batchline.bench import units
from batchline.bench.report.document import (
    Details,
    Document,
    Fact,
    Facts,
    Part,
    Section,
    Text,
    table,
    unique,
)
from batchline.bench.report.regression import share
from batchline.bench.report.render.terminal import COLUMNS, render_table
from batchline.bench.store.records import Record, Run
from batchline.bench.texts import one_line
from batchline.bench.verdicts.across_runs import Comparison, Pair

_MOST_NAMED = 3
_HEADERS = ("B", "latency", "change [95%], %", "class", "memory", "error/tol.")
_MARK = "other machine"
_CAUTION = (
    "This shows and does not judge: each side is one process, and two processes of the same code differ by "
    "more than the intervals say. `make regress` judges. * is worth a look: wholly beyond 1% and 1 µs. Its class "
    "is what it would be put down to, were it confirmed."
)


def terminal(comparison: Comparison) -> str:
    """At most COLUMNS characters a line where the ids allow it; where the machines
    differ, every line says so.
    """
    mark = _MARK if comparison.other_machine else ""
    blocks = [_wrapped(summarize(comparison), mark), _wrapped(_CAUTION, mark)]
    blocks += [
        _wrapped(f"{side}: {_side(run)}", mark)
        for side, run in (("A", comparison.a), ("B", comparison.b))
    ]
    tables = []
    for kernel, pairs in _by_kernel(comparison).items():
        headers = [*_HEADERS, *([mark] if mark else [])]
        rows = [[*_row(pair), *([mark] if mark else [])] for pair in pairs]
        tables.append(f"{_wrapped(kernel, mark)}\n{render_table(table(headers, rows))}")
    return "\n\n".join(["\n".join(blocks), *tables, *_alone(comparison, mark)])


def document(comparison: Comparison) -> Document:
    """The same for a page: what changed stands first, the largest change on top."""
    facts = [Fact("A", _side(comparison.a)), Fact("B", _side(comparison.b))]
    if comparison.other_machine:
        facts.append(Fact(_MARK, "; ".join(comparison.other_machine), is_bad=True))
    lead = [
        Text(f"**{summarize(comparison)}.**"),
        Facts(tuple(facts)),
        Text(_CAUTION),
    ]
    sections = [Section("changed", "What changed", tuple(_changed(comparison)))]
    every = tuple(
        Details(kernel, (table(_HEADERS, map(_row, pairs)),))
        for kernel, pairs in _by_kernel(comparison).items()
    )
    if every:
        sections.append(Section("cases", "Every case", every))
    alone = [
        [side, kernel, ", ".join(batches), why]
        for side in ("A", "B")
        for (kernel, why), batches in _alone_in(comparison, side).items()
    ]
    if alone:
        columns = ["timed only in", "kernel", "B", "why not in the other"]
        sections.append(
            Section("alone", "Timed in one run only", (table(columns, alone),))
        )
    return Document("Batchline: two runs, A and B", tuple(lead), tuple(sections))


def _changed(comparison: Comparison) -> Iterator[Part]:
    moved = sorted(comparison.moved, key=lambda pair: -abs(math.log1p(pair.change)))
    if not moved:
        yield Text("No case, of those that are timed in both.")
        return
    yield table(
        ["case", "B is", *_HEADERS[1:]],
        (
            [pair.a.id, "slower" if pair.change > 0 else "faster", *_row(pair)[1:]]
            for pair in moved
        ),
    )


def summarize(comparison: Comparison) -> str:
    """The whole comparison in one sentence."""
    count, moved = len(comparison.pairs), comparison.moved
    if not count:
        verdict = "no case is timed in both runs, so there is nothing to compare"
    elif moved:
        slower = sum(pair.change > 0 for pair in moved)
        named = ", ".join(
            f"{pair.a.id} {share(pair.change)}" for pair in moved[:_MOST_NAMED]
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
        f"; {len(comparison.alone)} timed in one run only" if comparison.alone else ""
    )
    forced = (
        f"; the machines differ ({'; '.join(comparison.other_machine)})"
        if comparison.other_machine
        else ""
    )
    return one_line(f"{verdict}{_classes(moved)}{alone}{forced}")


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
    return [
        str(pair.a.batch),
        f"{units.duration(pair.a.median_s)} → {units.duration(pair.b.median_s)}",
        _change(pair) + (" *" if pair.moved else ""),
        pair.cause.kind,
        _both(pair, "peak_bytes", units.size),
        _both(pair, "error_of_tolerance", lambda value: f"{value:.1%}"),
    ]


def _change(pair: Pair) -> str:
    """+2.1 [+1.0, +3.2], in percent."""
    if not math.isfinite(pair.high):
        return f"{share(pair.change)[:-1]} [too few samples]"
    return (
        f"{share(pair.change)[:-1]} [{share(pair.low)[:-1]}, {share(pair.high)[:-1]}]"
    )


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


def _alone(comparison: Comparison, mark: str) -> Iterator[str]:
    """Cases of one side, one line per kernel and reason."""
    for side, title in (("A", "Timed in A only"), ("B", "Timed in B only")):
        rows = _alone_in(comparison, side)
        if rows:
            yield "\n".join(
                [
                    _wrapped(title, mark),
                    *(
                        _wrapped(
                            f"{kernel}, B = {', '.join(batches)}{f' ({why})' if why else ''}",
                            mark,
                        )
                        for (kernel, why), batches in rows.items()
                    ),
                ]
            )


def _alone_in(comparison: Comparison, side: str) -> dict[tuple[str, str], list[str]]:
    """The batches timed on one side only, by kernel and by why not on the other."""
    batches: dict[tuple[str, str], list[str]] = {}
    for of, record, why in comparison.alone:
        if of == side:
            batches.setdefault((_kernel(record), why), []).append(str(record.batch))
    return batches


def _wrapped(text: str, mark: str) -> str:
    prefix = f"{mark}: " if mark else ""
    return textwrap.fill(
        one_line(text),
        COLUMNS,
        initial_indent=prefix,
        subsequent_indent=f"{prefix}  ",
        break_on_hyphens=False,
    )
