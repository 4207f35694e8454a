"""`batchline tune`: time the configurations of every variant that has several, and keep
the winners beside the kernels.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from batchline.bench import units
from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode
from batchline.bench.folders import (
    new_folder,
    remove_if_empty,
    require_writable,
    runs,
)
from batchline.bench.measure import stand_in
from batchline.bench.statuses import BROKEN, MEASURED, is_broken

if TYPE_CHECKING:
    from batchline.bench.cases import Case, Plan
    from batchline.bench.declared import DeclaredOp
    from batchline.bench.measure.worker.isolation import Isolation
    from batchline.bench.measure.worker.task import Outcome

HELP = "time every variant's configurations, keep the winners beside the kernels"
SAMPLE = """
bmm/numba_cpu_tiled/square_128/float32/B16  rows=8 columns=64: 1.02 ms, 1.18x the rule
12 problems tuned in 41 s: kernels/bmm/tuning/amd-epyc.json
"""
EXITS = {
    ExitCode.CLEAN: "tuned",
    ExitCode.FAULT: "a configuration was wrong or failed; the winners among the others "
    "are kept",
    ExitCode.USAGE: "unknown profile or device, no case matches, or a file can't be "
    "written",
    ExitCode.NOT_MEASURED: "there is nothing to tune here",
    ExitCode.STOPPED: "stopped by Ctrl-C; what was tuned until then is kept",
}
READS_OPS = True

_PRECISION = 0.01
# A winner must take less than this share of the rule's time: above it the difference is
# noise, and the rule is simpler.
_TIE = 0.98


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_ops(parser)
    _arguments.add_plan(parser)
    _arguments.add_selection(parser)
    parser.add_argument(
        "--seconds",
        type=_arguments.positive,
        default=0.3,
        help="the most to time each configuration (default 0.3)",
    )
    _arguments.add_into(
        parser,
        "where to write the files (default: kernels/<op>/tuning, for the stand-in a "
        "new folder in reports/runs)",
    )


def run(options: argparse.Namespace) -> int:
    return tune(
        options.profile, options.device, options.k, options.seconds, options.into
    )


def tune(
    profile: str,
    device: str,
    selection: str,
    seconds: float,
    folder: Path | None = None,
) -> int:
    """Time the candidates of the profile's cases that match `selection` (pytest's -k);
    returns the exit code.

    Args:
        seconds: the most that each configuration is timed for, on each problem.
        folder: where the files go, as <op>-<device>.json; by default beside the
            kernels, and those of the stand-in for a GPU in a folder of their own.

    Raises:
        UsageError: for an unknown profile or device, no such case, or a file that can't
        be written.
    """
    from batchline.bench import device_tables
    from batchline.bench.cases import CLOCKS, broken_lines, plan
    from batchline.bench.measure.machine import environment
    from batchline.bench.selection import selected

    device = environment.resolve_device(device)
    the_plan = plan(profile, device, configs=True)
    unread = broken_lines(the_plan)
    print(*unread, sep="\n", end="\n" if unread else "", file=sys.stderr)
    chosen = set(
        selected(
            [case.id for case in the_plan.cases], selection, f"of profile {profile}"
        )
    )
    cases = [
        case
        for case in the_plan.cases
        if case.variant.tunable and not case.refusal and case.id in chosen
    ]
    if not cases:
        print(
            f"nothing to tune on {device} among the {len(chosen)} cases of {profile}"
            f"{f' that match {selection!r}' if selection else ''}"
        )
        return ExitCode.NOT_MEASURED
    machine = environment.machine(device)
    header = {
        **device_tables.provenance(machine),
        "clock": CLOCKS[device][0],
        "measured": datetime.date.today().isoformat(),
    }
    if stand_in.is_on() and not folder:
        folder = new_folder(runs(), f"{machine['device_name']} tune")
    elif folder:
        require_writable(folder, "--into")
    broken, stopped = 0, False
    try:
        broken = _tune_and_store(the_plan, cases, header, seconds, folder)
    except KeyboardInterrupt:
        stopped = True
    finally:
        if folder:
            remove_if_empty(folder)
    if stopped:
        return ExitCode.STOPPED
    return ExitCode.FAULT if broken or unread else ExitCode.CLEAN


def _tune_and_store(
    the_plan: Plan,
    cases: Sequence[Case],
    header: Mapping,
    seconds: float,
    folder: Path | None,
) -> int:
    """Time the candidates of the cases and write the winners; how many candidates were
    broken.

    Stopped by Ctrl-C it writes what it has, and is stopped all the same.
    """
    from batchline.bench import device_tables
    from batchline.bench.measure.worker.isolation import Isolation

    started, broken = time.monotonic(), 0
    winners: dict[Path, dict[str, list[dict]]] = {}
    isolation = Isolation(the_plan.device, the_plan.profile.deadline_s)
    try:
        for case in cases:
            winner, failed = _winner(
                isolation, the_plan.ops[case.op], case, header["clock"], seconds
            )
            broken += failed
            if winner:
                path = device_tables.path_of(
                    the_plan.ops[case.op], "tuning", the_plan.device, folder
                )
                winners.setdefault(path, {}).setdefault(case.variant.name, []).append(
                    winner
                )
    finally:
        isolation.close()
        header = {**header, "seconds": round(time.monotonic() - started)}
        for path, by_variant in winners.items():
            _store(path, header, by_variant)
            print(
                f"{sum(map(len, by_variant.values()))} problems tuned in {header['seconds']} s: {path}"
            )
    return broken


def _winner(
    isolation: Isolation, op: DeclaredOp, case: Case, clock: str, seconds: float
) -> tuple[dict | None, int]:
    """The fastest configuration on a case's problem, as the file's entry, and how many
    candidates were broken.
    """
    from batchline.bench.measure.timing.sampling import Effort
    from batchline.bench.measure.worker.task import Task

    number, problem = next(
        (number, one)
        for number, one in enumerate(op.problems)
        if one.key == case.problem
    )
    configs = op.configs[case.variant.name][number]
    rule = configs[0]
    labels = [f"{case.id} {_written(config)}" for config in configs]
    effort = Effort(_PRECISION, seconds)
    outcomes = isolation.measure(
        Task(
            *case.problem,
            tuple((label, case.variant.name) for label in labels),
            (clock,),
            effort,
            effort,
            warm_up_s=0.03,
            configs=dict(zip(labels, configs)),
        )
    )
    times = [_median_s(outcomes[label]) for label in labels]
    for label in labels:
        if outcomes[label].status in BROKEN:
            print(
                f"{label}: {outcomes[label].status}: {outcomes[label].reason}",
                file=sys.stderr,
            )
    broken = sum(
        is_broken(outcomes[label].status, outcomes[label].reason) for label in labels
    )
    known = [
        (median_s, config)
        for median_s, config in zip(times, configs)
        if median_s is not None
    ]
    if not known:
        return None, broken
    best_s, best = min(known, key=lambda item: item[0])
    if times[0] is not None and best_s > _TIE * times[0]:
        best_s, best = times[0], rule
    gain = "" if times[0] is None else f", {units.ratio(times[0] / best_s)} the rule"
    print(
        f"{case.id}  {_written(best)}: {units.duration(best_s)}{gain}", file=sys.stderr
    )
    return {
        "traits": problem.traits,
        "sizes": list(problem.sizes),
        "config": best,
        "median_s": best_s,
        "rule_s": times[0],
        "tried": len(configs),
    }, broken


def _median_s(outcome: Outcome) -> float | None:
    return statistics.median(outcome.samples_s) if outcome.status == MEASURED else None


def _written(config: Mapping) -> str:
    return " ".join(f"{name}={value}" for name, value in config.items())


def _store(path: Path, header: Mapping, fresh: Mapping[str, Sequence[dict]]) -> None:
    """Put the fresh winners in place of those on the same problems; the others stay if
    the versions are the same.
    """
    from batchline.bench import device_tables

    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        before = {}
    if before.get("versions") != header["versions"]:
        before = {}
    header = {**header, "seconds": header["seconds"] + before.get("seconds", 0)}
    old = before.get("winners", {})
    merged = {
        name: list(_merged(old.get(name, ()), fresh.get(name, ())))
        for name in sorted({*old, *fresh})
    }
    blocks = [
        f"  {json.dumps(name)}: [\n"
        + ",\n".join(f"   {json.dumps(entry)}" for entry in entries)
        + "]"
        for name, entries in merged.items()
    ]
    device_tables.write(path, header, "\n".join(["{", ",\n".join(blocks), " }"]))


def _merged(old: Sequence[dict], fresh: Sequence[dict]) -> Iterator[dict]:
    problems = {(entry["traits"], *entry["sizes"]): entry for entry in (*old, *fresh)}
    yield from (problems[key] for key in sorted(problems))
