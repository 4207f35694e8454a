"""What commands say of what they looked at: `dispatch` of the calls of an op, `codegen` of
compiled code, `selftest` and `aa` of what differs on identical code, and `explain` of
one case on one screen.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from batchline.bench import units
from batchline.bench.report.document import Table, table, unique
from batchline.bench.report.render import escaping, github
from batchline.bench.report.render.terminal import render_table, wrapped
from batchline.bench.report.sections.ladder import format_compiled, format_counts
from batchline.bench.report.sections.laws import describe_law
from batchline.bench.report.sections.machine import clocks_of_problem, sustained
from batchline.bench.stats import intervals, roofline
from batchline.bench.stats.prediction import CountedCall
from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import EmulatedLaunch, Record, Run
from batchline.bench.store.selftests import NOTHING, Finding, Pair, Selftest
from batchline.bench.texts import one_line
from batchline.bench.verdicts import crossovers, ranking
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
from batchline.bench.verdicts.laws import latency_laws, launch_waves
from batchline.bench.verdicts.predicted import format_predictions, predictions

_MOVE_COLUMNS = ("where", "what moved")
_MOST_COMPILED = 6
_MOST_LINES = 4  # of a kernel's source
_WITHIN = 0.02
_FROM_S = 60e-6  # below this a caller's own jitter is percents
_WORST_SHOWN = 8


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


def screen(
    run: Run, case: str, where: str, emulated: Sequence[tuple[str, str]] = ()
) -> str:
    """The case as `run`, which has it, says; `where` says which run that is, `emulated`
    what is known of its kernel in emulation (see `emulated_rows`).
    """
    record = next(record for record in run.records if record.id == case)
    return "\n".join(_lines(run, record, where, emulated))


def kernel_screen(variant: str, idea: str, emulated: Sequence[tuple[str, str]]) -> str:
    """A kernel, of which no case was asked for, as it did in emulation."""
    drawn = render_table(table(["", ""], emulated))
    return f"{wrapped(f'{variant}: {idea}')}\n{drawn}"


def emulated_rows(
    dtype: str,
    right: Sequence[str],
    wrong: Mapping[str, str],
    launches: Sequence[Mapping],
    calls: Sequence[CountedCall] = (),
) -> Iterator[tuple[str, str]]:
    """What a kernel did in emulation in a dtype: the verdicts of its probes, and of each
    launch of its example the counts and the busiest lines of its source; then what is
    predicted from the counts of larger calls.

    `launches` are rows as bench.measure.emulated.counted makes them, `calls` as
    bench.measure.emulated.filling does.
    """
    verdict = f"right on {len(right)} probes and architectures"
    first = [f"{name}: {why}" for name, why in wrong.items()][:1]
    if wrong:
        verdict += f", WRONG on {len(wrong)}: {'; '.join(first)}"
    yield "in emulation", f"{dtype}: {verdict}"
    for row in launches:
        place = f"sm_{row['architecture']} {row['scenario']}/B{row['batch']}"
        if why := row.get("declined") or row.get("error"):
            yield "", f"{place}: {why}"
            continue
        kept = {one.name for one in fields(EmulatedLaunch)} & set(row)
        counts = format_counts(EmulatedLaunch(**{name: row[name] for name in kept}))
        yield "", f"{place} {row['kernel']}: {counts}"
        yield "", f"most at {_busiest(row['lines'], row['instructions'])}"
    if made := predictions(calls, dtype):
        problems = ", ".join(unique(call.problem for call in calls))
        yield "predicted from counts", f"{dtype} {problems}: {format_predictions(made)}"


def _busiest(lines: Mapping[str, Sequence[str]], instructions: int) -> str:
    """ "tiled.py:57 1,024 (61%), …", the lines with most instructions: see
    bench.measure.emulated.counted.lines_of.
    """
    counts = {
        f"{file}:{number}": int(count)
        for file, of_file in lines.items()
        for number, _, count, *_ in map(str.split, of_file)
    }
    most = sorted(counts.items(), key=lambda item: -item[1])[:_MOST_LINES]
    return ", ".join(
        f"{line} {count:,} ({count / instructions:.0%})" for line, count in most
    )


def _lines(
    run: Run, record: Record, where: str, emulated: Sequence[tuple[str, str]]
) -> Iterator[str]:
    variant = run.variants[f"{record.op}/{record.variant}"]
    yield wrapped(f"{record.id}: {variant['idea']}")
    yield wrapped(
        f"{run.ops[record.op].scenarios[record.scenario].title}; {run.machine['device_name']}, "
        f"{run.plan.profile} run of {run.started[:10]}, {where}"
    )
    yield ""
    rows = [*_measured(run, record), *_rungs(run, record, variant["builds_on"])]
    rows += [("compiled", facts) for facts in _compiled(run, record)]
    rows += emulated
    yield render_table(table(["", ""], rows))


def _measured(run: Run, record: Record) -> Iterator[tuple[str, str]]:
    if record.status != MEASURED:
        yield "no time", (
            f"{record.status}: {record.reason}" if record.reason else record.status
        )
        return
    facts, first, ceilings = record.facts, record.facts["clock"], run.ceilings
    low, high = record.quartiles_s
    yield "time", (
        f"{units.duration(record.median_s)} ±{intervals.median_precision(record.samples_s):.1%} by {first}; half of "
        f"{len(record.samples_s)} samples from {units.duration(low)} to {units.duration(high)}"
    )
    for name, clock in facts["clocks"].items():
        if name != first:
            yield "", (
                f"by {name}: {clock['why_not']}"
                if "why_not" in clock
                else f"{units.duration(clock['median_s'])} ±{clock['precision']:.1%} by {name}"
            )
        if "alone" in clock:
            yield "", f"{name}: {clock['alone']}"
    if time := sustained(facts):
        yield "sustained", f"{time}, over {facts['sustained']['seconds']:g} s of calls in a row; not ranked"
    if clocks := clocks_of_problem(facts):
        yield "GPU clock", f"{clocks}, at the looks during this problem"
    if ceilings:
        yield from _floors(record, first, ceilings)
    else:
        yield "floor", f"unknown, for the run has no ceilings: {run.why_no_ceilings}"
    yield from _over_the_batch(run, record)
    if why := ranking.why_unranked(record):
        yield "not ranked", why
    yield "memory", _memory(facts)
    yield "error", (
        f"{facts['error_of_tolerance']:.2g} of the tolerance against fp64"
        f"{', a wider one of its own' if facts['own_tolerance'] else ''}"
    )
    if "config" in facts:
        chosen = " ".join(f"{name}={value}" for name, value in facts["config"].items())
        yield "configuration", f"{chosen} ({facts['config_source']})"


def _floors(record: Record, clock: str, ceilings: Mapping) -> Iterator[tuple[str, str]]:
    floors = roofline.floors(record.facts, record.dtype, clock, ceilings)
    bound = roofline.bound(record.facts, record.dtype, clock, record.median_s, ceilings)
    work = {
        roofline.LAUNCH: "an empty launch",
        roofline.COMPUTE: f"{record.facts['flops']:.3g} FLOP",
        roofline.MEMORY: f"{units.size(record.facts['least_bytes'])} by memory",
        roofline.CACHE: f"{units.size(record.facts['least_bytes'])} in the cache",
    }
    yield "regime", (
        f"{bound.regime}: {bound.share:.0%} of what that ceiling allows, "
        f"{units.ratio(record.median_s / bound.least_s)} its floor"
        if bound.least_s
        else bound.regime
    )
    parts = [
        f"{work[regime]} {units.duration(least_s)}"
        for regime, least_s in floors.items()
        if least_s
    ]
    yield "floor", "; ".join(parts)


def _over_the_batch(run: Run, record: Record) -> Iterator[tuple[str, str]]:
    alike = [
        other
        for other in run.records
        if (other.op, other.variant, other.scenario, other.dtype)
        == (record.op, record.variant, record.scenario, record.dtype)
    ]
    for law in latency_laws(alike, launch_waves(run)).values():
        yield "over the batch", describe_law(law)


def _memory(facts: Mapping) -> str:
    if facts.get("peak_bytes") is None:
        return f"unknown ({facts['memory_method']})"
    lasting = (
        f" and {units.size(facts['kept_bytes'])} kept for good"
        if facts.get("kept_bytes")
        else ""
    )
    return (
        f"{units.size(facts['peak_bytes'])} above {units.size(facts['input_bytes'])} of inputs, of which "
        f"{units.size(facts['output_bytes'])} outputs{lasting} ({facts['memory_method']})"
    )


def _rungs(run: Run, record: Record, below: str | None) -> Iterator[tuple[str, str]]:
    """The rung below, PyTorch's fastest and the fastest of all on the same problem."""
    here = {
        other.variant: other
        for other in run.records
        if ranking.problem_of(other) == ranking.problem_of(record)
    }
    if below:
        yield "the rung below", _against(
            record, here.get(below.partition("/")[2]), below.partition("/")[2]
        )
    timed = list(filter(ranking.may_be_chosen, here.values()))
    opponent = ranking.opponents(timed).get(ranking.problem_of(record))
    if (
        opponent
        and opponent is not record
        and f"{record.op}/{opponent.variant}" != below
    ):
        yield "PyTorch's fastest", _against(record, opponent, opponent.variant)
    fastest = min(timed, key=lambda other: other.median_s, default=None)
    if fastest is record:
        yield "the fastest here", "this one"
    elif fastest and fastest is not opponent:
        yield "the fastest here", _against(record, fastest, fastest.variant)


def _against(record: Record, other: Record | None, name: str) -> str:
    if other is None:
        return f"{name}: not in this run"
    if other.status != MEASURED:
        return f"{name}: {other.status}: {other.reason}"
    time = f"{name}: {units.duration(other.median_s)}"
    if record.status != MEASURED:
        return time
    faster = {record.variant: "this one", other.variant: "that one"}.get(
        crossovers.leader(record, other)
    )
    if faster is None:
        return f"{time}, no clear difference from this one"
    ratio = other.median_s / record.median_s
    return f"{time}; {faster} is {units.ratio(max(ratio, 1 / ratio))} as fast"


def _compiled(run: Run, record: Record) -> Iterator[str]:
    """What the compilers made of it: on the scenario itself where that was compiled, or
    else on the example.
    """
    name = f"{record.op}/{record.variant}"
    entries = [
        entry
        for entry in run.compiled.kernels
        if (entry["variant"], entry["dtype"]) == (name, record.dtype)
    ]
    own = [entry for entry in entries if entry["scenario"] == record.scenario]
    for entry in (own or entries)[:_MOST_COMPILED]:
        config = f" {entry['config']}" if entry.get("config") else ""
        kernel = f"{entry['kernel']}{config}" if "kernel" in entry else "a launch"
        yield (
            f"sm_{entry['architecture']} on {entry['scenario']}/B{entry['batch']}: {kernel}: "
            f"{format_compiled(entry)}"
        )


def summarize_a_a(pairs: Sequence[Pair], device_name: str, clock: str) -> str:
    """The share of the cases over 60 µs whose two medians differ by less than 2%, then
    the worst cases as a table.
    """
    from batchline.bench.report.render.terminal import draw, wrapped

    timed = [pair for pair in pairs if pair.status == MEASURED]
    judged = sorted(
        (pair for pair in timed if pair.first_s > _FROM_S),
        key=lambda pair: -abs(pair.difference),
    )
    if not judged:
        return f"No baseline takes more than {units.duration(_FROM_S)} here: nothing to judge an A/A by."
    table = draw(
        [
            "the largest differences",
            "median",
            "difference",
            "known to",
            "samples of each",
        ],
        (
            [
                pair.case,
                units.duration(pair.first_s),
                f"{pair.difference:+.2%}",
                f"±{pair.precision:.1%}",
                str(pair.samples),
            ]
            for pair in judged[:_WORST_SHOWN]
        ),
    )
    within = sum(abs(pair.difference) < _WITHIN for pair in judged)
    middle = statistics.median(abs(pair.difference) for pair in judged)
    answer = (
        f"A/A by {clock} on {device_name}: {within} of {len(judged)} cases over "
        f"{units.duration(_FROM_S)} ({within / len(judged):.1%}) differ by less than "
        f"{_WITHIN:.0%} in the median; half of them by less than {middle:.2%}; "
        f"{len(pairs) - len(timed)} not measured"
    )
    return f"{wrapped(answer)}\n\n{table}"
