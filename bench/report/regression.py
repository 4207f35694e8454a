"""A comparison of two revisions: the answer in a sentence, a line for each thing that was
judged, and the whole for a pull request and for a terminal.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from batchline.bench import units
from batchline.bench.report.document import (
    Details,
    Document,
    Drawing,
    Part,
    Section,
    Text,
    table,
    unique,
)
from batchline.bench.report.drawn_intervals import Change, draw_intervals
from batchline.bench.report.render import escaping, github
from batchline.bench.report.render.terminal import COLUMNS
from batchline.bench.store.regressions import (
    EQUIVALENT,
    IDENTICAL,
    IMPROVED,
    INCONCLUSIVE,
    INVALID,
    LATENCY,
    MEMORY,
    MISSING,
    NEW,
    REGRESSED,
    UNCONFIRMED,
    Judged,
    OverBatches,
    Regression,
)
from batchline.bench.texts import one_line
from batchline.bench.verdicts.moves import HARDWARE, cause_in_gate
from batchline.bench.verdicts.paired import (
    INCOMPLETE,
    LEFT_OPEN,
    NOTHING,
    SLOWER,
    VOID,
    WORST_FIRST,
    conclude,
    worst_of_case,
)

_UNCHANGED = (EQUIVALENT, IDENTICAL)
_COLUMNS = (
    "case",
    "what",
    "verdict",
    "class",
    "base → head",
    "change (90% interval)",
    "floor",
    "pairs",
    "note",
)
_WORDS = {
    REGRESSED: "regressed",
    INVALID: "could not be judged",
    UNCONFIRMED: "unconfirmed",
    MISSING: "missing",
    INCONCLUSIVE: "inconclusive",
    IMPROVED: "improved",
    NEW: "new",
    EQUIVALENT: "equal",
    IDENTICAL: "the same code",
}
_LEADS = {
    SLOWER: (REGRESSED,),
    LEFT_OPEN: (UNCONFIRMED,),
    INCOMPLETE: (INVALID,),  # what the lead has counted
    NOTHING: (INVALID, INCONCLUSIVE),
}
_MOST_NAMED = 3
_MOST_ROWS = 10  # of what changed, above what is folded


def summarize(regression: Regression) -> str:
    """The whole comparison in one sentence; a case counts once, with the worst verdict
    of its quantities.
    """
    counts = Counter(worst_of_case(regression).values())
    conclusion = conclude(regression)
    rest = ", ".join(
        f"{counts[verdict]} {_WORDS[verdict]}"
        for verdict in WORST_FIRST
        if counts[verdict]
        and verdict not in _LEADS.get(conclusion, ())
        and conclusion != VOID
    )
    parts = [
        _lead(regression, conclusion, counts),
        rest,
        provenance(regression.about),
    ]
    return one_line("; ".join(filter(None, parts)))


def _lead(regression: Regression, conclusion: str, counts: Counter) -> str:
    cases = _number(counts.total(), "case")
    if conclusion == VOID:
        return f"VOID, no verdict counts: {regression.void}"
    if conclusion == NOTHING:
        compared = counts[INVALID] + counts[INCONCLUSIVE]
        if not compared:
            return "COULD NOT MEASURE: there was no case to compare"
        lead = "UNDECIDED" if counts[INCONCLUSIVE] else "COULD NOT MEASURE"
        return f"{lead}: none of {_number(compared, 'case')} could be judged{_first_reason(regression)}"
    if conclusion == SLOWER:
        return _regressed(regression, counts[REGRESSED], cases)
    if conclusion == LEFT_OPEN:
        return (
            f"UNDECIDED: {counts[UNCONFIRMED]} of {cases} may have regressed, beyond the floor and not confirmed: "
            f"{_some(_named(regression, UNCONFIRMED))}"
        )
    if conclusion == INCOMPLETE:
        return f"INCOMPLETE: {counts[INVALID]} of {cases} could not be judged, no regression confirmed in the others"
    return f"No regression confirmed in {cases}"


def _regressed(regression: Regression, count: int, cases: str) -> str:
    kernels = [
        f"{_subject(kernel)}: {kernel.words}"
        for kernel in only_over_batches(regression)
    ]
    parts = []
    if count:
        parts.append(
            f"{count} of {cases} REGRESSED: {_some(_named(regression, REGRESSED))}"
        )
    if kernels:
        parts.append(
            f"{'and ' if count else ''}{_number(len(kernels), 'kernel')} REGRESSED over the batch sizes "
            f"together: {_some(kernels)}"
        )
    return "; ".join(parts)


def _named(regression: Regression, verdict: str) -> list[str]:
    return [
        f"{_subject(case)} {change(case)}"
        for case in worst_first(regression)
        if case.verdict == verdict
    ]


def provenance(about: Mapping) -> str:
    """What was compared, where, and by how much measuring."""
    sides = (
        f"base {_revision(about['base'])}, head {_revision(about['head'])}, {about['machine']['device_name']}, "
        f"{_number(about['pairs'], 'pair')} in {about['seconds']:.0f} s"
    )
    return f"{sides}; ended early: {about['ended']}" if about["ended"] else sides


def worst_first(regression: Regression) -> list[Judged]:
    """Every case, the worst verdict first, and in a verdict the largest change for the
    worse that it may be.

    What did not change keeps its order.
    """

    def badness(case: Judged) -> tuple[int, float]:
        most = {
            REGRESSED: case.effect,
            UNCONFIRMED: case.effect,
            INCONCLUSIVE: case.high,
        }.get(case.verdict) or 0.0
        return WORST_FIRST.index(case.verdict), -most

    return sorted(regression.cases, key=badness)


def kernels_worst_first(regression: Regression) -> list[OverBatches]:
    """The verdicts over the batch sizes, the worst first."""
    return sorted(
        regression.kernels, key=lambda kernel: WORST_FIRST.index(kernel.verdict)
    )


def only_over_batches(regression: Regression) -> list[OverBatches]:
    """The kernels that regressed over their batch sizes together with no case among
    them that did so alone.
    """
    alone = {
        (case.id.rpartition("/")[0], case.quantity) for case in regression.of(REGRESSED)
    }
    return [
        kernel
        for kernel in regression.kernels
        if kernel.verdict == REGRESSED and (kernel.id, kernel.quantity) not in alone
    ]


def problems(regression: Regression) -> list[tuple[str, str]]:
    """(title, message) of all that keeps the comparison from being clean, the worst
    first; for bench.report.render.github.
    """
    if regression.void is not None:
        return [("The comparison is void", regression.void)]
    listed = [
        (f"{kernel.verdict} {_subject(kernel)}", one_line(kernel.words))
        for kernel in only_over_batches(regression)
    ]
    listed += [
        (f"{case.verdict} {_subject(case)}", line(case))
        for case in worst_first(regression)
        if case.verdict in (REGRESSED, INVALID, UNCONFIRMED)
    ]
    return (
        [("Nothing could be judged", summarize(regression)), *listed]
        if conclude(regression) == NOTHING
        else listed
    )


def line(case: Judged) -> str:
    """All that is known of one case, in a line: sides, change, floor, pairs, and what
    else there is to say.
    """
    parts = [
        values(case),
        change(case),
        f"floor {floor(case)}" if case.floor is not None else "",
        _number(case.pairs, "pair") if case.pairs else "",
        note(case),
    ]
    return "; ".join(filter(None, parts)) or _WORDS[case.verdict]


def values(case: Judged) -> str:
    """Base → head in the quantity's unit, "" where it was not measured."""
    if case.base is None and case.head is None:
        return ""
    return f"{_value(case.quantity, case.base)} → {_value(case.quantity, case.head)}"


def change(case: Judged) -> str:
    """+12.3% (+10.9% to +13.6%): the change and its 90% interval, "" where it was not
    judged.
    """
    if case.effect is None:
        return ""
    if case.low is None or case.high is None:
        return units.change(case.effect)
    if case.low == case.high:
        return f"{units.change(case.effect)} (in every pair)"
    return f"{units.change(case.effect)} ({units.change(case.low)} to {units.change(case.high)})"


def floor(case: Judged) -> str:
    """1.5% (A/A): the change that counts as noise, and where it comes from."""
    if case.floor is None:
        return ""
    source = one_line(case.floor_from)
    return (
        f"{units.change(case.floor)[1:]} ({source})"
        if source
        else units.change(case.floor)[1:]
    )


def note(case: Judged) -> str:
    """Why there is no verdict, or what it would take."""
    parts = [one_line(case.reason)]
    if case.verdict in (INCONCLUSIVE, UNCONFIRMED):
        if case.least_detectable is not None:
            parts.append(f"could have seen {units.change(case.least_detectable)}")
        if case.pairs:
            parts.append(
                f"{case.pairs_needed} pairs in all would tell"
                if case.pairs_needed is not None
                else "more pairs would not tell"
            )
    return "; ".join(filter(None, parts))


def clocks(states: Sequence[Mapping]) -> str:
    """The clocks while the turns were taken, and what was dropped because the machine
    was throttled; "" unknown.
    """
    readings = [
        reading
        for state in states
        for side in (state["base"], state["head"])
        for reading in (side, side.get("before", {}), side.get("after", {}))
    ]
    parts = []
    for clock, name in (("CPU clock", "mhz"), ("SM clock", "sm_mhz")):
        if mhz := [reading[name] for reading in readings if reading.get(name)]:
            parts.append(
                f"{clock} {statistics.median(mhz):.0f} MHz ({min(mhz):.0f} to {max(mhz):.0f}) while it was "
                "measured"
            )
    dropped = Counter(
        reason for state in states for reason in Counter(state["throttled"]).elements()
    )
    parts += [
        f"{_number(count, 'turn')} dropped, throttled: {one_line(reason)}"
        for reason, count in dropped.items()
    ]
    return f"{'; '.join(parts)}." if parts else ""


def _value(quantity: str, value: float | None) -> str:
    if value is None:
        return "nothing"
    if quantity == LATENCY:
        return units.duration(value)
    return units.size(value) if quantity == MEMORY else f"{value:.1%} of the tolerance"


def _revision(side: Mapping) -> str:
    name, commit = side["name"], side["commit"][:9]
    text = commit if not name or side["commit"].startswith(name) else f"{name}@{commit}"
    return f"{text} with uncommitted changes" if side["dirty"] else text


def _subject(what: Judged | OverBatches) -> str:
    return one_line(
        what.id if what.quantity == LATENCY else f"{what.id} {what.quantity}"
    )


def _first_reason(regression: Regression) -> str:
    reasons = [
        f" ({case.id}: {case.reason})" for case in regression.of(INVALID) if case.reason
    ]
    open_cases = [
        f" ({_subject(case)} {change(case)}, floor {floor(case)})"
        for case in worst_first(regression)
        if case.verdict == INCONCLUSIVE
    ]
    return next(iter([*reasons, *open_cases]), "")


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def markdown(regression: Regression) -> str:
    """The answer, at most ten rows of what changed and a picture of them, and the rest
    folded, for GitHub: a run's README.md, a step's summary and a pull request's comment.
    """
    document = Document(summarize(regression), tuple(_parts(regression)), ())
    return github.render(document)


def _parts(regression: Regression) -> Iterator[Part]:
    changed, unchanged = _parted(regression)
    rows = [_kernel_row(regression, one) for one in only_over_batches(regression)]
    in_view = changed[: max(_MOST_ROWS - len(rows), 0)]
    rows += [_row(regression, case) for case in changed]
    if rows:
        by_case = table(_COLUMNS, rows[:_MOST_ROWS])
        parts = (*_drawing(in_view), by_case)
        yield Section("", _case_heading(regression), parts)
    if more := rows[_MOST_ROWS:]:
        yield Details(f"And {len(more)} more", (table(_COLUMNS, more),))
    if regression.kernels:
        kernels = (
            (kernel.id, kernel.quantity, kernel.verdict, kernel.words)
            for kernel in kernels_worst_first(regression)
        )
        over = table(("kernel", "what", "verdict", "where"), kernels)
        yield Details("Over the batch sizes", (over,))
    if unchanged:
        by_case = table(_COLUMNS, (_row(regression, case) for case in unchanged))
        yield Details(_unchanged_heading(unchanged), (by_case,))
    if seen := clocks(regression.states):
        yield Details("The clocks", (Text(seen),))


def _drawing(cases: Iterable[Judged]) -> Iterator[Drawing]:
    """The changes that have an interval, on one scale; nothing where none has one."""
    changes = [
        Change(_subject(case), case.effect, case.low, case.high)
        for case in cases
        if None not in (case.effect, case.low, case.high)
    ]
    if changes:
        yield Drawing(draw_intervals(changes))


def _row(regression: Regression, case: Judged) -> Sequence[str]:
    return (
        case.id,
        case.quantity,
        case.verdict,
        _class(regression, case),
        values(case),
        change(case),
        floor(case),
        str(case.pairs or ""),
        note(case),
    )


def _kernel_row(regression: Regression, kernel: OverBatches) -> Sequence[str]:
    """A kernel that regressed over its batch sizes together, as a row among the cases."""
    return (
        kernel.id,
        kernel.quantity,
        kernel.verdict,
        _class(regression, kernel),
        "",
        kernel.words,
        "",
        "",
        "over the batch sizes together",
    )


def _class(regression: Regression, judged: Judged | OverBatches) -> str:
    """What the verdict is put down to, "" of what was not compared."""
    cause = cause_in_gate(regression, judged)
    return cause.kind if cause else ""


def terminal(regression: Regression) -> str:
    """The same in lines of at most COLUMNS characters and no colours; what did not
    change is its batch sizes only.
    """
    changed, unchanged = _parted(regression)
    blocks = [_wrapped(summarize(regression))]
    if regression.kernels:
        lines = (
            _wrapped(f"{one.verdict} {one.id} {one.quantity}: {one.words}", "  ")
            for one in kernels_worst_first(regression)
        )
        blocks.append("\n".join(["Over the batch sizes", *lines]))
    if changed:
        lines = (
            text
            for case in changed
            for text in (
                _wrapped(f"{case.verdict} {case.id} {case.quantity}", "  "),
                _wrapped(_line_with_class(regression, case), "    "),
            )
        )
        blocks.append("\n".join([_case_heading(regression), *lines]))
    if unchanged:
        lines = (
            _wrapped(f"{verdict} {kernel} {quantity}: {', '.join(batches)}", "  ")
            for (verdict, kernel, quantity), batches in _by_kernel(unchanged).items()
        )
        blocks.append("\n".join([_unchanged_heading(unchanged), *lines]))
    return "\n\n".join(blocks)


def _line_with_class(regression: Regression, case: Judged) -> str:
    """`line`, and the class where it says something else than the verdict."""
    kind = _class(regression, case)
    said = f"put down to {kind}" if kind == HARDWARE else ""
    return "; ".join(filter(None, (line(case), said)))


def _parted(regression: Regression) -> tuple[list[Judged], list[Judged]]:
    cases = worst_first(regression)
    return (
        [case for case in cases if case.verdict not in _UNCHANGED],
        [case for case in cases if case.verdict in _UNCHANGED],
    )


def _case_heading(regression: Regression) -> str:
    return (
        "Case by case"
        if regression.void is None
        else "Case by case; the session is void, and none of it counts"
    )


def _unchanged_heading(unchanged: Sequence[Judged]) -> str:
    return f"Unchanged: {len(unchanged)} verdicts on {len(unique(case.id for case in unchanged))} cases"


def _by_kernel(cases: Iterable[Judged]) -> dict[tuple[str, str, str], list[str]]:
    by_kernel: dict[tuple[str, str, str], list[str]] = {}
    for case in cases:
        kernel, _, batch = case.id.rpartition("/")
        by_kernel.setdefault((case.verdict, kernel, case.quantity), []).append(batch)
    return by_kernel


def _wrapped(text: str, indent: str = "") -> str:
    return escaping.wrapped(text, COLUMNS, indent)
