"""How long a run takes, as far as that is known beforehand: the order of its problems,
and how many of them it begins.

A profile with a budget begins as many problems as it is expected to have time for. They
come in an order in which a run that ends early has seen something of everything: every
scenario of every op in turn, and the ends of the batch axis before what lies between
them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from batchline.bench import units
from batchline.bench.cases import CLOCKS, Case, Plan, Profile
from batchline.bench.declared import Problem
from batchline.bench.measure import stand_in
from batchline.bench.measure.timing.sustained import is_sustained, window_s

ProblemKey = tuple[str, str, str, int]  # op, scenario, dtype, batch
CompileTime = Callable[
    [Sequence[Case]], float
]  # of what these cases need, and those asked for before do not


@dataclass(frozen=True)
class Costs:
    """What a run takes beside the samples that its profile asks for, on one kind of
    device.

    A case takes `case_s` for its checks, its memory and the fences, and as long as
    `calls` calls that do the problem's work at `flops_per_s` and `bytes_per_s`. A run
    takes `before_s` until its first case, and after its last one `after_s` and
    `after_share` of the time for the cases.
    """

    case_s: float
    calls: float
    flops_per_s: float
    bytes_per_s: float
    before_s: float
    after_s: float
    after_share: float


# Of a CPU: fitted to the quick run of 2026-11-29 in reports/evidence
# (tests/test_budget.py holds it against that run). Of a GPU nothing was measured yet:
# the host's part is the CPU's; by an A100's data sheet the rates are a third of its
# memory's (1.56 TB/s) and a tenth of its fp16 tensor cores' (312 TFLOP/s).
COSTS = {
    "cpu": Costs(
        case_s=0.145,
        calls=45,
        flops_per_s=1e11,
        bytes_per_s=2e10,
        before_s=21,
        after_s=20,
        after_share=0.25,
    ),
    "cuda": Costs(
        case_s=0.145,
        calls=45,
        flops_per_s=3e13,
        bytes_per_s=5e11,
        before_s=30,
        after_s=30,
        after_share=0.25,
    ),
}


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to take, in seconds: before its cases, to compile, for its
    cases, and after them.

    `problems_s`: the problems that there is time for, in their order, and what each
    takes. `left`: the others.
    """

    problems_s: Mapping[ProblemKey, float]
    left: frozenset[ProblemKey]
    before_s: float
    compile_s: float
    after_s: float

    @property
    def cases_s(self) -> float:
        return sum(self.problems_s.values())

    @property
    def total_s(self) -> float:
        return self.before_s + self.compile_s + self.cases_s + self.after_s

    def as_dict(self) -> dict[str, float]:
        """The seconds by part, as a run's record has them."""
        parts = "before_s", "compile_s", "cases_s", "after_s"
        return {part: round(getattr(self, part), 1) for part in parts}


class Schedule:
    """Which problems a run begins: those that it is expected to have time for, and none
    once its time is up.

    `spent_s` tells how long ago the run began. `devices` measure problems at a time. On
    the stand-in, whose kernels are emulated, there is no budget.
    """

    def __init__(self, the_plan: Plan, spent_s: Callable[[], float], devices: int = 1):
        self.of = the_plan
        self._devices = devices
        self._spent_s = spent_s
        self._begun: set[ProblemKey] = set()
        self._cases_from_s = 0.0
        self.forecast: Forecast | None = None
        self.budget_s = (
            None if stand_in.is_on() else the_plan.profile.budget_s[the_plan.device]
        )

    def plan(self, cases: Iterable[Case], compile_s: CompileTime) -> Forecast:
        """What these cases, which can be timed, take in their order; `compile_s` as for
        `forecast`.
        """
        problems: dict[ProblemKey, list[Case]] = {}
        for case in cases:
            problems.setdefault(case.problem, []).append(case)
        before_s = max(COSTS[self.of.device].before_s, self._spent_s())
        self.forecast = forecast(
            self.of, problems, self.budget_s, compile_s, before_s, self._devices
        )
        return self.forecast

    def also(self, more: Plan) -> Schedule:
        """The schedule of another plan in the same run."""
        return Schedule(more, self._spent_s, self._devices)

    def begin(self) -> None:
        """The first case comes next."""
        self._cases_from_s = self._spent_s()

    def why_not(self, problem: ProblemKey) -> str | None:
        """Why a problem that comes up now has no time; None where it has, or has begun."""
        if problem in self._begun:
            return None
        if self.forecast and problem in self.forecast.left or self._is_over():
            return f"beyond {self.name}: a narrower K, or PROFILE=full, has time for it"
        self._begun.add(problem)
        return None

    def within_budget(self, left_s: float) -> float:
        """An estimate of what is left of the run, and no more than its budget has."""
        if self.budget_s is None:
            return left_s
        return min(left_s, max(0.0, self.budget_s - self._spent_s()))

    @property
    def name(self) -> str:
        """The budget as a reader knows it."""
        return f"the {units.clock(self.budget_s)} of PROFILE={self.of.profile.name}"

    def _is_over(self) -> bool:
        if self.budget_s is None:
            return False
        spent_s = self._spent_s()
        return (
            spent_s
            + after_s(self.of.device, self._devices * (spent_s - self._cases_from_s))
            > self.budget_s
        )


def in_turns(problems: Iterable[ProblemKey]) -> list[ProblemKey]:
    """The problems in the order in which they are measured.

    Ops take turns, and in an op its scenarios. A scenario begins with the smallest
    batch and the largest of its first dtype; each further dtype follows a round later.
    """
    ops: dict[str, dict[str, list[ProblemKey]]] = {}
    for problem in dict.fromkeys(problems):
        ops.setdefault(problem[0], {}).setdefault(problem[1], []).append(problem)
    scenarios = _dealt(scenarios.values() for scenarios in ops.values())
    return _dealt(_batches_apart(scenario) for scenario in scenarios)


def forecast(
    the_plan: Plan,
    problems: Mapping[ProblemKey, Sequence[Case]],
    budget_s: float | None,
    compile_s: CompileTime,
    before_s: float,
    devices: int = 1,
) -> Forecast:
    """What measuring these problems takes, and which of them there is time for in
    `budget_s` (None: for all).

    Args:
        problems: the cases to time by problem, in the order of their turn.
        compile_s: asked of each problem's cases, up to the first problem that there is
        no time for. before_s: from the run's begin to its first case, without the
        compiling. devices: how many take problems at a time; a problem counts as its
        share of their time.
    """
    work = {
        problem.key: problem for op in the_plan.ops.values() for problem in op.problems
    }
    device = the_plan.device
    compiling_s = cases_s = 0.0
    problems_s: dict[ProblemKey, float] = {}
    for key, cases in problems.items():
        alone_s = expected_s(the_plan.profile, device, work[key], len(cases))
        problem_s = alone_s / devices
        longer_s = compiling_s + compile_s(cases)
        total_s = (
            before_s
            + longer_s
            + cases_s
            + problem_s
            + after_s(device, devices * (cases_s + problem_s))
        )
        if budget_s is not None and total_s > budget_s and problems_s:
            break
        compiling_s = longer_s
        cases_s += problem_s
        problems_s[key] = problem_s
    left = frozenset(problems) - problems_s.keys()
    return Forecast(
        problems_s, left, before_s, compiling_s, after_s(device, devices * cases_s)
    )


def after_s(device: str, cases_s: float) -> float:
    """Seconds that a run takes after its cases, which took `cases_s` on all its devices
    together: one of them does it alone.
    """
    return COSTS[device].after_s + COSTS[device].after_share * cases_s


def expected_s(profile: Profile, device: str, problem: Problem, cases: int) -> float:
    """Seconds that so many cases of a problem take."""
    costs = COSTS[device]
    call_s = max(
        problem.flops / costs.flops_per_s, problem.least_bytes / costs.bytes_per_s
    )
    samples_s = (
        profile.warm_up_s
        + profile.sampling_s
        + (len(CLOCKS[device]) - 1) * profile.other_clocks_s
    )
    if device == "cuda" and is_sustained(problem.flops):
        samples_s += window_s()
    return cases * (
        samples_s + costs.case_s + costs.calls * min(call_s, profile.longest_call_s)
    )


def _batches_apart(problems: Sequence[ProblemKey]) -> list[ProblemKey]:
    """The problems of a scenario: batch sizes far apart first, and each further dtype a
    round later.
    """
    dtypes = list(dict.fromkeys(problem[2] for problem in problems))
    place = {
        batch: number
        for number, batch in enumerate(
            _ends_first(sorted({problem[3] for problem in problems}))
        )
    }

    def turn(problem: ProblemKey) -> tuple[int, int]:
        late = dtypes.index(problem[2])
        return place[problem[3]] + late, late

    return sorted(problems, key=turn)


def _ends_first(values: Sequence[int]) -> list[int]:
    """The first value, the last one, then the middle of each gap, the widest gaps
    first.
    """
    order = [values[0]] if len(values) == 1 else [values[0], values[-1]]
    gaps = deque([(0, len(values) - 1)])
    while gaps:
        low, high = gaps.popleft()
        middle = (low + high) // 2
        if low < middle:
            order.append(values[middle])
            gaps += [(low, middle), (middle, high)]
    return order


def _dealt(piles: Iterable[Iterable]) -> list:
    """One from each pile in turn, until all are dealt."""
    nothing = object()
    return [
        one
        for row in zip_longest(*piles, fillvalue=nothing)
        for one in row
        if one is not nothing
    ]
