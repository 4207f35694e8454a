"""`batchline aa`: each baseline against itself, in turns, as two variants would be: the
spread on identical code.

A difference between two variants that is smaller than this one is noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from batchline.bench import units
from batchline.bench.commands import _arguments
from batchline.bench.console import complain
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.folders import require_writable
from batchline.bench.statuses import BROKEN, MEASURED
from batchline.bench.stopping import put_off
from batchline.bench.store import files
from batchline.bench.store.files import write_whole
from batchline.bench.store.selftests import A_A_FILE_NAME, Pair

if TYPE_CHECKING:
    from batchline.bench.cases import Case
    from batchline.bench.measure.timing.sampling import Effort
    from batchline.bench.measure.worker.isolation import Isolation

HELP = "time each baseline against itself: the spread on identical code"
SAMPLE = """
A/A by host on AMD EPYC AVX-512: 79 of 79 cases over 60.0 µs (100.0%) differ by less
  than 2% in the median; half of them by less than 0.19%; 0 not measured

the largest differences                              median    difference    known to
---------------------------------------------------  --------  ------------  ----------
grad_reduce/torch_mean/transformer_block/float32/B1  2.01 ms   -0.89%        ±1.8%
"""
EXITS = {
    ExitCode.CLEAN: "every case was measured twice",
    ExitCode.FAULT: "a case could not be measured",
    ExitCode.USAGE: "unknown profile or device, or a folder that can't be written",
    ExitCode.NOT_MEASURED: "nothing was measured",
    ExitCode.STOPPED: "stopped by Ctrl-C; the cases that are done are kept",
}
READS_OPS = True

_PRECISION = 0.005
_MOST_SAMPLES = 20_000  # short: the two are in turns every few hundred microseconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_ops(parser)
    _arguments.add_plan(parser)
    _arguments.add_selection(parser)
    parser.add_argument(
        "--seconds",
        type=_arguments.positive,
        default=3.0,
        help="the most to time each of the two in a case (default 3)",
    )
    _arguments.add_into(parser, f"write {A_A_FILE_NAME} there too")


def run(options: argparse.Namespace) -> int:
    from batchline.bench.measure.machine import environment

    try:
        device = environment.resolve_device(options.device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return measure_baselines(
        options.profile, device, options.seconds, options.k, options.into
    )


def measure_baselines(
    profile: str,
    device: str,
    seconds: float,
    selection: str = "",
    folder: Path | None = None,
) -> int:
    """Measure the profile's baselines that match `selection` (pytest's -k) against
    themselves and print the result; write a-a.json into `folder`.

    Args:
        seconds: the most that each of the two is timed for in one case.

    Raises:
        UsageError: for an unknown profile, no such case, or a folder that can't be
        written.
    """
    from batchline.bench.cases import CLOCKS, broken_lines, plan
    from batchline.bench.measure.machine import environment
    from batchline.bench.measure.timing.sampling import Effort
    from batchline.bench.measure.worker.isolation import Isolation
    from batchline.bench.report.of_commands import summarize_a_a

    the_plan = plan(profile, device)
    for line in broken_lines(the_plan):
        print(line, file=sys.stderr)
    cases = _chosen(the_plan.cases, selection, profile)
    machine = environment.machine(device)
    effort = Effort(_PRECISION, seconds, most=_MOST_SAMPLES)
    if folder:
        require_writable(folder, "--into")
    isolation = Isolation(device, the_plan.profile.deadline_s)
    clock = CLOCKS[device][0]
    pairs, stopped = _until_stopped(
        _pairs(isolation, cases, clock, effort, the_plan.profile.warm_up_s)
    )
    isolation.close()
    document = {
        "machine": machine,
        "profile": profile,
        "clock": clock,
        "effort": asdict(effort),
        "partial": stopped,
        "pairs": [asdict(pair) for pair in pairs],
    }
    if pairs:
        print(summarize_a_a(pairs, machine["device_name"], clock))
    if folder and pairs:
        text = json.dumps(document, indent=0)
        with put_off():
            folder = files.save_or_rescue(
                lambda place: write_whole(place / A_A_FILE_NAME, text), folder
            )
        print(f"stored: {folder / A_A_FILE_NAME}")
    if stopped:
        kept = ", which are kept" if pairs else ""
        complain(f"stopped after {len(pairs)} cases{kept}")
        return ExitCode.STOPPED
    statuses = {pair.status for pair in pairs}
    if MEASURED not in statuses:
        return ExitCode.NOT_MEASURED
    whole = statuses == {MEASURED} and not the_plan.broken
    return ExitCode.CLEAN if whole else ExitCode.FAULT


def _chosen(cases: Sequence[Case], selection: str, profile: str) -> list[Case]:
    """The baselines among the cases that match the expression."""
    from batchline.bench.selection import selected

    baselines = [case for case in cases if case.variant.is_baseline]
    if not selection:
        return baselines
    ids = selected(
        [case.id for case in baselines], selection, f"of the baselines of {profile}"
    )
    return [case for case in baselines if case.id in set(ids)]


def _until_stopped(pairs: Iterator[Pair]) -> tuple[list[Pair], bool]:
    """The pairs, and whether Ctrl-C has ended them early."""
    kept = []
    try:
        for pair in pairs:
            kept.append(pair)
    except KeyboardInterrupt:
        return kept, True
    return kept, False


def _pairs(
    isolation: Isolation,
    cases: Sequence[Case],
    clock: str,
    effort: Effort,
    warm_up_s: float,
) -> Iterator[Pair]:
    from batchline.bench.measure.worker.task import Task

    for case in cases:
        if case.refusal and case.refusal[0] not in BROKEN:
            continue
        if case.refusal:
            yield Pair(case.id, *case.refusal)
            continue
        entries = (
            (f"{case.id} (A)", case.variant.name),
            (f"{case.id} (again)", case.variant.name),
        )
        task = Task(*case.problem, entries, (clock,), effort, effort, warm_up_s)
        outcomes = isolation.measure(task)  # once: the two in turns
        one, other = (outcomes[label] for label in task.labels)
        broken = next(
            (outcome for outcome in (one, other) if outcome.status != MEASURED), None
        )
        if broken:
            yield Pair(case.id, broken.status, broken.reason)
            print(f"{case.id}: {broken.status}: {broken.reason}", file=sys.stderr)
            continue
        pair = Pair(
            case.id,
            MEASURED,
            "",
            statistics.median(one.samples_s),
            statistics.median(other.samples_s),
            max(one.facts["precision"], other.facts["precision"]),
            len(one.samples_s),
        )
        print(
            f"{pair.case}  {units.duration(pair.first_s)}  {pair.difference:+.2%}",
            file=sys.stderr,
        )
        yield pair
