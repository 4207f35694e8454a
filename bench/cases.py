"""What is measured: profile x op x scenario x dtype x batch x variant → Case, in the order
in which they run.

The variant changes fastest: all variants of one problem are measured together, and
share its inputs and reference. What there is to measure is read by bench.catalogue; no
file of an op is imported here.

Profile `evidence` has a fixed list of problems: about 400 cases on a GPU, over every
op. Each group (an op's scenario in a dtype) has the profile's batch sizes and the two
next to its crossover: the powers of two around the batch size at which a problem's work
takes as long as a launch, by the nominal rates of an H100. All problems at the first
batch size come before those at the next, in turns over the ops, so that a run which is
cut has some of each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from batchline.bench import catalogue
from batchline.bench.declared import (
    BrokenFile,
    Catalogue,
    Declared,
    DeclaredOp,
    Problem,
    Refusal,
)
from batchline.bench.errors import UsageError
from batchline.bench.measure import stand_in
from batchline.bench.statuses import NOT_HERE, case_id
from batchline.kernels.backends import PEERS
from batchline.kernels.op import FP8

GROUPS = {
    "bmm": (
        ("linear_forward", "float16"),
        ("square_1024", "float32"),
        ("tiny_16", "float16"),
    ),
    "grad_reduce": (
        ("transformer_block", "float16"),
        ("linear_512", "float32"),
        ("layer_norm", "float16"),
    ),
    "grad_reduce_multi": (("gpt2_block", "float16"), ("layer_norms", "float32")),
    "grad_stats": (("transformer_block", "float16"), ("linear_512", "float32")),
    "wgrad_stats": (("linear_512_T1", "float16"), ("linear_512_T128", "float32")),
}
"""By op, what is bound by memory or arithmetic first. Every variant takes one of them; an op that is not here has its
first scenario."""
_LAUNCH_S = 5e-6
_BYTES_PER_S = 3e12
_FLOPS_PER_S = {"float16": 5e14, "float32": 5e13}
_SMALLEST, _LARGEST = 2, 2**12  # of a neighbour

Key = tuple[str, str, str, int]  # as bench.declared.Problem.key
CLOCKS = {
    "cpu": ("host", "host_cold"),
    "cuda": ("device_cold", "device_hot", "graph", "host"),
}
"""The clocks of each device. The first is the one that variants are ranked by, unless a run names others."""
_ALL_DTYPES = ("float32", "float16", "bfloat16")
_POWERS = tuple(2**power for power in range(13))


def fixed_problems(ops: Mapping[str, DeclaredOp], batches: Sequence[int]) -> list[Key]:
    """The list, in the order in which it is measured.

    Args:
        ops: with all their problems at batch 1, in each of the dtypes that the device
        is measured in. batches: the sizes that every group has.
    """
    groups = list(_in_turns([_chosen(op) for op in ops.values() if op.problems]))
    sizes = [tuple(dict.fromkeys((*batches, *neighbours(one)))) for one in groups]
    rows = itertools.zip_longest(*sizes)
    return [
        (*one.key[:3], batch)
        for row in rows
        for one, batch in zip(groups, row)
        if batch
    ]


def neighbours(one: Problem) -> tuple[int, int]:
    """The powers of two below and above the batch at which as many of `one` (of batch
    1) take as long as a launch.
    """
    rate = _FLOPS_PER_S.get(one.dtype, _FLOPS_PER_S["float32"])
    sample_s = max(one.flops / rate, one.least_bytes / _BYTES_PER_S)
    below = 2 ** math.floor(math.log2(max(1.0, _LAUNCH_S / sample_s)))
    below = min(max(below, _SMALLEST), _LARGEST // 2)
    return below, 2 * below


def _chosen(op: DeclaredOp) -> list[Problem]:
    """The op's groups, each by its problem at batch 1; in the first dtype that there is
    where its own is not.
    """
    by_group = {(problem.scenario, problem.dtype): problem for problem in op.problems}
    first = op.problems[0]
    wanted = GROUPS.get(op.name, ((first.scenario, first.dtype),))
    chosen = [
        by_group.get((scenario, dtype)) or _of_scenario(op, scenario)
        for scenario, dtype in wanted
    ]
    return [one for one in chosen if one]


def _of_scenario(op: DeclaredOp, scenario: str) -> Problem | None:
    return next(
        (problem for problem in op.problems if problem.scenario == scenario), None
    )


def _in_turns(by_op: Sequence[Sequence[Problem]]) -> Iterator[Problem]:
    for row in itertools.zip_longest(*by_op):
        yield from (one for one in row if one)


@dataclass(frozen=True)
class Limits:
    """The largest problem a profile takes on a device, for one call."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Profile:
    """How much to measure, and how long it may take. Mappings are by device ("cpu",
    "cuda").

    A case's samples end when its median is known to ±`precision`, or after
    `sampling_s`; by every clock but the first after `other_clocks_s`. `details`: also
    the scenarios that fill in a range, and the variants that show a detail;
    `slow_starts`: also the variants that take seconds before their first call on a
    shape; `refines`: then more batch sizes, where the answer changes
    (bench.verdicts.crossovers). `energy_s` is the window for energy, 0 for none;
    `longest_call_s` the slowest call that is timed; `confirm_s` the longest one to
    confirm a memory law, 0 for none, and on a CPU in so many `confirm_bytes`, None for
    all there are; `deadline_s` the longest that one step of a case may take.
    `budget_s`: how long a whole run may take, None for as long as it takes
    (bench.running.budget). `fixed`: only the problems of bench.cases, without the noise,
    and of compiled facts only the pinned.
    """

    name: str
    batches: tuple[int, ...]
    dtypes: Mapping[str, tuple[str, ...]]
    limits: Mapping[str, Limits]
    details: bool
    slow_starts: bool
    refines: bool
    precision: float
    warm_up_s: float
    sampling_s: float
    other_clocks_s: float
    energy_s: float
    longest_call_s: float
    confirm_s: float
    confirm_bytes: int | None
    deadline_s: float
    budget_s: Mapping[str, float | None]
    fixed: bool = False


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "smoke",
            batches=(1, 3, 16),
            dtypes={"cpu": ("float32",), "cuda": ("float16",)},
            limits={"cpu": Limits(2e8, 2**24), "cuda": Limits(1e10, 2**27)},
            details=False,
            slow_starts=False,
            refines=False,
            precision=0.03,
            warm_up_s=0.01,
            sampling_s=0.05,
            other_clocks_s=0.03,
            energy_s=0,
            longest_call_s=0.05,
            confirm_s=0,
            confirm_bytes=None,
            deadline_s=60,
            budget_s={"cpu": None, "cuda": 120},
        ),
        Profile(
            "quick",
            batches=(1, 3, 8, 33, 64, 256, 1024, 4096),
            dtypes={"cpu": ("float32",), "cuda": ("float16", "float32")},
            limits={"cpu": Limits(2.5e9, 2**28), "cuda": Limits(6e11, 2**32)},
            details=False,
            slow_starts=False,
            refines=False,
            precision=0.01,
            warm_up_s=0.015,
            sampling_s=0.06,
            other_clocks_s=0.02,
            energy_s=0,
            longest_call_s=0.04,
            confirm_s=2,
            confirm_bytes=2**29,
            deadline_s=120,
            budget_s={"cpu": None, "cuda": 300},
        ),
        Profile(
            "full",
            batches=tuple(sorted({*_POWERS, 3, 33, 100, 257})),
            dtypes={"cpu": _ALL_DTYPES, "cuda": (*_ALL_DTYPES, FP8)},
            limits={"cpu": Limits(2e10, 2**31), "cuda": Limits(2e13, 2**35)},
            details=True,
            slow_starts=True,
            refines=True,
            precision=0.005,
            warm_up_s=0.2,
            sampling_s=2.0,
            other_clocks_s=0.5,
            energy_s=1.0,
            longest_call_s=30,
            confirm_s=30,
            confirm_bytes=None,
            deadline_s=600,
            budget_s={"cpu": None, "cuda": None},
        ),
        Profile(
            "evidence",
            batches=(1, 256, 16),
            dtypes={"cpu": ("float32",), "cuda": ("float16", "float32")},
            limits={"cpu": Limits(2.5e9, 2**28), "cuda": Limits(6e11, 2**32)},
            details=False,
            slow_starts=False,
            refines=False,
            precision=0.01,
            warm_up_s=0.015,
            sampling_s=0.06,
            other_clocks_s=0.02,
            energy_s=0,
            longest_call_s=0.04,
            confirm_s=0,
            confirm_bytes=None,
            deadline_s=60,
            budget_s={"cpu": None, "cuda": 420},
            fixed=True,
        ),
    )
}


@dataclass(frozen=True)
class Case:
    """One variant on one problem. `refusal` is (status, reason) when it is known
    beforehand that it can't be timed.
    """

    variant: Declared
    scenario: str
    dtype: str
    batch: int
    refusal: Refusal | None

    @property
    def op(self) -> str:
        return self.variant.op

    @property
    def id(self) -> str:
        return case_id(
            self.op, self.variant.name, self.scenario, self.dtype, self.batch
        )

    @property
    def problem(self) -> tuple[str, str, str, int]:
        """What the variants of one comparison share; they are timed in turns."""
        return self.op, self.scenario, self.dtype, self.batch


@dataclass(frozen=True)
class Plan:
    """The cases of a profile on a device, the problems that are over its limits, the
    ops of both, and what is none.
    """

    profile: Profile
    device: str
    cases: tuple[Case, ...]
    left_out: tuple[tuple[str, str, str, int], ...]
    ops: Mapping[str, DeclaredOp]
    broken: tuple[BrokenFile, ...]


def plan(
    profile_name: str,
    device: str,
    deadline_s: float | None = None,
    tree: Path | None = None,
    configs: bool = False,
) -> Plan:
    """Every case of the profile on the device.

    Args:
        deadline_s: the longest that a file may take to be imported; by default the
        profile's, and a minute at most. tree: the folder whose `kernels` are planned,
        where that is not the one beside this `bench`. configs: whether the ops tell the
        configurations of their tunable variants, too.

    Raises:
        UsageError: for an unknown profile, or if the ops can't be read.
    """
    profile = profile_named(profile_name)
    limits = _limits(profile, device)
    request = {
        "dtypes": profile.dtypes[device],
        "batches": (1,) if profile.fixed else profile.batches,
        "details": profile.details,
        "flops": limits.flops,
        "bytes": limits.bytes,
        "configs": configs,
    }
    read = catalogue.read(request, _deadline_s(profile, deadline_s), tree)
    if not profile.fixed:
        return of_catalogue(profile, device, read)
    listed = fixed_problems(read.ops, profile.batches)
    read = catalogue.read(
        request | {"problems": listed}, _deadline_s(profile, deadline_s), tree
    )
    return _in_order_of(listed, of_catalogue(profile, device, read))


def _in_order_of(listed: Sequence[tuple], the_plan: Plan) -> Plan:
    """The plan with its problems in the order of the list."""
    place = {problem: number for number, problem in enumerate(listed)}
    return replace(
        the_plan,
        cases=tuple(sorted(the_plan.cases, key=lambda case: place[case.problem])),
    )


def refined(
    the_plan: Plan, added: Mapping[tuple[str, str, str], Sequence[int]]
) -> Plan:
    """Batch sizes besides those of a plan, by op, scenario and dtype: for them alone,
    and all variants.
    """
    limits = _limits(the_plan.profile, the_plan.device)
    problems = [
        (*group, batch) for group, batches in added.items() for batch in batches
    ]
    if not problems:
        return Plan(the_plan.profile, the_plan.device, (), (), {}, ())
    request = {"problems": problems, "flops": limits.flops, "bytes": limits.bytes}
    return of_catalogue(
        the_plan.profile,
        the_plan.device,
        catalogue.read(request, _deadline_s(the_plan.profile, None)),
    )


def broken_lines(the_plan: Plan) -> list[str]:
    """A line for each file that is broken, whether its variant has cases or not."""
    variants = [
        variant
        for op in the_plan.ops.values()
        for variant in op.variants.values()
        if variant.broken
    ]
    return [
        *map(str, the_plan.broken),
        *(f"{variant.id}: {': '.join(variant.broken)}" for variant in variants),
    ]


def along(the_plan: Plan, chosen: Container[str]) -> set[str]:
    """The ids of cases that a choice of cases is compared with and lacks: on each
    problem that one of them is timed on, the baseline and the rungs below, as far as
    they can be timed.
    """
    by_problem: dict[tuple, dict[str, Case]] = {}
    for case in the_plan.cases:
        if not case.refusal:
            by_problem.setdefault(case.problem, {})[case.variant.name] = case
    wanted = set()
    for cases in by_problem.values():
        timed = [case.variant for case in cases.values() if case.id in chosen]
        below = {variant.builds_on for variant in timed}
        wanted |= {
            case.id
            for case in cases.values()
            if timed
            and case.id not in chosen
            and (case.variant.is_baseline or case.variant.name in below)
        }
    return wanted


def profile_named(name: str) -> Profile:
    """The profile of that name.

    Raises:
        UsageError: if there is none.
    """
    if name not in PROFILES:
        raise UsageError(f"unknown profile {name!r}: use {', '.join(PROFILES)}")
    return PROFILES[name]


def of_catalogue(profile: Profile, device: str, found: Catalogue) -> Plan:
    """The cases of the catalogue's problems, of all variants that it has."""
    cases = tuple(
        case for op in found.ops.values() for case in _cases(op, profile, device)
    )
    if device == "cuda" and stand_in.is_on():
        cases = _on_the_smallest(cases, found)
    left_out = tuple(
        problem.key for op in found.ops.values() for problem in op.left_out
    )
    return Plan(profile, device, cases, left_out, found.ops, found.broken)


def _cases(op: DeclaredOp, profile: Profile, device: str) -> Iterable[Case]:
    for number, problem in enumerate(op.problems):
        for variant in op.variants.values():
            refusal = variant.broken or op.refusals[variant.name][number]
            yield Case(
                variant,
                problem.scenario,
                problem.dtype,
                problem.batch,
                refusal or _not_here(variant, profile, device, problem.dtype),
            )


def _on_the_smallest(cases: Sequence[Case], found: Catalogue) -> tuple[Case, ...]:
    """Each variant on the smallest problem that it takes, beside the baseline; one that
    takes none on the first.
    """
    flops = {
        problem.key: problem.flops
        for op in found.ops.values()
        for problem in op.problems
    }
    chosen = {}
    for case in cases:
        known = chosen.setdefault(case.variant.id, case)
        if (bool(case.refusal), flops[case.problem]) < (
            bool(known.refusal),
            flops[known.problem],
        ):
            chosen[case.variant.id] = case
    problems = {case.problem for case in chosen.values() if not case.refusal}
    return tuple(
        case
        for case in cases
        if chosen[case.variant.id] is case
        or (case.variant.is_baseline and case.problem in problems)
    )


def _limits(profile: Profile, device: str) -> Limits:
    """The profile's; emulation takes seconds for what a GPU does in microseconds."""
    limits = profile.limits[device]
    return (
        replace(limits, flops=stand_in.MOST_FLOPS)
        if device == "cuda" and stand_in.is_on()
        else limits
    )


def _not_here(
    variant: Declared, profile: Profile, device: str, dtype: str
) -> Refusal | None:
    """Why a variant that takes a problem is not timed on it, or None."""
    why = variant.why_not_here(device, dtype)
    if device == "cuda" and stand_in.is_on():
        if variant.slow_start:
            why = (
                why
                or f"{stand_in.NAME}: torch.compile asks CUDA itself, past torch.cuda"
            )
        if variant.backend in PEERS and variant.needs == "cuda":
            why = (
                why
                or f"{stand_in.NAME}: {variant.backend} asks CUDA itself, past torch.cuda"
            )
    if variant.slow_start and not profile.slow_starts:
        why = why or "takes seconds to compile for each shape: PROFILE=full times it"
    if variant.detail and not profile.details:
        why = why or f"a detail beside {variant.builds_on}: PROFILE=full times it"
    return (NOT_HERE, why) if why else None


def _deadline_s(profile: Profile, asked_s: float | None) -> float:
    return min(asked_s or profile.deadline_s, catalogue.LONGEST_S)
