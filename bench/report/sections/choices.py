"""What to use where: the answer that a run gives first, the choice of variant on each
problem, and from how many tokens on ghost norms lose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from batchline.bench import texts, units
from batchline.bench.report import two_runs
from batchline.bench.report.document import (
    FILES,
    Definitions,
    Only,
    Place,
    Section,
    Text,
    table,
)
from batchline.bench.report.findings import Findings, TrainingFindings
from batchline.bench.report.sections import advisor, checks
from batchline.bench.statuses import is_machines_fault
from batchline.bench.store.records import Run
from batchline.bench.verdicts.across_runs import are_comparable, compare
from batchline.bench.verdicts.crossovers import Choice, Crossover, TokenCrossing

_MOST_NAMED = 3
_CHOICES_NOTE = (
    "Two medians count as equal if they differ by less than 2%, or by less than their samples can show. Of equal "
    "variants the one stays that was chosen at the batch before; at the first batch it is the baseline. A variant "
    "with an error bound of its own is not chosen; where such a variant of PyTorch's is faster, it is named. Where "
    "the choice changes, both times are taken as lines in B between the measured batch sizes around it: B* is where "
    "they meet, with the 95% interval that the samples leave it (processes differ by more: `make regress` and "
    "`batchline aa` say how much)."
)
_CROSSINGS_NOTE = (
    "Ghost norms cost 2T²(I+O) operations per sample, the fused kernels a walk over I·O numbers, so they meet at "
    "T* = √(κ·IO/(I+O)), predicted for κ from 1 to 25. Measured: between the two T around the change of leader, "
    "interpolated in logarithms."
)


def summarize(run: Run, findings: Findings, previous: Run | None = None) -> Definitions:
    """The answer in a few sentences, in the order in which a reader wants them.

    Args:
        previous: an earlier run; it is left out where machine, toolchain or profile are
        not the same.
    """
    items = [("Which variant", [best_variants(findings)])]
    changes = [_change(crossing) for crossing in findings.choice_changes]
    if changes:
        items.append(("From which batch", _first(changes)))
    if findings.training:
        items += _training(findings.training)
    items += _troubles(run)
    if previous is not None and are_comparable(previous, run):
        items.append(("Against the last run", [_against(previous, run)]))
    return Definitions(
        tuple((subject, tuple(sentences)) for subject, sentences in items)
    )


def _troubles(run: Run) -> Iterator[tuple[str, list[str]]]:
    broken = checks.broken(run)
    if broken:
        yield "Broken", _first(broken)
    disturbed = sum(
        is_machines_fault(record.status, record.reason) for record in run.records
    )
    if disturbed:
        yield (
            "The machine",
            [
                f"It was busy or throttled during {disturbed} of {len(run.records)} "
                "cases, which have no time for that."
            ],
        )


def _against(previous: Run, run: Run) -> str:
    try:
        changed = two_runs.summarize(compare(previous, run))
    except (
        Exception
    ) as error:  # that run may be damaged, and this one's report is not the worse for it
        return f"It can't be compared ({texts.error_line(error)})."
    return f"{changed}. A is the run of {previous.started[:16]}, B this one. It shows and does not judge."


def _change(crossing: Crossover) -> str:
    return (
        f"{crossing.then} overtakes {crossing.first} at B = {crossing.batch:.3g} ({crossing.low:.3g} to "
        f"{crossing.high:.3g}) on {crossing.op}/{crossing.scenario}/{crossing.dtype}."
    )


def _training(findings: TrainingFindings) -> Iterator[tuple[str, list[str]]]:
    for name in findings.workloads:
        yield f"Batch size for {name}", [advisor.summary_or_why_not(findings, name)]
    yield "The article's claims", [
        f"“{one.claim}”: {one.text}." for one in findings.claims
    ]


def _first(items: Sequence[str]) -> list[str]:
    """The first few, and how many more there are."""
    more = [f"And {len(items) - _MOST_NAMED} more."] if len(items) > _MOST_NAMED else []
    return [*items[:_MOST_NAMED], *more]


def choices(run: Run, findings: Findings) -> Section | None:
    """One row per problem: the variant for each range of batch sizes, and where each
    change is; None where nothing was timed.
    """
    if not findings.choices:
        return None
    changes: dict[tuple, list[Crossover]] = {}
    for change in findings.crossovers:
        key = change.op, change.scenario, change.dtype
        changes.setdefault(key, []).append(change)
    best = best_variants(findings)
    rows = (
        [
            op,
            f"{scenario} · {dtype}",
            ranges(chosen),
            "; ".join(
                _meeting(pair, changes.get((op, scenario, dtype), ()))
                for pair in pairwise(chosen)
            ),
        ]
        for (op, scenario, dtype), chosen in findings.choices.items()
    )
    return Section(
        "choice",
        "Which variant at which batch size",
        (
            Only(Place.README, (Text(f"**{best}** {_CHOICES_NOTE}"),)),
            Only(Place.PAGE, (Text(_CHOICES_NOTE),)),
            table(["op", "scenario", "use", "meet at B*"], rows),
        ),
    )


def ranges(chosen: Sequence[Choice]) -> str:
    """The variant for each range of batch sizes; "" where none was chosen."""
    return ", ".join(map(_range, chosen))


def _range(choice: Choice) -> str:
    where = (
        f"B={choice.first}"
        if choice.first == choice.last
        else f"B={choice.first} to {choice.last}"
    )
    behind = (
        f"; faster there within bounds of their own: {', '.join(choice.behind)}"
        if choice.behind
        else ""
    )
    return f"{choice.variant} ({where}{behind})"


def _meeting(pair: tuple[Choice, Choice], changes: Sequence[Crossover]) -> str:
    """The crossover of the two at the change of choice; where it is not decided,
    between which measured batches.
    """
    before, after = pair
    for change in changes:
        if (change.first, change.then) == (before.variant, after.variant) and (
            change.up_to <= before.last and after.first <= change.from_
        ):
            band = (
                f", undecided at B={', '.join(map(str, change.undecided))}"
                if change.undecided
                else ""
            )
            return f"{change.batch:.3g} ({change.low:.3g} to {change.high:.3g}{band})"
    return f"between {before.last} and {after.first}"


def best_variants(findings: Findings) -> str:
    """In a sentence: on how many problems something is faster than the fastest of
    PyTorch's variants, and what.
    """
    problems = findings.choices
    if not problems:
        return "Nothing was timed."
    better: dict[str, set] = {}
    for problem, chosen in problems.items():
        for choice in chosen:
            if choice.is_ahead:
                name = f"{choice.op}/{choice.variant}"
                better.setdefault(name, set()).add(problem)
    if not better:
        return f"On none of {len(problems)} problems is a variant clearly faster than PyTorch's fastest."
    named = sorted(better.items(), key=lambda item: -len(item[1]))
    variants = ", ".join(f"{name} on {len(where)}" for name, where in named[:4])
    more = f" and {len(named) - 4} more variants" if len(named) > 4 else ""
    beaten = len(set.union(*better.values()))
    return (
        f"On {beaten} of {len(problems)} problems something beats PyTorch's fastest at some batch: "
        f"{variants}{more}."
    )


def crossings(run: Run, findings: Findings) -> Section | None:
    """The measured T* beside the predicted, one row per layer and batch; None where the
    run has nothing to compare.
    """
    if not findings.token_crossings:
        return None
    columns = [
        "layer",
        "batch",
        "against ghost",
        "T* predicted",
        "T* measured",
        "ghost's time over fused's",
    ]
    return Section(
        "ghost",
        "Ghost norms or fused?",
        (
            Only(FILES, (Text(_CROSSINGS_NOTE),)),
            table(columns, map(_crossing, findings.token_crossings)),
        ),
    )


def _crossing(crossing: TokenCrossing) -> list[str]:
    return [
        f"{crossing.inputs} → {crossing.outputs} · {crossing.dtype}",
        str(crossing.batch),
        crossing.fused,
        " to ".join(f"{tokens:.0f}" for tokens in crossing.predicted),
        _measured(crossing),
        ", ".join(
            f"T={tokens}: {units.ratio(ratio)}" for tokens, ratio in crossing.ratios
        ),
    ]


def _measured(crossing: TokenCrossing) -> str:
    if crossing.tokens is not None:
        return f"{crossing.tokens:.3g} (between {crossing.between[0]} and {crossing.between[1]})"
    tokens, ratio = (
        crossing.ratios[0] if crossing.ratios[-1][1] >= 1 else crossing.ratios[-1]
    )
    return (
        f"fused leads from T={tokens} on"
        if ratio >= 1
        else f"ghost leads up to T={tokens}"
    )
