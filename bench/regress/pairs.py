"""Pairs of fresh processes, one with each revision's kernels: both alive, timed in turns,
compared case by case; and how much each case's latency changes on identical code on
this machine, as `batchline selftest` keeps it.

A process has its luck (where its code and data lie); a pair of fresh ones draws it
anew. Turns of milliseconds, in the order A B B A, let the machine's drift meet both
alike. One pair follows another until every case has its verdict: whoever has one is not
measured again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from batchline.bench.cases import CLOCKS, Plan, Profile, plan
from batchline.bench.errors import UsageError
from batchline.bench.folders import baselines
from batchline.bench.measure.machine import state as machine_state
from batchline.bench.measure.reading.sources import launch_digest
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker.isolation import Isolation
from batchline.bench.measure.worker.task import Outcome, Task, WorkerLost
from batchline.bench.statuses import (
    BROKEN,
    FAILED,
    INVALID,
    MEASURED,
    THE_MACHINE_WAS,
    parse_case_id,
)
from batchline.bench.store import files
from batchline.bench.store.regressions import ACCURACY, LATENCY, MEMORY
from batchline.bench.verdicts.gate import LAST_PAIR, STAGES
from batchline.bench.verdicts.paired import BASE, BOTH, HEAD, Evidence
from batchline.kernels.device_names import slug

_QUADS = 5  # of turns A B B A, for each case in a pair
_LEAST_QUADS = 3  # that were not throttled
_TURN_S = 0.008
_EFFORT = Effort(
    precision=0.05, seconds=0.05, most=200
)  # of the first look; a sample in a turn is as long as its
_PAUSES_S = (0.1, 0.3, 1.0, 3.0)  # for a machine that is throttled
_BUSY_PAUSES_S = (1, 5, 20)
_FACTS = (
    (MEMORY, "peak_bytes", 1),
    (ACCURACY, "error_of_tolerance", 0.01),
)  # and what is as good as none
BASE_SIDE, HEAD_SIDE = 0, 1
INTERRUPTED = "stopped by Ctrl-C"
FORMAT = 1
_AGAIN = "`batchline selftest` measures it anew"
_PARTS = ("machine", "profile", "sessions", "noise")


@dataclass(frozen=True)
class Entry:
    """One case to compare: its label in the results, its case id, and the share of its
    time that head takes more.

    `planted` is 0 but where a gate is to be proved.
    """

    label: str
    case_id: str
    planted: float = 0.0


@dataclass(frozen=True)
class Compared:
    """One entry in one pair: what became of it on each side, and each side's time in
    seconds.

    `ratio` is the natural logarithm of head's time over the base's. All three are None
    where a side has no time.
    """

    base: Outcome
    head: Outcome
    base_s: float | None = None
    head_s: float | None = None
    ratio: float | None = None

    @property
    def figures(self) -> dict[str, tuple[float, float, float]]:
        """By quantity: base's, head's, and the natural logarithm of head over base; {}
        where a side has no time.
        """
        if self.ratio is None:
            return {}
        found = {LATENCY: (self.base_s, self.head_s, self.ratio)}
        for quantity, fact, least in _FACTS:
            base, head = self.base.facts[fact], self.head.facts[fact]
            if base is not None and head is not None:
                base, head = max(base, least), max(head, least)
                found[quantity] = base, head, math.log(head / base)
        return found

    @property
    def failure(self) -> tuple[str, str] | None:
        """The side without a time (bench.verdicts.paired) and why, or None."""
        return failure(self.base, self.head) if self.ratio is None else None


class Pairs:
    """Measures pairs on one device.

    `trees` are the folders whose `kernels` are the base's and the head's; None is the
    one beside this `bench`. Where the ops of another repository are measured, they are
    trees of that.
    """

    def __init__(
        self, device: str, profile: Profile, trees: tuple[Path | None, Path | None]
    ):
        self._device, self._profile, self._trees = device, profile, trees
        self._broken: tuple[dict[str, Outcome], dict[str, Outcome]] = (
            {},
            {},
        )  # by side, then by case id
        self.baselines: dict[str, str] = {}  # of the head's ops, by op
        self.states: list[dict] = (
            []
        )  # bench.store.regressions.Regression.states, of the pairs until now

    def plans(self) -> tuple[dict[str, dict], dict[str, dict]]:
        """Every case that the base and the head have in the profile, by id: its
        "refusal" (status and reason, or None), and a digest of what it launches
        ("code"). The head's `baselines` are known from then on.

        A case whose file is broken is not refused: it ends so when it is first to be
        measured.

        Raises:
            RuntimeError: if a side's kernels can't be measured by this bench.
        """
        base, head = (self._plan(tree) for tree in self._trees)
        self.baselines = {op.name: op.baseline for op in head.ops.values()}
        self._broken = tuple(
            {
                case.id: Outcome(*case.refusal)
                for case in side.cases
                if case.refusal and case.refusal[0] in BROKEN
            }
            for side in (base, head)
        )
        return tuple(map(self._coded, (base, head), self._trees))

    def _plan(self, tree: Path | None) -> Plan:
        try:
            return plan(self._profile.name, self._device, tree=tree)
        except UsageError as error:
            raise RuntimeError(str(error)) from error

    def _coded(self, the_plan: Plan, tree: Path | None) -> dict[str, dict]:
        codes = {
            variant.id: launch_digest(variant, self._device, tree)
            for variant in {
                case.variant.id: case.variant for case in the_plan.cases
            }.values()
        }
        return {
            case.id: {
                "refusal": (
                    None if case.refusal and case.refusal[0] in BROKEN else case.refusal
                ),
                "code": codes[case.variant.id],
            }
            for case in the_plan.cases
        }

    def first(self, side: int, entries: Sequence[Entry]) -> dict[str, Outcome]:
        """What becomes of each on one side when it is first measured: checked on its
        op's probes, and compiled.
        """
        broken = self._broken[side]
        found = {
            entry.label: broken[entry.case_id]
            for entry in entries
            if entry.case_id in broken
        }
        with contextlib.closing(self._process(side)) as process:
            for problem in _by_problem(
                [entry for entry in entries if entry.case_id not in broken]
            ):
                found |= process.measure(self._task(problem, side, probes=True))
        return found

    def pair(self, entries: Sequence[Entry], number: int) -> dict[str, Compared]:
        """The entries in two fresh processes; `number` counts the pairs, and decides
        which side goes first.

        A pair in which others had a good part of the cores is measured anew; one after
        the last pause has no times.
        """
        for pause_s in (*_BUSY_PAUSES_S, None):
            before = machine_state.read()
            compared = {}
            with self._two_processes() as sides:
                for problem in _by_problem(entries):
                    compared |= self._problem(sides, problem, number)
            why = machine_state.why_too_busy(before, machine_state.read())
            if not why:
                return compared
            if pause_s is not None:
                print(f"pair {number + 1} is measured again: {why}", file=sys.stderr)
                time.sleep(pause_s)
        lost = Outcome(INVALID, f"{THE_MACHINE_WAS}busy: {why}")
        return dict.fromkeys(compared, Compared(lost, lost))

    def _problem(
        self, sides: Sequence[Isolation], problem: Sequence[Entry], number: int
    ) -> dict[str, Compared]:
        try:
            tasks = [
                self._task(problem, side, probes=False)
                for side in (BASE_SIDE, HEAD_SIDE)
            ]
            ready = set.intersection(*map(set, _both(sides, "hold", *tasks)))
            turns = {entry.label: _Turns() for entry in problem if entry.label in ready}
            for quad in range(_QUADS):
                for label, taken in turns.items():
                    _take_quad(sides, label, taken, (number + quad) % 2)
            for pause_s in _PAUSES_S:
                if short := [
                    label for label, taken in turns.items() if taken.wants_more
                ]:
                    time.sleep(pause_s)
                    for label in short:
                        _take_quad(sides, label, turns[label], number % 2)
            (base, base_state), (head, head_state) = _both(sides, "release")
            self._log(number, problem, (base_state, head_state), turns.values())
        except (WorkerLost, RuntimeError) as error:
            for side in sides:  # the other one may still be at it
                side.close()
            lost = Outcome(
                getattr(error, "status", FAILED), f"in pair {number + 1}: {error}"
            )
            return dict.fromkeys(
                (entry.label for entry in problem), Compared(lost, lost)
            )
        return {
            entry.label: _compared(
                base[entry.label], head[entry.label], turns.get(entry.label)
            )
            for entry in problem
        }

    def _log(
        self,
        number: int,
        problem: Sequence[Entry],
        states: Sequence[Mapping],
        turns: Iterable[_Turns],
    ) -> None:
        op, _, *rest = problem[0].case_id.split("/")
        base, head = (
            {name: value for name, value in state.items() if name != "others_share"}
            for state in states
        )
        self.states.append(
            {
                "pair": number + 1,
                "problem": "/".join((op, *rest)),
                "base": base,
                "head": head,
                "throttled": dict(
                    Counter(reason for taken in turns for reason in taken.throttled)
                ),
            }
        )

    def _task(self, problem: Sequence[Entry], side: int, probes: bool) -> Task:
        parts = [parse_case_id(entry.case_id) for entry in problem]
        return Task(
            *(parts[0][key] for key in ("op", "scenario", "dtype", "batch")),
            tuple(
                (entry.label, part["variant"]) for entry, part in zip(problem, parts)
            ),
            CLOCKS[self._device][:1],
            _EFFORT,
            _EFFORT,
            self._profile.warm_up_s,
            longest_call_s=self._profile.longest_call_s,
            probes=probes,
            planted={
                entry.label: entry.planted
                for entry in problem
                if entry.planted and side == HEAD_SIDE
            },
        )

    @contextlib.contextmanager
    def _two_processes(self) -> Iterator[list[Isolation]]:
        """A fresh worker of each side; they start at the same time."""
        with contextlib.ExitStack() as stack:
            yield [
                stack.enter_context(contextlib.closing(self._process(side)))
                for side in (BASE_SIDE, HEAD_SIDE)
            ]

    def _process(self, side: int) -> Isolation:
        return Isolation(self._device, self._profile.deadline_s, self._trees[side])


@dataclass
class _Turns:
    """The turns of one entry: the logarithm of head over base of each quad, and each
    side's medians in seconds.
    """

    ratios: list[float] = field(default_factory=list)
    medians_s: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    throttled: list[str] = field(
        default_factory=list
    )  # why, of each turn that was dropped for it
    ended: bool = False

    @property
    def wants_more(self) -> bool:
        return not self.ended and len(self.ratios) < _LEAST_QUADS


def _take_quad(
    sides: Sequence[Isolation], label: str, taken: _Turns, first: int
) -> None:
    """One turn of the side that is first, two of the other, one of the first again."""
    medians_s: tuple[list[float], list[float]] = ([], [])
    for side in (first, 1 - first, 1 - first, first):
        samples_s, throttled = sides[side].call("turn", label, _TURN_S)
        if throttled or not samples_s:
            taken.throttled += [throttled] if throttled else []
            taken.ended = not samples_s
            return
        medians_s[side].append(statistics.median(samples_s))
    logs = [sum(map(math.log, of_side)) / 2 for of_side in medians_s]
    taken.ratios.append(logs[HEAD_SIDE] - logs[BASE_SIDE])
    for kept, new in zip(taken.medians_s, medians_s):
        kept += new


def _compared(base: Outcome, head: Outcome, taken: _Turns | None) -> Compared:
    if not taken or base.status != MEASURED or head.status != MEASURED:
        return Compared(base, head)
    if len(taken.ratios) < _LEAST_QUADS:
        throttled = Outcome(
            INVALID,
            f"{THE_MACHINE_WAS}throttled in too many turns ({', '.join(dict.fromkeys(taken.throttled))})",
        )
        return Compared(throttled, throttled)
    return Compared(
        base,
        head,
        *map(statistics.median, taken.medians_s),
        statistics.median(taken.ratios),
    )


def failure(base: Outcome, head: Outcome) -> tuple[str, str] | None:
    """Which of two outcomes is not a measurement (BASE, HEAD or BOTH), and how it
    ended; None where both are.
    """
    broken = [
        (side, f"{outcome.status}: {outcome.reason}")
        for side, outcome in ((BASE, base), (HEAD, head))
        if outcome.status != MEASURED
    ]
    if not broken:
        return None
    return (BOTH, broken[-1][1]) if len(broken) > 1 else broken[0]


def _both(sides: Sequence[Isolation], method: str, *arguments) -> list:
    """Both sides' answers, worked on at the same time. Each has its own of two
    arguments, or one that both share.
    """
    for number, side in enumerate(sides):
        side.ask(
            method,
            *(arguments[number : number + 1] if len(arguments) > 1 else arguments),
        )
    return [side.answer() for side in sides]


def _by_problem(entries: Sequence[Entry]) -> list[list[Entry]]:
    problems: dict[tuple, list[Entry]] = {}
    for entry in entries:
        parts: Mapping = parse_case_id(entry.case_id)
        problems.setdefault(
            (parts["op"], parts["scenario"], parts["dtype"], parts["batch"]), []
        ).append(entry)
    return list(problems.values())


@dataclass(frozen=True)
class Family:
    """Cases that are judged together, and the entry that each is measured by;
    `controls` are in every pair.
    """

    evidence: Evidence
    entries: Mapping[str, Entry]
    controls: bool = False


def measure_in_stages(
    pairs: Pairs,
    families: Sequence[Family],
    until_s: float | None = None,
    now=time.monotonic,
) -> tuple[int, str]:
    """Measure until nothing is open, and add what is found to the families' evidence.

    `until_s`: the time by `now`, in seconds, at which no further pair is begun.

    Returns:
        How many pairs were measured, and why it ended early, "" if it did not.
    """
    started_s = now()
    for number in range(LAST_PAIR):
        waiting = _waiting(families)
        if not any(not family.controls for family, _ in waiting):
            return number, ""
        pair_s = (now() - started_s) / max(number, 1)
        if until_s is not None and now() + pair_s > until_s:
            return number, f"the time was up after {number} pairs"
        _tell(number, sum(not family.controls for family, _ in waiting), pair_s)
        try:
            compared = pairs.pair(
                [family.entries[case] for family, case in waiting], number
            )
        except KeyboardInterrupt:
            return number, INTERRUPTED
        for family, case in waiting:
            add_pair(family.evidence, case, compared[family.entries[case].label])
    return LAST_PAIR, ""


def add_pair(evidence: Evidence, case: str, compared: Compared) -> None:
    """What one pair gave of a case."""
    if compared.failure:
        evidence.add_failure(case, *compared.failure)
    else:
        evidence.add(case, compared.figures)


def _waiting(families: Sequence[Family]) -> list[tuple[Family, str]]:
    return [
        (family, case)
        for family in families
        for case in (family.entries if family.controls else family.evidence.open())
    ]


def _tell(number: int, cases: int, pair_s: float) -> None:
    stage = next((stage for stage in STAGES if number < stage), LAST_PAIR)
    pace = f", {pair_s:.0f} s a pair" if number else ""
    print(
        f"pair {number + 1} of {stage}: {cases} case{'s' if cases != 1 else ''}{pace}",
        file=sys.stderr,
    )


@contextlib.contextmanager
def compile_once() -> Iterator[None]:
    """What Triton's autotuner finds in the first processes is kept on disk, and pinned
    for all that follow.
    """
    before = os.environ.get("TRITON_CACHE_AUTOTUNING")
    os.environ["TRITON_CACHE_AUTOTUNING"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TRITON_CACHE_AUTOTUNING"]
        else:
            os.environ["TRITON_CACHE_AUTOTUNING"] = before


def path(machine: Mapping) -> Path:
    """Where the noise of the machine (bench.measure.machine.environment.machine) is kept."""
    return baselines() / f"noise-{slug(machine['device_name'])}.json"


def load_noise(machine: Mapping) -> dict[str, float]:
    """The 99th percentile of each case's A/A change, as a share, by case id; {} where
    it was not measured here.

    Raises:
        files.SealBroken: if the file is damaged, was edited by hand, or is of another
        format or machine.
    """
    file = path(machine)
    document = files.load_sealed(file, FORMAT, _AGAIN, _PARTS)
    if document is None:
        return {}
    if document["machine"] != identity(machine):
        raise files.SealBroken(
            f"{file.name} is of another machine "
            f"({files.differing(document['machine'], identity(machine))}): {_AGAIN}"
        )
    return document["noise"]


def save_noise(
    machine: Mapping, profile: str, sessions: int, noise: Mapping[str, float]
) -> Path:
    """Keep the noise that so many A/A sessions found."""
    document = {
        "machine": identity(machine),
        "profile": profile,
        "sessions": sessions,
        "noise": dict(noise),
    }
    sealed_document = {
        "format": FORMAT,
        "digest": files.digest(*(document[name] for name in _PARTS)),
        **document,
    }
    file = path(machine)
    file.parent.mkdir(parents=True, exist_ok=True)
    return files.write_whole(file, json.dumps(sealed_document, indent=1) + "\n")


def identity(machine: Mapping) -> dict:
    """What the noise depends on of a machine's description."""
    return {name: machine[name] for name in ("device_name", "cpu", "cpu_cores")}
