"""Which variant at which batch size, and where one overtakes another: the choice in a
line for each problem.
"""

from __future__ import annotations

from collections.abc import Sequence

from batchline.bench.report.tables import Style
from batchline.bench.store.records import Run
from batchline.bench.verdicts import crossovers as verdicts
from batchline.bench.verdicts.crossovers import Choice, Crossover

NOTE = (
    "Medians that differ by less than 2%, or by less than their samples leave open, are not told apart; then the "
    "variant stays that was chosen at the batch before, or it is the baseline. What holds to an error bound of its "
    "own is not chosen; where such a variant of PyTorch's is faster, it is named. Where the choice changes, both "
    "are taken as lines in B between the measured batch sizes around it: B* is where they meet, with the 95% "
    "interval that the samples leave it (processes differ by more: `make regress` and `batchline aa` say how much)."
)


def table(run: Run, style: Style) -> str | None:
    """A row a problem: the variant for each range of batch sizes, and where each change
    is; None without any time.
    """
    by_problem: dict[tuple, list[Choice]] = {}
    for choice in verdicts.choices(run.records, run.about["baselines"]):
        by_problem.setdefault(choice.problem, []).append(choice)
    if not by_problem:
        return None
    changes: dict[tuple, list[Crossover]] = {}
    for change in verdicts.crossovers(run.records):
        changes.setdefault((change.op, change.scenario, change.dtype), []).append(
            change
        )
    return style.render(
        ["op", "scenario", "use", "meet at B*"],
        (
            [
                op,
                f"{scenario} · {dtype}",
                ", ".join(map(_range, choices)),
                "; ".join(
                    _meeting(pair, changes.get((op, scenario, dtype), ()))
                    for pair in zip(choices, choices[1:])
                ),
            ]
            for (op, scenario, dtype), choices in by_problem.items()
        ),
    )


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


def answer(run: Run) -> str:
    """In a sentence: on how many problems something is faster than the fastest of
    PyTorch's variants, and what.
    """
    choices = verdicts.choices(run.records, run.about["baselines"])
    problems = {choice.problem for choice in choices}
    if not problems:
        return "Nothing was timed."
    better: dict[str, set] = {}
    for choice in choices:
        if choice.is_ahead:
            better.setdefault(f"{choice.op}/{choice.variant}", set()).add(
                choice.problem
            )
    if not better:
        return f"On none of {len(problems)} problems is a variant told from PyTorch's fastest for the better."
    named = sorted(better.items(), key=lambda item: -len(item[1]))
    words = ", ".join(f"{name} on {len(where)}" for name, where in named[:4])
    more = f" and {len(named) - 4} more variants" if len(named) > 4 else ""
    beaten = len(set.union(*better.values()))
    return (
        f"On {beaten} of {len(problems)} problems something beats PyTorch's fastest at some batch: "
        f"{words}{more}."
    )
