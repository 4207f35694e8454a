"""`batchline regress`: is the working tree slower, larger or less accurate than a base? By
pairs of fresh processes.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from batchline import own_ops, places
from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.folders import RUNS, new_folder, remove_if_empty, runs
from batchline.bench.statuses import MEASURED, case_id, parse_case_id
from batchline.bench.store import regressions
from batchline.bench.store.regressions import (
    IDENTICAL,
    INVALID,
    LATENCY,
    MISSING,
    NEW,
    QUANTITIES,
    Judged,
    Regression,
)

if TYPE_CHECKING:
    from batchline.bench.regress.pairs import Pairs

HELP = "is the working tree slower, larger, less accurate than a revision?"
SAMPLE = """
1 of 61 cases REGRESSED: bmm/triton_tiled/square_128/float16/B64 +12.1% [+11.4, +12.9]
report: reports/runs/2026-11-29-100746-nvidia-h200-regress/README.md
for a pull request: gh pr comment --body-file
  reports/runs/2026-11-29-100746-nvidia-h200-regress/comment.md
"""
EXITS = {
    ExitCode.CLEAN: "no regression is confirmed",
    ExitCode.FAULT: "a regression is confirmed",
    ExitCode.USAGE: "no such revision, profile or case, or the environment is not "
    "usable",
    ExitCode.NOT_MEASURED: "not measured or not decided; a case is INVALID, or "
    "UNCONFIRMED (above its floor when the pairs or the budget ended), no case that "
    "was compared has a verdict, or the session is void",
    ExitCode.STOPPED: "stopped by Ctrl-C; what was measured is kept",
}
REPORT_NAME = "README.md"
COMMENT_NAME = "comment.md"  # for `gh pr comment --body-file`; nothing here posts it
_MOST_CONTROLS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_ops(parser)
    _arguments.add_plan(parser)
    parser.add_argument(
        "--base",
        required=True,
        metavar="REVISION",
        help="what to compare with, as git names it",
    )
    _arguments.add_selection(parser)
    parser.add_argument(
        "--budget",
        type=float,
        metavar="MINUTES",
        help="begin no pair that would end later",
    )
    _arguments.add_out(parser, "its")


def run(options: argparse.Namespace) -> int:
    return regress(
        options.base,
        options.profile,
        options.device,
        options.k,
        options.budget and options.budget * 60,
        options.out or runs(),
    )


def regress(
    base: str,
    profile: str,
    device: str,
    selection: str,
    budget_s: float | None,
    folder: Path = RUNS,
) -> int:
    """Compare the working tree with the revision `base` on the profile's cases that
    match `selection` (pytest's -k).

    No pair is begun that would not end within `budget_s`. Returns the exit code.

    Raises:
        UsageError: before anything is measured, if the call, the environment or the
        folder is not usable. ValueError: for an unknown device, or a noise file that
        can't be believed.
    """
    from batchline.bench.cases import CLOCKS, PROFILES
    from batchline.bench.measure.machine import environment
    from batchline.bench.regress import base_tree
    from batchline.bench.regress.pairs import Pairs, compile_once, load_noise
    from batchline.bench.report.render import github

    device = environment.resolve_device(device)
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}: use {', '.join(PROFILES)}")
    if budget_s is not None and not budget_s > 0:
        raise UsageError(
            f"BUDGET={budget_s:g} leaves no time: give minutes, or leave it out"
        )
    machine = environment.machine(device)
    noise = load_noise(machine)
    started, started_s = datetime.datetime.now(datetime.timezone.utc), time.monotonic()
    run_folder = new_folder(folder, f"{machine['device_name']} regress")
    try:
        with base_tree.checked_out(base, _repository()) as tree, compile_once():
            comparison = Comparison(
                Pairs(device, PROFILES[profile], (tree.folder, None)),
                selection,
                profile,
                noise,
            )
            comparison.measure(None if budget_s is None else started_s + budget_s)
        regression = comparison.regression(
            {
                "base": {"name": base, "commit": tree.commit, "dirty": False},
                "head": {"name": "", **machine["revision"]},
                "profile": profile,
                "selection": selection,
                "device": device,
                "clock": CLOCKS[device][0],
                "started": started.isoformat(timespec="seconds"),
                "seconds": time.monotonic() - started_s,
                "budget_s": budget_s,
                "machine": machine,
            }
        )
        _publish(regression, run_folder)
    except NotComparable as why:
        print(f"batchline: {why}", file=sys.stderr)
        github.announce("error", [("regress", str(why))])
        return ExitCode.NOT_MEASURED
    finally:
        remove_if_empty(run_folder)
    return exit_code(regression)


def _repository() -> Path:
    """The one whose revisions are compared: Batchline's, or that of the ops that are
    measured.

    Raises:
        UsageError: if those are of several.
    """
    own = own_ops.folders()
    if own_ops.repository() is None:
        return places.CODE
    roots = {own_ops.repository_of(folder) for folder in own}
    if len(roots) > 1:
        raise UsageError(
            "two revisions are compared of one repository, and these ops are of "
            f"{len(roots)}: name the folders of one with --ops"
        )
    return own_ops.repository()


def exit_code(regression: Regression) -> int:
    """What a comparison means to a CI: only 0 is a pass."""
    from batchline.bench.regress.pairs import INTERRUPTED
    from batchline.bench.verdicts import paired

    if regression.about["ended"] == INTERRUPTED:
        return ExitCode.STOPPED
    codes = {paired.CLEAN: ExitCode.CLEAN, paired.SLOWER: ExitCode.FAULT}
    return codes.get(paired.conclude(regression), ExitCode.NOT_MEASURED)


def _publish(regression: Regression, folder: Path) -> None:
    """Store it, write its reports, and say it to the terminal and to the CI."""
    from batchline.bench.report import regression as report
    from batchline.bench.report.render import github, junit

    text = report.markdown(regression)
    try:
        regressions.save(folder, regression)
        (folder / REPORT_NAME).write_text(f"# Regressions\n\n{text}", encoding="utf-8")
        (folder / COMMENT_NAME).write_text(
            github.comment(f"## Regressions\n\n{text}"), encoding="utf-8"
        )
        (folder / junit.FILE_NAME).write_text(
            junit.of_regression(regression), encoding="utf-8"
        )
    except OSError as error:
        rescue = Path(tempfile.mkdtemp(prefix="batchline-"))
        regressions.save(rescue, regression)
        print(
            f"batchline: can't write to {folder} any more ({error.strerror}): the comparison is in {rescue}",
            file=sys.stderr,
        )
    print(report.terminal(regression))
    print(f"report: {folder / REPORT_NAME}")
    print(f"for a pull request: gh pr comment --body-file {folder / COMMENT_NAME}")
    github.step_summary(f"## Regressions\n\n{text}")
    github.announce("error", report.problems(regression))


class NotComparable(Exception):
    """Why the two revisions can't be compared at all, in a line."""


class Comparison:
    """One comparison from the two plans to the verdicts."""

    def __init__(
        self, pairs: Pairs, selection: str, profile: str, noise: Mapping[str, float]
    ):
        from batchline.bench.measure.worker.task import WorkerLost
        from batchline.bench.selection import selected
        from batchline.bench.verdicts.paired import Evidence

        try:
            base, head = pairs.plans()
        except (RuntimeError, WorkerLost) as error:
            raise NotComparable(
                f"a side's kernels can't be measured by this bench: {error}"
            ) from error
        self._pairs = pairs
        chosen = selected(
            union(list(base), list(head)), selection, f"of profile {profile}"
        )
        self._matching = match(base, head, chosen)
        controls = self._matching.controls(pairs.baselines)
        self._subjects = Evidence(self._matching.changed, noise)
        self._controls = Evidence(controls, noise)
        self._new: list[Judged] = []
        self._counted, self._ended = 0, ""

    def measure(self, until_s: float | None) -> None:
        """Measure what has to be; Ctrl-C ends it early, and what there is is kept."""
        from batchline.bench.regress import pairs

        matching = self._matching
        print(
            f"{len(matching.changed)} cases changed, {len(matching.same)} have the same code, {len(matching.new)} are "
            f"new, {len(matching.missing)} missing; {len(self._controls.cases)} controls",
            file=sys.stderr,
        )
        try:
            self._look_first()
        except KeyboardInterrupt:
            self._ended = pairs.INTERRUPTED
            return
        families = [
            pairs.Family(
                evidence,
                {case: pairs.Entry(case, case) for case in evidence.cases},
                controls,
            )
            for evidence, controls in ((self._subjects, False), (self._controls, True))
        ]
        self._counted, self._ended = pairs.measure_in_stages(
            self._pairs, families, until_s
        )

    def _look_first(self) -> None:
        """Check and compile on both sides; what does not work on one of them has its
        verdict.
        """
        from batchline.bench.regress.pairs import BASE_SIDE, HEAD_SIDE, Entry, failure

        both = [
            Entry(case, case) for case in (*self._subjects.cases, *self._controls.cases)
        ]
        new = [Entry(case, case) for case in self._matching.new]
        if both:
            print("checking and compiling the base", file=sys.stderr)
        base = self._pairs.first(BASE_SIDE, both) if both else {}
        if both or new:
            print("checking and compiling the working tree", file=sys.stderr)
        head = self._pairs.first(HEAD_SIDE, [*both, *new]) if both or new else {}
        for evidence in (self._subjects, self._controls):
            for case in evidence.cases:
                if broken := failure(base[case], head[case]):
                    evidence.end(case, *broken)
        for entry in new:
            outcome = head[entry.label]
            if outcome.status != MEASURED:
                why = f"new, and {outcome.status}: {outcome.reason}"
                self._new.append(Judged(entry.case_id, LATENCY, INVALID, why))

    def regression(self, about: Mapping) -> Regression:
        """All that was found, for storing and showing."""
        controls = [
            replace(
                row,
                verdict=IDENTICAL,
                reason="; ".join(filter(None, ("a control", row.reason))),
            )
            for row in self._controls.judged()
            if row.quantity == LATENCY
        ]
        measured = [*self._subjects.judged(), *controls, *self._new]
        seen = {row.id for row in measured}
        rows = (
            *measured,
            *(row for row in self._matching.unmeasured() if row.id not in seen),
        )
        return Regression(
            dict(about) | {"pairs": self._counted, "ended": self._ended},
            self._controls.why_void(),
            rows,
            self._subjects.over_batches(),
            {
                quantity: self._subjects.ratios[quantity]
                | self._controls.ratios[quantity]
                for quantity in QUANTITIES
            },
            tuple(self._pairs.states),
        )


@dataclass(frozen=True)
class Matching:
    """Case ids, in the order of the plan.

    `changed` are on both sides with different code or configuration; `same` on both
    with the same; `new` and `missing` on one side only, each with a reason. What can
    run on neither side is in none of them.
    """

    changed: tuple[str, ...]
    same: tuple[str, ...]
    new: Mapping[str, str]
    missing: Mapping[str, str]

    def controls(self, baselines: Mapping[str, str]) -> tuple[str, ...]:
        """Some of `same` to measure beside `changed`: their problems' baselines first,
        then other variants of them.

        `baselines`: op → its baseline's name. Other problems' cases only where these
        have none of the same code.
        """
        problems = {_problem(case) for case in self.changed}

        def distance(case: str) -> tuple[bool, bool]:
            parts = parse_case_id(case)
            return _problem(case) not in problems, parts["variant"] != baselines.get(
                parts["op"]
            )

        ranked = sorted(self.same, key=distance)
        nearby = [case for case in ranked if _problem(case) in problems]
        return tuple((nearby or ranked)[:_MOST_CONTROLS]) if self.changed else ()

    def unmeasured(self) -> tuple[Judged, ...]:
        """The rows of what is not compared."""
        return (
            *(
                Judged(case, LATENCY, MISSING, why)
                for case, why in self.missing.items()
            ),
            *(Judged(case, LATENCY, NEW, why) for case, why in self.new.items()),
            *(
                Judged(case, LATENCY, IDENTICAL, "the same code and configuration")
                for case in self.same
            ),
        )


def match(
    base: Mapping[str, Mapping], head: Mapping[str, Mapping], chosen: Iterable[str]
) -> Matching:
    """Match two sides' plans (Pairs.plans), as far as their ids are `chosen`."""
    changed, same, new, missing = [], [], {}, {}
    for case in chosen:
        sides = base.get(case), head.get(case)
        refusals = [
            side["refusal"][1] if side and side["refusal"] else "not there"
            for side in sides
        ]
        runs = [side is not None and not side["refusal"] for side in sides]
        if all(runs):
            (same if sides[0]["code"] == sides[1]["code"] else changed).append(case)
        elif runs[1]:
            new[case] = f"at the base: {refusals[0]}"
        elif runs[0]:
            missing[case] = f"now: {refusals[1]}"
    return Matching(tuple(changed), tuple(same), new, missing)


def union(base: Sequence[str], head: Sequence[str]) -> list[str]:
    """Every id of either side, once: head's in their order, then what only the base
    has.
    """
    return [*head, *(case for case in base if case not in set(head))]


def _problem(case: str) -> str:
    parts = parse_case_id(case)
    return case_id(parts["op"], "", parts["scenario"], parts["dtype"], parts["batch"])
