"""Kernels compiled ahead, in parallel and with no GPU, so that the worker on the GPU finds each of them on disk.

A worker compiles a kernel where it first launches it, one after another. Here processes of their own run the same
launchers on the same shapes, each compiler's own key tells which kernels are the same, and each is compiled once into
the folder where the worker looks (bench.measure.ahead.folder). What torch.compile makes is not among them.
"""
from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.measure import stand_in
from bench.measure.ahead import work
from bench.measure.ahead.gpu import Gpu
from bench.measure.ahead.inputs import CONDITION, PROBLEM, Place
from bench.measure.compile_pool import Pool
from kernels import backends, cgroups

Problem = tuple[str, str, str, int]  # a variant's id, a scenario, a dtype, a batch

# Seconds a kernel, for sm_90: means over 60 and 20 kernels of PROFILE=smoke, by two processes on two cores of an
# AMD EPYC 25/17 that others used too. The medians were 1.1 and 2.9. `python -m bench.measure.ahead.timing` measures.
COMPILE_S = {"triton": 1.4, "numba_cuda": 4.4}
START_S = 5.0  # of a process, to import torch and the compilers; an estimate
_MOST_PROCESSES = 16  # each takes about 1 GB


class Job(NamedTuple):
    """One kernel to compile: its compiler and that one's key, and a variant that launches it at a place."""

    compiler: str
    key: str
    variant: str
    place: Place


@dataclass(frozen=True)
class Needed:
    """The kernels to compile, in the order in which a run needs them, and a line for each launch that is not known."""

    jobs: tuple[Job, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class CompiledAhead:
    """How many kernels were compiled, and how many there were `already`, of all `needed`; the seconds it took.

    `failed` has a line for each that does not compile and each launch that is not known: the worker meets those.
    `why_none` says why there is nothing to compile, or is None.
    """

    needed: int = 0
    count: int = 0
    already: int = 0
    failed: tuple[str, ...] = ()
    seconds: float = 0.0
    why_none: str | None = None


def why_nothing() -> str | None:
    """Why no kernel is compiled in this process's environment, or None."""
    if stand_in.is_on():
        return f"{stand_in.NAME}: kernels are interpreted"
    usable = [backend for backend in backends.INTERPRETED_BACKENDS
              if backends.why_absent(backend) is None and not backends.interpreted(backend)]
    return None if usable else "no compiler for GPUs is installed, or all of them interpret"


def problems_of(cases: Iterable) -> list[Problem]:
    """Of bench.cases.Case those that will run and whose backend compiles at a launch."""
    return [(case.variant.id, case.scenario, case.dtype, case.batch) for case in cases
            if case.refusal is None and case.variant.backend in backends.INTERPRETED_BACKENDS
            and not backends.interpreted(case.variant.backend)]


def default_processes() -> int:
    """As many as this process may use cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_PROCESSES, cores, cgroups.whole_cores() or cores))


def specialisations(problems: Sequence[Problem], gpu: Gpu, pool: Pool, nearby_seed: int | None = None) -> Needed:
    """The distinct kernels that these problems' variants launch when they are measured; none is compiled.

    Takes milliseconds a problem, by the processes of the pool. `nearby_seed` is the tasks' (bench.measure.task).
    """
    by_variant: dict[str, list] = {}
    for variant, *problem in problems:
        by_variant.setdefault(variant, []).append(tuple(problem))
    wanted = [work.Noting(variant, tuple(of_it), gpu, nearby_seed) for variant, of_it in by_variant.items()]
    noted, unknown = pool.each(work.note, wanted)
    ranks, jobs = _Ranks(problems), {}
    for noting, (launches, problems_of_it) in noted.items():
        unknown += problems_of_it
        for compiler, key, place in launches:
            rank, job = ranks.of(noting.variant, place), Job(compiler, key, noting.variant, place)
            jobs[key] = min(jobs.get(key, (math.inf, job)), (rank, job), key=lambda ranked: ranked[0])
    in_order = sorted(jobs.values(), key=lambda ranked: ranked[0])
    return Needed(tuple(job for _, job in in_order), tuple(unknown))


class _Ranks:
    """When a run first comes to each place: with the first of its problems there."""

    def __init__(self, problems: Sequence[Problem]):
        self._first: dict[tuple, int] = {}
        for number, (variant, scenario, dtype, batch) in enumerate(problems):
            for key in ((variant, dtype), (variant, scenario, dtype), (variant, scenario, dtype, batch)):
                self._first.setdefault(key, number)

    def of(self, variant: str, place: Place) -> int:
        if place.kind == CONDITION:  # after all times
            return len(self._first)
        named = (place.name, place.dtype, place.batch) if place.kind == PROBLEM else (place.name, place.dtype)
        return self._first.get((variant, *named), self._first.get((variant, place.dtype), 0))


def compile_all(jobs: Sequence[Job], gpu: Gpu, pool: Pool, until_s: float = math.inf, nearby_seed: int | None = None,
                progress: Callable[[int, int], None] = lambda done, of: None) -> tuple[dict[Job, work.Made], list[str]]:
    """What became of each job, and a line for each that failed; what was not done by `until_s` (on the monotonic clock)
    is in neither.

    The kernels are in the folder of `folder.kernels_folder`, in whose block the pool must have been made.
    """
    wanted = {work.Compiling(job.variant, job.place, job.key, gpu, nearby_seed): job for job in jobs}
    made, failed = pool.each(work.compile_one, list(wanted), until_s, lambda done: progress(done, len(wanted)))
    return {wanted[one]: result for one, result in made.items()}, failed


def expected_compile_s(jobs: Sequence[Job], processes: int) -> float:
    """Seconds that `compile_all` is expected to take with so many processes, their start counted in."""
    return START_S + sum(COMPILE_S[job.compiler] for job in jobs) / processes if jobs else 0.0


def compile_ahead(cases: Iterable, gpu: Gpu, seconds: float, progress: Callable[[int, int], None],
                  nearby_seed: int | None = None, processes: int | None = None) -> CompiledAhead:
    """Compile what these cases (bench.cases.Case) launch on this GPU, for so many seconds at most.

    To be called in the block of `folder.kernels_folder`. A kernel that does not compile is the matter of its case.
    """
    if why := why_nothing():
        return CompiledAhead(why_none=why)
    began_s = time.monotonic()
    with Pool(processes or default_processes()) as pool:
        needed = specialisations(problems_of(cases), gpu, pool, nearby_seed)
        made, failed = compile_all(needed.jobs, gpu, pool, began_s + seconds, nearby_seed, progress)
    new = sum(one.is_new for one in made.values())
    return CompiledAhead(len(needed.jobs), new, len(made) - new, (*needed.unknown, *failed),
                         time.monotonic() - began_s)
