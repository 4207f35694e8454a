"""`batchline aa`: each baseline against itself, in turns, as two variants would be: the
spread on identical code.

A difference between two variants that is smaller than this one is noise.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tabulate import tabulate

from batchline.bench import publishing, units
from batchline.bench.cases import CLOCKS, Case, broken_lines, plan
from batchline.bench.console import complain
from batchline.bench.errors import UsageError
from batchline.bench.files import write_whole
from batchline.bench.folders import require_writable
from batchline.bench.measure import environment
from batchline.bench.measure.isolation import Isolation
from batchline.bench.measure.sampling import Effort
from batchline.bench.measure.task import Task
from batchline.bench.records import BROKEN, MEASURED
from batchline.bench.stopping import put_off

FILE_NAME = "a-a.json"
CLEAN, BROKEN_CASES, NOTHING_MEASURED, INTERRUPTED = 0, 1, 3, 130
_PRECISION = 0.005
_MOST_SAMPLES = (
    20_000  # short samples: the two are in turns every few hundred microseconds
)
_WITHIN = 0.02
_FROM_S = 60e-6  # below this a caller's own jitter is percents
_WORST_SHOWN = 8


@dataclass(frozen=True)
class Pair:
    """One case measured twice. Medians in seconds; the difference is of the second from
    the first, as a share.
    """

    case: str
    status: str
    reason: str = ""
    first_s: float | None = None
    second_s: float | None = None
    precision: float | None = None
    samples: int | None = None

    @property
    def difference(self) -> float:
        return self.second_s / self.first_s - 1


def run(profile: str, device: str, seconds: float, folder: Path | None = None) -> int:
    """Measure every baseline of the profile against itself and print the result; write
    a-a.json into `folder`.

    Args:
        seconds: the most that each of the two is timed for in one case.

    Raises:
        UsageError: for an unknown profile or device, or a folder that can't be written.
    """
    try:
        device = environment.resolve_device(device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    the_plan = plan(profile, device)
    for line in broken_lines(the_plan):
        print(line, file=sys.stderr)
    machine = environment.machine(device)
    effort = Effort(_PRECISION, seconds, most=_MOST_SAMPLES)
    if folder:
        require_writable(folder)
    isolation = Isolation(device, the_plan.profile.deadline_s)
    pairs, stopped = _until_stopped(
        _pairs(
            isolation,
            the_plan.cases,
            CLOCKS[device][0],
            effort,
            the_plan.profile.warm_up_s,
        )
    )
    isolation.close()
    document = {
        "machine": machine,
        "profile": profile,
        "clock": CLOCKS[device][0],
        "effort": asdict(effort),
        "partial": stopped,
        "pairs": [asdict(pair) for pair in pairs],
    }
    if folder and pairs:
        with put_off():
            publishing.store(
                lambda place: write_whole(
                    place / FILE_NAME, json.dumps(document, indent=0)
                ),
                folder,
            )
    if pairs:
        print(summary(pairs, machine["device_name"], CLOCKS[device][0]))
    if stopped:
        complain(
            f"stopped after {len(pairs)} cases" + (", which are kept" if pairs else "")
        )
        return INTERRUPTED
    statuses = {pair.status for pair in pairs}
    if MEASURED not in statuses:
        return NOTHING_MEASURED
    return CLEAN if statuses == {MEASURED} and not the_plan.broken else BROKEN_CASES


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
    for case in cases:
        if not case.variant.is_baseline or (
            case.refusal and case.refusal[0] not in BROKEN
        ):
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


def summary(pairs: Sequence[Pair], device_name: str, clock: str) -> str:
    """The worst cases as a table, then the share of the cases over 60 µs whose two
    medians differ by less than 2%.
    """
    timed = [pair for pair in pairs if pair.status == MEASURED]
    judged = sorted(
        (pair for pair in timed if pair.first_s > _FROM_S),
        key=lambda pair: -abs(pair.difference),
    )
    if not judged:
        return f"No baseline takes more than {units.duration(_FROM_S)} here: nothing to judge an A/A by."
    table = tabulate(
        [
            [
                pair.case,
                units.duration(pair.first_s),
                f"{pair.difference:+.2%}",
                f"±{pair.precision:.1%}",
                pair.samples,
            ]
            for pair in judged[:_WORST_SHOWN]
        ],
        headers=[
            "the largest differences",
            "median",
            "difference",
            "known to",
            "samples of each",
        ],
        disable_numparse=True,
    )
    within = sum(abs(pair.difference) < _WITHIN for pair in judged)
    middle = statistics.median(abs(pair.difference) for pair in judged)
    return (
        f"{table}\n\nA/A by {clock} on {device_name}: {within} of {len(judged)} cases over "
        f"{units.duration(_FROM_S)} ({within / len(judged):.1%}) differ by less than {_WITHIN:.0%} in the median; "
        f"half of them by less than {middle:.2%}; {len(pairs) - len(timed)} not measured"
    )
