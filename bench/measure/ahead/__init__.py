"""Kernels compiled ahead, in parallel and with no GPU, so that the worker on the GPU
finds each of them on disk.

A worker compiles a kernel where it first launches it, one after another. Here processes
of their own run the same launchers on the same shapes, each compiler's own key tells
which kernels are the same, and each is compiled once into the folder where the worker
looks (bench.measure.ahead.folder). What torch.compile makes is not among them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from batchline.bench.measure import stand_in
from batchline.bench.measure.ahead import work
from batchline.bench.measure.ahead.gpu import Gpu
from batchline.bench.measure.ahead.work import CONDITION, PROBLEM, Place
from batchline.bench.measure.compiled.compile_pool import Pool
from batchline.bench.measure.machine import memory
from batchline.kernels import backends, cgroups

Problem = tuple[str, str, str, int]  # a variant's id, a scenario, a dtype, a batch

# Seconds a kernel: the means that `python -m batchline.bench.measure.ahead.timing 90`
# printed (0.24 and 1.54 s, of 38 and 8 kernels of PROFILE=smoke) on an AMD EPYC 25/17
# with one process on two cores, rounded up.
COMPILE_S = {"triton": 0.3, "numba_cuda": 1.6}
_MOST_PROCESSES, _PROCESS_BYTES = 16, 10**9


class Job(NamedTuple):
    """One kernel to compile: its compiler and that one's key, and a variant that
    launches it at a place.

    `problem`: the first of a run's for which it is needed.
    """

    compiler: str
    key: str
    variant: str
    place: Place
    problem: Problem


@dataclass(frozen=True)
class Needed:
    """The kernels to compile, in the order in which a run needs them, and a line for
    each launch that is not known.
    """

    jobs: tuple[Job, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class CompiledAhead:
    """How many kernels were compiled, and how many there were `already`, of all
    `needed`; the seconds it took.

    `failed` has a line for each that does not compile and each launch that is not
    known: the worker meets those. `why_none` says why there is nothing to compile, or
    is None.
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
        return f"{stand_in.NAME}: kernels are executed in emulation"
    usable = [
        backend
        for backend in backends.INTERPRETED_BACKENDS
        if backends.why_absent(backend) is None and not backends.interpreted(backend)
    ]
    return (
        None
        if usable
        else "no compiler for GPUs is installed, or all of them interpret"
    )


def problems_of(cases: Iterable) -> list[Problem]:
    """Of bench.cases.Case those that will run and whose backend compiles at a launch."""
    return [
        (case.variant.id, case.scenario, case.dtype, case.batch)
        for case in cases
        if case.refusal is None
        and case.variant.backend in backends.INTERPRETED_BACKENDS
        and not backends.interpreted(case.variant.backend)
    ]


def default_processes() -> int:
    """As many as this process may use cores, and as have room in half of the memory
    that is available.
    """
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )
    free = memory.free_bytes()
    with_room = _MOST_PROCESSES if free is None else free // 2 // _PROCESS_BYTES
    return max(
        1, min(_MOST_PROCESSES, cores, cgroups.whole_cores() or cores, with_room)
    )


def specialisations(
    problems: Sequence[Problem], gpu: Gpu, pool: Pool, nearby_seed: int | None = None
) -> Needed:
    """The distinct kernels that these problems' variants launch when they are measured;
    none is compiled.

    Takes milliseconds a problem, by the processes of the pool. `nearby_seed` is the
    tasks' (bench.measure.worker.task).
    """
    by_variant: dict[str, list] = {}
    for variant, *problem in problems:
        by_variant.setdefault(variant, []).append(tuple(problem))
    wanted = [
        work.Noting(variant, tuple(of_it), gpu, nearby_seed)
        for variant, of_it in by_variant.items()
    ]
    noted, unknown = pool.each(work.note, wanted)
    ranks, jobs = _Ranks(problems), {}
    for noting, (launches, problems_of_it) in noted.items():
        unknown += problems_of_it
        for compiler, key, place in launches:
            rank, first = ranks.of(noting.variant, place)
            job = Job(compiler, key, noting.variant, place, problems[first])
            jobs[key] = min(
                jobs.get(key, (math.inf, job)),
                (rank, job),
                key=lambda ranked: ranked[0],
            )
    in_order = sorted(jobs.values(), key=lambda ranked: ranked[0])
    return Needed(tuple(job for _, job in in_order), tuple(unknown))


class _Ranks:
    """When a run first comes to each place: with the first of its problems there."""

    def __init__(self, problems: Sequence[Problem]):
        self._first: dict[tuple, int] = {}
        for number, (variant, scenario, dtype, batch) in enumerate(problems):
            for key in (
                (variant, dtype),
                (variant, scenario, dtype),
                (variant, scenario, dtype, batch),
            ):
                self._first.setdefault(key, number)

    def of(self, variant: str, place: Place) -> tuple[int, int]:
        """When the place comes, and the number of the first problem for which it is
        needed.
        """
        named = (
            (place.name, place.dtype, place.batch)
            if place.kind == PROBLEM
            else (place.name, place.dtype)
        )
        first = self._first.get((variant, *named), self._first[variant, place.dtype])
        after_all_times = len(self._first)
        return (after_all_times if place.kind == CONDITION else first), first


def compile_all(
    jobs: Sequence[Job],
    gpu: Gpu,
    pool: Pool,
    until_s: float = math.inf,
    nearby_seed: int | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[dict[Job, work.Made], list[str]]:
    """What became of each job, and a line for each that failed; what was not done by
    `until_s` (on the monotonic clock) is in neither.

    The kernels are in the folder of `folder.kernels_folder`, in whose block the pool
    must have been made.
    """
    wanted = {
        work.Compiling(job.variant, job.place, job.key, gpu, nearby_seed): job
        for job in jobs
    }
    made, failed = pool.each(
        work.compile_one,
        list(wanted),
        until_s,
        lambda done: progress(done, len(wanted)),
    )
    return {wanted[one]: result for one, result in made.items()}, failed


class Ahead:
    """The kernels of a run: what they take to compile, problem by problem, and the
    compiling.

    To be made and closed in the block of `folder.kernels_folder`. `nearby_seed` is the
    tasks' (bench.measure.worker.task).
    """

    def __init__(self, gpu: Gpu, nearby_seed: int, processes: int | None = None):
        self._gpu = gpu
        self.nearby_seed = nearby_seed
        self._processes = processes or default_processes()
        self._pool = Pool(self._processes)
        self._needed = Needed((), ())
        self._seconds: dict[Problem, float] = {}

    def note(self, cases: Iterable) -> None:
        """Find the kernels that these cases (bench.cases.Case, in the order of a run)
        need.
        """
        if why_nothing():
            return
        self._needed = specialisations(
            problems_of(cases), self._gpu, self._pool, self.nearby_seed
        )
        self._seconds = {}
        for job in self._needed.jobs:
            self._seconds[job.problem] = (
                self._seconds.get(job.problem, 0)
                + COMPILE_S[job.compiler] / self._processes
            )

    def seconds_for(self, cases: Iterable) -> float:
        """What it is expected to take to compile the kernels that none of the noted
        cases before these needs.
        """
        return sum(self._seconds.get(problem, 0.0) for problem in problems_of(cases))

    def compile(
        self, cases: Iterable, seconds: float, progress: Callable[[int, int], None]
    ) -> CompiledAhead:
        """Compile the noted kernels that are first needed by these cases, for so many
        seconds at most.

        A kernel that does not compile is the matter of its case.
        """
        if why := why_nothing():
            return CompiledAhead(why_none=why)
        began_s = time.monotonic()
        wanted = set(problems_of(cases))
        jobs = [job for job in self._needed.jobs if job.problem in wanted]
        try:
            made, failed = compile_all(
                jobs,
                self._gpu,
                self._pool,
                began_s + seconds,
                self.nearby_seed,
                progress,
            )
        finally:
            self._pool.close()  # nothing of it may run, or hold memory, while something is timed
        new = sum(one.is_new for one in made.values())
        return CompiledAhead(
            len(jobs),
            new,
            len(made) - new,
            (*self._needed.unknown, *failed),
            time.monotonic() - began_s,
        )

    def close(self) -> None:
        """End the processes that compile."""
        self._pool.close()
