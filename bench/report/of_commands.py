"""What three commands say of what they looked at: `dispatch` of the calls of an op,
`codegen` of compiled code, and the self-test of what the gate sees on a machine.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from batchline.bench import units
from batchline.bench.report.document import Table, table, unique
from batchline.bench.report.render import escaping, github
from batchline.bench.report.render.terminal import render_table, wrapped
from batchline.bench.store.selftests import NOTHING, Finding, Selftest
from batchline.bench.texts import one_line
from batchline.bench.verdicts.choosing import Called
from batchline.bench.verdicts.compiled_changes import (
    BETTER,
    CHANGED,
    GONE,
    NEW,
    OPEN,
    WORSE,
    Move,
)

_MOVE_COLUMNS = ("where", "what moved")


def calls_on_terminal(called: Sequence[Called], slower: Sequence[Called]) -> str:
    """The verdict, with a line for each of `slower`, then the table."""
    if not called:
        return "No call was timed."
    verdict = (
        f"{len(slower)} of {len(called)} calls are slower than the baseline by more than the look-up:"
        if slower
        else f"None of {len(called)} calls is slower than the baseline by more than the look-up."
    )
    return "\n".join(
        [
            verdict,
            *(wrapped(_slower_call(one)) for one in slower),
            "",
            render_table(calls_table(called)),
        ]
    )


def calls_table(called: Sequence[Called]) -> Table:
    """One row per op: its problems, on how many something else than the baseline ran and
    what that gained, the look-up.

    The look-up beside the shortest baseline is in the caches; beside larger ones its
    few objects may not be.
    """
    ops = dict.fromkeys(one.op for one in called)
    return table(
        [
            "op",
            "problems",
            "not baseline",
            "speed-up",
            "largest",
            "look-up at least",
            "in the middle",
            "at most",
        ],
        [_call_row(op, [one for one in called if one.op == op]) for op in ops],
    )


def _call_row(op: str, called: Sequence[Called]) -> list[str]:
    gains = [one.speed_up for one in called if one.variant != one.baseline]
    look_ups = [max(0.0, one.overhead_s) for one in called]
    shortest = min(called, key=lambda one: one.baseline_s)
    return [
        op,
        str(len(called)),
        str(len(gains)),
        units.ratio(statistics.geometric_mean(gains)) if gains else "",
        units.ratio(max(gains)) if gains else "",
        units.duration(max(0.0, shortest.overhead_s)),
        units.duration(statistics.median(look_ups)),
        f"{max(look_up / one.baseline_s for look_up, one in zip(look_ups, called)):.0%} of a call",
    ]


def _slower_call(one: Called) -> str:
    return (
        f"{one.op}/{one.scenario}/{one.dtype}/B{one.batch}: {units.duration(one.call_s)} by {one.variant} "
        f"({one.source}), the baseline {units.duration(one.baseline_s)}, and "
        f"{units.duration(max(one.overhead_s, 0))} for the look-up"
    )


def summarize_moves(moves: Sequence[Move]) -> str:
    """How many moved, of which variants, and what is certain of them, in a sentence."""
    if not moves:
        return "Nothing moved."
    variants = unique(move.variant for move in moves)
    kinds = ", ".join(
        f"{count} {kind}"
        for kind in (CHANGED, NEW, GONE)
        if (count := sum(move.kind == kind for move in moves))
    )
    verdicts = ", ".join(
        f"{count} {word}"
        for verdict, word in (
            (WORSE, "worse"),
            (BETTER, "better"),
            (OPEN, "for a GPU to judge"),
        )
        if (count := sum(move.verdict == verdict for move in moves))
    )
    count = "1 kernel is" if len(moves) == 1 else f"{len(moves)} kernels are"
    return f"{count} not as pinned ({kinds}): {verdicts}. Of {', '.join(variants)}. A win must be pinned, too."


def moves_on_terminal(moves: Sequence[Move]) -> str:
    """The summary, and a table for each kernel and change of its configuration, in
    lines that fit.
    """
    parts = [wrapped(summarize_moves(moves))]
    for title, rows in _kernels(moves):
        drawn = render_table(table(_MOVE_COLUMNS, rows))
        parts.append(f"{wrapped(title)}\n{drawn}")
    return "\n\n".join(parts)


def moves_on_github(moves: Sequence[Move]) -> str:
    """The same for GitHub."""
    parts = [escaping.markdown(summarize_moves(moves))]
    for title, rows in _kernels(moves):
        parts += [github.bold(title), github.render_table(table(_MOVE_COLUMNS, rows))]
    return "\n\n".join(parts)


def move_annotations(moves: Sequence[Move]) -> list[tuple[str, str]]:
    """A (title, message) for each table, for bench.report.render.github."""
    return [
        (f"codegen: {title}", "\n".join(f"{where}: {what}" for where, what in rows))
        for title, rows in _kernels(moves)
    ]


def _kernels(moves: Sequence[Move]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(title, rows of where and what) for each kernel and change of its configuration;
    what moved alike is a row.
    """
    sections: dict[tuple[str, str], dict[tuple, list[Move]]] = {}
    for move in moves:
        rows = sections.setdefault(
            (f"{move.variant} {move.kernel}".rstrip(), move.reconfigured), {}
        )
        rows.setdefault((move.text, move.verdict), []).append(move)
    for (name, reconfigured), rows in sections.items():
        count = sum(map(len, rows.values()))
        yield (
            f"{name}{f', {reconfigured}' if reconfigured else ''} ({count} kernel{'s' if count > 1 else ''})",
            [(_where(group), _what(group[0])) for group in rows.values()],
        )


def _where(group: Sequence[Move]) -> str:
    """ "float16 sm_90 tiny_16/B4, odd/B1; float32 sm_90 odd/B1"; a scenario with
    several configurations stands once.
    """
    by_target: dict[str, list[str]] = {}
    for move in group:
        by_target.setdefault(f"{move.dtype} sm_{move.architecture}", []).append(
            f"{move.scenario}/B{move.batch}"
        )
    return one_line(
        "; ".join(
            f"{target} {', '.join(_counted(places))}"
            for target, places in by_target.items()
        )
    )


def _counted(places: Sequence[str]) -> list[str]:
    return [
        f"{place} ({places.count(place)} times)" if places.count(place) > 1 else place
        for place in unique(places)
    ]


def _what(move: Move) -> str:
    certain = "" if move.verdict == OPEN else f"{move.verdict}: "
    return one_line(f"{certain}{move.text or 'nothing else'}")


def summarize_selftest(selftest: Selftest) -> str:
    """The self-test in a few sentences."""
    quiet = [one for one in selftest.findings if one.share == NOTHING]
    alarms = [one for one in selftest.findings if one.alarm]
    planted = sorted({one.share for one in selftest.findings} - {NOTHING})
    seen = "; ".join(f"+{share:.0%} in {_of(selftest, share)}" for share in planted)
    sessions = selftest.sessions
    sentences = [
        f"{sum(one.alarm for one in quiet)} false alarms in {sessions} A/A sessions of {len(selftest.cases)} cases"
    ]
    if len(alarms) > sum(one.alarm for one in quiet):
        sentences.append(
            f"{len(alarms) - sum(one.alarm for one in quiet)} planted slow-downs called an improvement"
        )
    if seen:
        sentences.append(f"planted slow-downs called REGRESSED: {seen}")
    ended = (
        f" Ended early: {selftest.about['ended']}." if selftest.about["ended"] else ""
    )
    return (
        f"{'; '.join(sentences)}. Profile {selftest.about['profile']} on {selftest.about['machine']['device_name']}, "
        f"{selftest.about['seconds'] / 60:.0f} min.{ended}"
    )


def selftest_table(selftest: Selftest) -> Table:
    """One row per case, the shortest first; of what is planted, how many sessions called it
    REGRESSED.
    """
    planted = sorted({one.share for one in selftest.findings} - {NOTHING})
    headers = (
        "case",
        "median",
        "A/A alarms",
        "A/A change, 99%",
        *(f"+{share:.0%}" for share in planted),
        "pairs, A/A",
    )
    return table(
        headers,
        (
            [
                case,
                _median(selftest.of(case, NOTHING)),
                _count(selftest.of(case, NOTHING), "alarm"),
                _share(noise_of_cases(selftest.of(case, NOTHING))),
                *(_count(selftest.of(case, share), "seen") for share in planted),
                _pairs(selftest.of(case, NOTHING)),
            ]
            for case in selftest.cases
        ),
    )


def noise_of_cases(findings: list[Finding]) -> float | None:
    """The 99th percentile of the A/A changes, as a share: with fewer than a hundred,
    the largest.
    """
    changes = sorted(abs(one.effect) for one in findings if one.effect is not None)
    return changes[math.ceil(0.99 * len(changes)) - 1] if changes else None


def _of(selftest: Selftest, share: float) -> str:
    these = [one for one in selftest.findings if one.share == share]
    return f"{sum(one.seen for one in these)} of {len(these)}"


def _count(findings: list[Finding], what: str) -> str:
    return (
        f"{sum(getattr(one, what) for one in findings)} of {len(findings)}"
        if findings
        else ""
    )


def _median(findings: list[Finding]) -> str:
    times = [one.base_s for one in findings if one.base_s]
    return units.duration(statistics.median(times)) if times else ""


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _pairs(findings: list[Finding]) -> str:
    counts = [one.pairs for one in findings]
    return f"{min(counts)} to {max(counts)}" if counts else ""
