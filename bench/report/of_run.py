"""The report of a run as a document: THE order of its sections, and which of them a
page, a terminal and a CI keep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from batchline.bench.report.document import (
    EVERYWHERE,
    FILES,
    Document,
    Part,
    Place,
    Section,
    Text,
    select,
)
from batchline.bench.report.findings import Findings, TrainingFindings
from batchline.bench.report.render.escaping import one_line
from batchline.bench.report.sections import (
    checks,
    choices,
    ladder,
    laws,
    machine,
    one_look,
    ops,
    scaling,
    training,
)
from batchline.bench.statuses import BROKEN, MEASURED, NOT_REACHED
from batchline.bench.store.records import Run

_Sections = Section | None | Iterator[Section]
_WORST_FIRST = (*BROKEN, NOT_REACHED)


@dataclass(frozen=True)
class Entry:
    """What makes one or several sections, and the level of them: where they are kept."""

    make: Callable[[Run, Findings], _Sections]
    level: Place


def _training(run: Run, findings: Findings) -> Iterator[Section]:
    if findings.training:
        yield from training.sections(findings.training, run.machine)


ORDER = (
    Entry(choices.choices, FILES | Place.TERMINAL),
    Entry(ops.ops, EVERYWHERE),
    Entry(laws.latency, FILES),
    Entry(laws.memory, FILES),
    Entry(choices.crossings, FILES | Place.TERMINAL),
    Entry(checks.invariance, FILES),
    Entry(checks.numerics, FILES | Place.TERMINAL),
    Entry(_training, FILES | Place.TERMINAL),
    Entry(scaling.section, FILES),
    Entry(checks.failures, FILES | Place.TERMINAL),
    Entry(checks.skips, EVERYWHERE),
    Entry(ladder.compiled, FILES),
    Entry(machine.section, FILES | Place.CI),
)


class RunReport:
    """A run's report for each place. Each section is made at most once, when the first
    place asks for it.

    previous: the run before on the same machine in the same profile, for what is new;
    another one is left out.
    """

    def __init__(
        self, run: Run, findings: Findings | None = None, previous: Run | None = None
    ):
        self.run = run
        self.findings = findings or Findings(run)
        self._previous = previous
        self._made: dict[Entry, tuple[Section, ...]] = {}

    def document(self, place: Place, why_no_figures: str | None = None) -> Document:
        """The document for one place. `why_no_figures` is said in a README."""
        lead = {
            Place.README: self._beginning,
            Place.PAGE: self._summary,
            Place.TERMINAL: self._summary,
            Place.CI: self._problems,
        }[place]()
        look = one_look.one_look(self.run, self.findings)
        closing: list[Part] = []
        if place is Place.README and why_no_figures:
            closing.append(Text(f"No plots: {why_no_figures}."))
        if place is Place.TERMINAL:
            closing.append(Text(summary(self.run)))
        title = summary(self.run) if place is Place.CI else title_of(self.run)
        return Document(
            title, select((look, *lead), place), self._sections(place), tuple(closing)
        )

    def _sections(self, place: Place) -> tuple[Section, ...]:
        sections = (
            section
            for entry in ORDER
            if place in entry.level
            for section in self._make(entry)
        )
        return select(tuple(sections), place)

    def _make(self, entry: Entry) -> tuple[Section, ...]:
        if entry not in self._made:
            made = entry.make(self.run, self.findings)
            if made is None or isinstance(made, Section):
                made = filter(None, [made])
            self._made[entry] = tuple(made)
        return self._made[entry]

    def _beginning(self) -> Iterator[Part]:
        run = self.run
        if run.partial:
            yield Text(PARTIAL)
        selection = (
            f", cases matching `{run.plan.selection}`" if run.plan.selection else ""
        )
        yield Text(
            f"{summary(self.run)}{selection}. Measured in {run.seconds:.0f} s"
            f"{machine.forecast(self.run)}, begun {run.started}. "
            "reports/methodology/ says what each figure means."
        )

    def _summary(self) -> Iterator[Part]:
        yield choices.summarize(self.run, self.findings, self._previous)

    def _problems(self) -> Iterator[Part]:
        yield from filter(
            None, [checks.problems(self.run), checks.impossible_statistics(self.run)]
        )


PARTIAL = (
    "**Partial.** The run was stopped before its end; what it had not reached is "
    "listed as such."
)


def title_of(run: Run) -> str:
    """The title of a run's report."""
    return (
        f"Batchline: {run.plan.profile} run on {run.machine['device_name']}, "
        f"{run.started[:10]}"
    )


def sections_of_training(
    noise: Mapping, sweep: Mapping | None, of_machine: Mapping, place: Place
) -> tuple[Section, ...]:
    """The sections of a study, which has no run: its noise, and its sweep if it has
    one. `of_machine` is the machine that the study was made on.
    """
    findings = TrainingFindings(noise, sweep)
    return select(tuple(training.sections(findings, of_machine)), place)


def summary(run: Run) -> str:
    """The run in a line: how many cases ended how, on what."""
    counts = Counter(record.status for record in run.records)
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
    partial = "PARTIAL (stopped before the end): " if run.partial else ""
    along = _along(run.along)
    return (
        f"{partial}{len(run.records)} cases: {statuses}{along}; profile {run.plan.profile} on "
        f"{run.machine['device_name']}"
    )


def _along(case_ids: Sequence[str]) -> str:
    """What was measured along with the cases that were asked for, because those are
    compared with it.
    """
    variants = dict.fromkeys("/".join(case_id.split("/")[:2]) for case_id in case_ids)
    return (
        f" ({len(case_ids)} of them along, to compare with: {', '.join(variants)})"
        if variants
        else ""
    )


def why_incomplete(run: Run) -> str | None:
    """What is wrong with the run as a whole, or None."""
    if all(record.status != MEASURED for record in run.records):
        return "Nothing was measured"
    return "Stopped before the end" if run.partial else None


def problems(run: Run) -> Iterator[tuple[str, str]]:
    """(title, message) pairs of what keeps a run from being clean, the worst first, for
    a CI's annotations.

    A run has problems exactly where `batchline run` does not exit with 0; cases of one
    variant and one reason are one.
    """
    if incomplete := why_incomplete(run):
        yield incomplete, one_line(summary(run))
    alike: dict[tuple[str, str, str], list[str]] = {}
    for record in sorted(
        (record for record in run.records if checks.is_problem(record)),
        key=lambda record: _WORST_FIRST.index(record.status),
    ):
        alike.setdefault(
            (record.status, f"{record.op}/{record.variant}", record.reason), []
        ).append(record.id)
    for (status, variant, reason), ids in alike.items():
        more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        yield one_line(f"{status}: {variant}"), one_line(f"{ids[0]}{more}: {reason}")
    for one in checks.broken_files(run):
        yield one_line(f"{one['status']}: {one['file']}"), one_line(one["reason"])
    for row in checks.impossible(run):
        yield (
            one_line(f"impossible statistics: {row['op']}/{row['variant']}"),
            one_line(f"{row['dtype']}, {checks.inputs_of(row)}: {row['failed']}"),
        )
