"""What `batchline emulate` prints of executed subjects: a table for each variant, dtype
and architecture, or a row for each; what is wrong; what the lines of the source did.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from batchline.bench import units
from batchline.bench.report.render.terminal import draw, wrapped
from batchline.bench.verdicts.predicted import format_predictions, predictions

if TYPE_CHECKING:
    from batchline.bench.measure.emulated.executed import Executed, Fault
    from batchline.bench.measure.emulated.mutant_table import Share
    from batchline.bench.measure.emulator.counts import Counts, LineCounts
    from batchline.bench.measure.emulator.mutants import Judged
    from batchline.bench.measure.emulator.subjects import Subject

_LINES = 12  # of the source, that are shown
_NAMED = 3  # subjects, where many have the same
_HEADERS = (
    "verdict",
    "instructions",
    "sectors",
    "banks",
    "reads",
    "seconds",
)
_LEGEND = (
    "instructions: of warps. sectors: of 32 bytes of global memory, asked for over the fewest that hold the bytes. "
    "banks: passes of shared memory over the fewest. reads: bytes read over distinct bytes."
)


def legend() -> str:
    """What the columns count."""
    return wrapped(_LEGEND)


def tables(rows: Sequence[Executed]) -> Iterator[str]:
    """A table for each variant, dtype and architecture, with a row for each subject."""
    for title, group in _groups(rows):
        drawn = draw(
            ("probe", *_HEADERS),
            [(one.subject.probe, *_cells(_verdict(one), [one])) for one in group],
        )
        yield f"{title}\n{drawn}"


def summary(rows: Sequence[Executed]) -> str:
    """A table with a row for each variant, dtype and architecture: the sum of its
    instructions, and the most of each ratio.
    """
    return draw(
        ("subjects", *_HEADERS),
        [
            (title, *_cells(_share_right(group), group))
            for title, group in _groups(rows)
        ],
    )


def wrong(rows: Iterable[Executed], each: bool) -> Iterator[str]:
    """What is wrong, in lines that fit: for each subject that has something, or for
    each variant with the same finding once, whatever its probes, dtypes and
    architectures.
    """
    not_right = [one for one in rows if not one.is_right]
    if each:
        for one in not_right:
            yield "\n".join([f"{one.subject}:", *_reasons(one)])
        return
    by_variant: dict[str, list[Executed]] = {}
    for one in not_right:
        by_variant.setdefault(one.subject.variant, []).append(one)
    for variant, group in by_variant.items():
        yield "\n".join([f"{variant}:", *_together(group)])


def _reasons(one: Executed) -> Iterator[str]:
    if one.wrong:
        yield wrapped(one.wrong, "  ")
    for fault in one.faults:
        if fault.is_fault:
            yield wrapped(f"{fault.text}{_only(fault, one)}", "  ")


def _only(fault: Fault, one: Executed) -> str:
    """The schedules that show a fault, unless all do that it was executed by."""
    if len(fault.schedules) == len(one.schedules):
        return ""
    return f" [{', '.join(fault.schedules)} only]"


def _together(group: Sequence[Executed]) -> Iterator[str]:
    """Each wrong result, or the first few of many; each fault once, where it lies, with
    the first few of the subjects that have it.
    """
    results = [one for one in group if one.wrong]
    for one in results[:_NAMED]:
        yield wrapped(f"{_inputs(one)}: {one.wrong}", "  ")
    if len(results) > _NAMED:
        yield f"  and {len(results) - _NAMED} more with a wrong result (--each lists them)"
    found: dict[tuple[str, str], list[tuple[Executed, Fault]]] = {}
    for one in group:
        for fault in one.faults:
            if fault.is_fault:
                found.setdefault((fault.word, fault.source), []).append((one, fault))
    for same in found.values():
        one, fault = same[0]
        subjects = _list_few([_inputs(each) for each, _ in same])
        yield wrapped(f"{subjects}: {fault.text}{_only(fault, one)}", "  ")


def _inputs(one: Executed) -> str:
    """A subject but for its variant."""
    subject = one.subject
    return f"{subject.probe} {subject.dtype} sm_{subject.architecture}"


def _list_few(names: Sequence[str]) -> str:
    few = ", ".join(names[:_NAMED])
    if len(names) <= _NAMED:
        return few
    return f"{len(names)} subjects ({few}, …)"


def remarks(rows: Iterable[Executed]) -> list[str]:
    """What the assembler says, with how many subjects it says it of."""
    said = Counter(
        f"{name_of(one.subject)}: {text}" for one in rows for text in one.remarks
    )
    return [
        wrapped(f"{text} ({count} subject{'s' if count > 1 else ''})")
        for text, count in said.items()
    ]


def notes(rows: Iterable[Executed]) -> list[str]:
    """What is told apart and is no fault, with how many subjects it is found in."""
    found = Counter(
        f"{name_of(one.subject)}: {fault.word} at {fault.source}"
        for one in rows
        for fault in one.faults
        if not fault.is_fault
    )
    return [f"{text}, no fault ({count})" for text, count in found.items()]


def lines_table(lines: Sequence[LineCounts]) -> str:
    """The lines of the source that did most, and the share of all instructions."""
    total = sum(one.instructions for one in lines) or 1
    return draw(
        (
            "line",
            "instructions",
            "share",
            "sectors",
            "over needed",
            "passes",
            "over fewest",
        ),
        [
            (
                one.line,
                f"{one.instructions:,}",
                f"{one.instructions / total:.1%}",
                f"{one.sectors:,}",
                _over(one.sectors, one.sectors_needed),
                f"{one.passes:,}",
                _over(one.passes, one.requests),
            )
            for one in lines[:_LINES]
            if one.instructions
        ],
    )


def predicted(one: Executed) -> str:
    """The share of the ceiling that its counts leave on each GPU, or why there is none."""
    if one.call is None or not one.call.flops:
        return "predicted from counts: nothing, for there is no work"
    made = predictions([one.call], one.subject.dtype)
    return wrapped(f"predicted from counts: {format_predictions(made)}")


def classes(counts: Counts) -> str:
    """ "load 1,024, float 512 …", the most first."""
    by_most = sorted(counts.by_class.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count:,}" for name, count in by_most)


def declined(chosen: Iterable[Subject], each: bool) -> list[str]:
    """Why subjects are not executed: counted by the reason, or each."""
    refused = [one for one in chosen if one.declined is not None]
    if each:
        return [f"{one}: {one.declined}" for one in refused]
    reasons = Counter((one.variant, one.declined) for one in refused)
    return [
        f"{variant}: {count} declined: {why}"
        for (variant, why), count in reasons.items()
    ]


def name_of(subject: Subject) -> str:
    """Of all subjects that differ by their probe alone."""
    return f"{subject.variant} {subject.dtype} sm_{subject.architecture}"


def _groups(rows: Sequence[Executed]) -> Iterator[tuple[str, list[Executed]]]:
    by_name = sorted(rows, key=lambda one: name_of(one.subject))
    for name, group in itertools.groupby(by_name, lambda one: name_of(one.subject)):
        yield name, list(group)


def _verdict(one: Executed) -> str:
    if one.wrong:
        return "wrong"
    words = dict.fromkeys(fault.word for fault in one.faults if fault.is_fault)
    return ", ".join(words) or "right"


def _share_right(group: Sequence[Executed]) -> str:
    right = sum(one.is_right for one in group)
    if right == len(group):
        return f"{right} right"
    return f"{right} of {len(group)} right"


def _cells(verdict: str, group: Sequence[Executed]) -> tuple[str, ...]:
    counts = [one.counts for one in group if one.counts]
    return (
        verdict,
        f"{sum(one.instructions for one in counts):,}",
        _most(counts, lambda one: one.sector_excess),
        _most(counts, lambda one: one.bank_excess),
        _most(counts, lambda one: one.reads),
        f"{sum(one.seconds for one in group):.2f}",
    )


def _most(counts: Sequence[Counts], ratio: Callable[[Counts], float | None]) -> str:
    known = [value for one in counts if (value := ratio(one)) is not None]
    return units.ratio(max(known)) if known else ""


def _over(count: int, fewest: int) -> str:
    return units.ratio(count / fewest) if fewest else ""


def mutants_table(shares: Iterable[Share]) -> str:
    """By kind: how many mutants were noticed, changed nothing, were missed, or broke
    the emulator.
    """
    return draw(
        ("kind", "noticed", "no change", "missed", "broken", "of those that change"),
        [
            (
                one.kind,
                f"{one.noticed}",
                f"{one.redundant}",
                f"{one.missed}",
                f"{one.broken}",
                "" if one.share is None else f"{one.share:.1%}",
            )
            for one in shares
        ],
    )


def redundant_mutants(counts: Mapping[str, int]) -> str:
    """How many mutants changed nothing, by kind and reason."""
    if not counts:
        return ""
    return draw(
        ("kind", "why there is no change", "mutants"),
        [(*name.split(": ", 1), f"{count}") for name, count in counts.items()],
    )


def missed_mutants(lines: Iterable[str]) -> list[str]:
    """A line for each that was missed."""
    return [wrapped(f"missed: {line}") for line in lines]


def broken_mutants(judged: Iterable[Judged]) -> list[str]:
    """A line for each on which the emulator itself failed."""
    from batchline.bench.measure.emulator.mutants import BROKEN

    return [
        wrapped(f"the emulator fails on {one.subject}, {one.mutant}: {one.by}")
        for one in judged
        if one.status == BROKEN
    ]


def speeds_table(timed: Mapping[str, Sequence[Executed]], processes: int) -> str:
    """Warp instructions a second of what was executed by so many processes at once: of
    one of them, and of all together.
    """
    rows = []
    for name, done in timed.items():
        instructions = sum(one.instructions for one in done)
        seconds = sum(one.machine_s for one in done)
        of_one = instructions / seconds / 1e6
        cells = f"{instructions:,}", f"{seconds:.2f}", f"{of_one:.1f} M"
        rows.append((name, *cells, f"{processes * of_one:.1f} M"))
    headers = "what", "warp instructions", "seconds", "a second, one process"
    return draw((*headers, f"a second, all {processes}"), rows)
