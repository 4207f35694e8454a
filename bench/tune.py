"""`batchline tune`: time the configurations of every variant that has several, and keep the
winners beside the kernels.
"""

from __future__ import annotations

import datetime
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from batchline.bench import device_tables, units
from batchline.bench.cases import CLOCKS, Case, Plan, broken_lines, plan
from batchline.bench.declared import DeclaredOp
from batchline.bench.folders import new_folder, remove_if_empty
from batchline.bench.measure import environment, stand_in
from batchline.bench.measure.isolation import Isolation
from batchline.bench.measure.sampling import Effort
from batchline.bench.measure.task import Outcome, Task
from batchline.bench.records import BROKEN, MEASURED, is_broken
from batchline.bench.selection import selected

CLEAN, BROKEN_CASES, NOTHING_TUNED = 0, 1, 3
RUNS = Path("reports", "runs")
_PRECISION = 0.01
_TIE = 0.98  # a winner must take less than this of the rule's time: under that it is noise, and the rule is simpler


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
        return NOTHING_TUNED
    machine = environment.machine(device)
    header = {
        **device_tables.provenance(machine),
        "clock": CLOCKS[device][0],
        "measured": datetime.date.today().isoformat(),
    }
    if stand_in.is_on() and not folder:
        folder = new_folder(RUNS, f"{machine['device_name']} tune")
    broken = 0
    try:
        broken = _tune_and_store(the_plan, cases, header, seconds, folder)
    except KeyboardInterrupt:
        print("stopped: what was tuned until now is kept", file=sys.stderr)
    finally:
        if folder:
            remove_if_empty(folder)
    return BROKEN_CASES if broken or unread else CLEAN


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
    number, problem = next(
        (number, one)
        for number, one in enumerate(op.problems)
        if one.key == case.problem
    )
    configs = op.configs[case.variant.name][number]
    rule = configs[0]
    labels = [f"{case.id} {_words(config)}" for config in configs]
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
    print(f"{case.id}  {_words(best)}: {units.duration(best_s)}{gain}", file=sys.stderr)
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


def _words(config: Mapping) -> str:
    return " ".join(f"{name}={value}" for name, value in config.items())


def _store(path: Path, header: Mapping, fresh: Mapping[str, Sequence[dict]]) -> None:
    """Put the fresh winners in place of those on the same problems; the others stay if
    the versions are the same.
    """
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
