"""What is measured: profile x op x scenario x dtype x batch x variant → Case, in the order in which they run.

The variant changes fastest: all variants of one problem are measured together, and share its inputs and reference.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import kernels
from bench.records import NOT_HERE, UNSUPPORTED, case_id
from kernels.op import FP8, Op, Variant


@dataclass(frozen=True)
class Limits:
    """The largest problem a profile takes on a device, for one call."""

    flops: float
    bytes: float


CLOCKS = {"cpu": ("host", "host_cold"), "cuda": ("device_cold", "device_hot", "graph", "host")}
"""The clocks of each device. The first is the one that variants are ranked by, unless a run names others."""


@dataclass(frozen=True)
class Profile:
    """How much to measure, and how long it may take. Mappings are by device ("cpu", "cuda").

    A case's samples end when its median is known to ±`precision`, or after `sampling_s`; by every clock but the first
    after `other_clocks_s`. `details`: also the scenarios that fill in a range, and the variants that show a detail;
    `slow_starts`: also the variants that take seconds before their first call on a shape; `refines`: then more batch
    sizes, where the answer changes (bench.verdicts.refinement). `energy_s` is the window for energy, 0 for none;
    `longest_call_s` the slowest call that is timed; `confirm_s` the longest one to confirm a memory law, 0 for none,
    and on a CPU in so many `confirm_bytes`, None for all there are; `deadline_s` the longest that one step of a case
    may take.
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


_ALL_DTYPES = ("float32", "float16", "bfloat16")
_POWERS = tuple(2 ** power for power in range(13))

PROFILES = {profile.name: profile for profile in (
    Profile("smoke", batches=(1, 3, 16),
            dtypes={"cpu": ("float32",), "cuda": ("float16",)},
            limits={"cpu": Limits(2e8, 2 ** 24), "cuda": Limits(1e10, 2 ** 27)},
            details=False, slow_starts=False, refines=False,
            precision=0.03, warm_up_s=0.01, sampling_s=0.05, other_clocks_s=0.03, energy_s=0,
            longest_call_s=0.05, confirm_s=0, confirm_bytes=None, deadline_s=60),
    Profile("quick", batches=(1, 3, 8, 33, 64, 256, 1024, 4096),
            dtypes={"cpu": ("float32",), "cuda": ("float16", "float32")},
            limits={"cpu": Limits(2.5e9, 2 ** 28), "cuda": Limits(6e11, 2 ** 32)},
            details=False, slow_starts=False, refines=False,
            precision=0.01, warm_up_s=0.015, sampling_s=0.06, other_clocks_s=0.02, energy_s=0,
            longest_call_s=0.04, confirm_s=2, confirm_bytes=2 ** 29, deadline_s=120),
    Profile("full", batches=tuple(sorted({*_POWERS, 3, 33, 100, 257})),
            dtypes={"cpu": _ALL_DTYPES, "cuda": (*_ALL_DTYPES, FP8)},
            limits={"cpu": Limits(2e10, 2 ** 31), "cuda": Limits(2e13, 2 ** 35)},
            details=True, slow_starts=True, refines=True,
            precision=0.005, warm_up_s=0.2, sampling_s=2.0, other_clocks_s=0.5, energy_s=1.0,
            longest_call_s=30, confirm_s=30, confirm_bytes=None, deadline_s=600),
)}


@dataclass(frozen=True)
class Case:
    """One variant on one problem. `refusal` is (status, reason) when it is known beforehand that it can't be timed."""

    variant: Variant
    scenario: str
    dtype: str
    batch: int
    refusal: tuple[str, str] | None

    @property
    def op(self) -> Op:
        return self.variant.op

    @property
    def id(self) -> str:
        return case_id(self.op.name, self.variant.name, self.scenario, self.dtype, self.batch)

    @property
    def problem(self) -> tuple[str, str, str, int]:
        """What the variants of one comparison share; they are timed in turns."""
        return self.op.name, self.scenario, self.dtype, self.batch

    @property
    def runs_on(self) -> str:
        """The devices that the variant can run on at all."""
        return self.variant.needs or "cpu, cuda"


@dataclass(frozen=True)
class Plan:
    """The cases of a profile on a device, and the problems that are over its limits."""

    profile: Profile
    device: str
    cases: tuple[Case, ...]
    left_out: tuple[tuple[str, str, str, int], ...]


def plan(profile_name: str, device: str) -> Plan:
    """Every case of the profile on the device.

    Raises:
        ValueError: for an unknown profile.
    """
    if profile_name not in PROFILES:
        raise ValueError(f"unknown profile {profile_name!r}: use {', '.join(PROFILES)}")
    profile = PROFILES[profile_name]
    return _planned(profile, device, _problems(profile, device))


def refined(the_plan: Plan, added: Mapping[tuple[str, str, str], Sequence[int]]) -> Plan:
    """Batch sizes besides those of a plan, by op, scenario and dtype: for them alone, and all variants."""
    problems = ((kernels.ops[op], scenario, dtype, batch) for (op, scenario, dtype), batches in added.items()
                for batch in batches)
    return _planned(the_plan.profile, the_plan.device, problems)


def _planned(profile: Profile, device: str, problems: Iterable[tuple[Op, str, str, int]]) -> Plan:
    cases, left_out = [], []
    for op, scenario, dtype, batch in problems:
        inputs = op.make_inputs(scenario, batch, dtype, "meta")
        limits = profile.limits[device]
        if op.flops(*inputs) > limits.flops or op.least_bytes(*inputs) > limits.bytes:
            left_out.append((op.name, scenario, dtype, batch))
            continue
        for variant in op.variants.values():
            cases.append(Case(variant, scenario, dtype, batch, _refusal(variant, profile, device, dtype, inputs)))
    return Plan(profile, device, tuple(cases), tuple(left_out))


def _problems(profile: Profile, device: str) -> Iterator[tuple[Op, str, str, int]]:
    for op in kernels.ops.values():
        for scenario in op.scenarios.values():
            if scenario.detail and not profile.details:
                continue
            for dtype in filter(scenario.dtypes.__contains__, profile.dtypes[device]):
                for batch in profile.batches:
                    yield op, scenario.name, dtype, batch


def _refusal(variant: Variant, profile: Profile, device: str, dtype: str, inputs) -> tuple[str, str] | None:
    unsupported = variant.why_unsupported(*inputs)
    if unsupported:
        return UNSUPPORTED, unsupported
    not_here = variant.why_not_here(device, dtype)
    if variant.slow_start and not profile.slow_starts:
        not_here = not_here or "takes seconds to compile for each shape: PROFILE=full times it"
    if variant.detail and not profile.details:
        not_here = not_here or f"a detail beside {variant.builds_on}: PROFILE=full times it"
    return (NOT_HERE, not_here) if not_here else None
