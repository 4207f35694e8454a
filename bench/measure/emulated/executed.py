"""Subjects of the emulator, executed in processes of their own by one schedule or
several; what came of each as plain data.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from batchline import kernels
from batchline.bench.measure.compiled.compile_pool import Pool
from batchline.bench.measure.compiled.compiler import why_cannot_compile
from batchline.bench.measure.emulated.assembler import remarks
from batchline.bench.measure.emulator import execution, subjects
from batchline.bench.measure.emulator.counts import Counts, LineCounts, count_lines
from batchline.bench.measure.emulator.execution import EARLY, LATE, SHUFFLED, Execution
from batchline.bench.measure.emulator.mutants import Judged, judged
from batchline.bench.measure.emulator.subjects import Subject

LARGE = 2**18  # elements of all inputs: `batchline emulate` alone executes them
SCHEDULES = {"late": LATE, "early": EARLY, "shuffled": SHUFFLED}
_IN_TURN = 12  # subjects that a process is given at once: some take seconds
_FINDINGS = 8  # that a row keeps


@dataclass(frozen=True)
class Fault:
    """A finding: its word, the line of the source, all of it in a sentence, whether it
    is a fault, and the schedules under which it is found.
    """

    word: str
    source: str
    text: str
    is_fault: bool
    schedules: tuple[str, ...]


@dataclass(frozen=True)
class Executed:
    """What came of a subject.

    Args:
        wrong: why its outputs are not right, under the first schedule where they are
            not; None where they are.
        counts: of all its launches, under the first schedule; None without a launch.
        lines: what each line of the source did there, the busiest first; () unless
            asked for.
        remarks: what the assembler says of its wgmma.
        instructions, machine_s: over all schedules, and how long they took.
        seconds: of all of it, compilers included.
    """

    subject: Subject
    wrong: str | None = None
    faults: tuple[Fault, ...] = ()
    counts: Counts | None = None
    lines: tuple[LineCounts, ...] = ()
    remarks: tuple[str, ...] = ()
    instructions: int = 0
    machine_s: float = 0.0
    seconds: float = 0.0

    @property
    def is_right(self) -> bool:
        return self.wrong is None and not any(one.is_fault for one in self.faults)


@dataclass(frozen=True)
class Turn:
    """Subjects of one variant, dtype and architecture, which a process executes one
    after another; see `execute_subject`.
    """

    subjects: tuple[Subject, ...]
    schedules: tuple[str, ...]
    with_lines: bool = False
    most_again: float = math.inf

    def __str__(self) -> str:
        first = self.subjects[0]
        return f"{first.variant} {first.dtype} sm_{first.architecture}"


def why_not_executed(backend: str) -> str | None:
    """Why nothing of a backend can be executed here, or None."""
    return why_cannot_compile(backend)


def subjects_of(variant_id: str, architectures: Sequence[int]) -> list[Subject]:
    """Every subject of a variant, for a process that may import its file."""
    op = kernels.ops[variant_id.partition("/")[0]]
    variant = op.variants[variant_id.partition("/")[2]]
    return [
        one
        for architecture in architectures
        for one in subjects.of_variant(variant, architecture)
    ]


def pinned_subjects_of(variant_id: str) -> list[Subject]:
    """Those of a variant whose verdicts are pinned: on both architectures, what it does
    not decline, but for the few probes that take a minute each.
    """
    return [
        one
        for one in subjects_of(variant_id, subjects.ARCHITECTURES)
        if one.declined is None and subjects.elements_of(one) < LARGE
    ]


def case_of(
    variant_id: str, scenario: str, dtype: str, batch: int, architectures: Sequence[int]
) -> list[Subject]:
    """A case as a subject for each architecture."""
    op, _, name = variant_id.partition("/")
    variant = kernels.ops[op].variants[name]
    return [
        subjects.case(variant, scenario, dtype, batch, one) for one in architectures
    ]


def turns(
    chosen: Iterable[Subject],
    schedules: Sequence[str],
    with_lines: bool = False,
    most_again: float = math.inf,
) -> list[Turn]:
    """The subjects that are not declined, in turns that a process takes at once."""
    found = []
    for _, group in itertools.groupby(
        (one for one in chosen if one.declined is None),
        key=lambda one: (one.variant, one.dtype, one.architecture),
    ):
        found += [
            Turn(few, tuple(schedules), with_lines, most_again)
            for few in _few(list(group))
        ]
    return found


def _few(group: Sequence[Subject]) -> Iterator[tuple[Subject, ...]]:
    """The group in parts of nearly the same size."""
    parts = math.ceil(len(group) / _IN_TURN)
    for part in range(parts):
        yield tuple(group[part::parts])


def execute_all(
    pool: Pool, waiting: Sequence[Turn], tell: Callable[[int], None] = lambda done: None
) -> tuple[list[Executed], list[str]]:
    """What came of the turns, in their order; and a line for each that did not come to
    its end.
    """
    results, problems = pool.each(take_turn, [(turn,) for turn in waiting], tell=tell)
    done = [results.get((turn,), ()) for turn in waiting]
    return [one for rows in done for one in rows], problems


def take_turn(turn: Turn) -> list[Executed]:
    """Execute its subjects in this process."""
    torch.set_num_threads(1)
    return [
        execute_subject(one, turn.schedules, turn.with_lines, turn.most_again)
        for one in turn.subjects
    ]


def execute_subject(
    subject: Subject,
    schedules: Sequence[str],
    with_lines: bool = False,
    most_again: float = math.inf,
) -> Executed:
    """Execute a subject in this process by each of the schedules, which are named as in
    SCHEDULES; by the first alone where that takes more than `most_again` instructions.
    """
    start_s = time.perf_counter()
    wrong, found, runs = None, {}, []
    for name in schedules:
        why, executions = _verdict(subject, name)
        if why and wrong is None:
            wrong = why if len(schedules) == 1 else f"{why} ({name})"
        for one in (one for run in executions for one in run.findings):
            found.setdefault((one.word, one.source), (one, []))[1].append(name)
        runs.append(executions)
        if sum(run.warp_instructions for run in executions) > most_again:
            break
    first = runs[0]
    every = [run for executions in runs for run in executions]
    return Executed(
        subject,
        wrong,
        tuple(_fault(*one) for one in itertools.islice(found.values(), _FINDINGS)),
        sum((run.counts for run in first[1:]), first[0].counts) if first else None,
        tuple(count_lines(first)) if with_lines else (),
        _remarks(first),
        sum(run.warp_instructions for run in every),
        sum(run.seconds for run in every),
        time.perf_counter() - start_s,
    )


def _verdict(subject: Subject, schedule: str) -> tuple[str | None, list[Execution]]:
    executions: list[Execution] = []

    def execute(launch, memory):
        done = execution.execute(launch, memory, SCHEDULES[schedule])
        executions.append(done)
        return done

    verdict = subjects.verdict_of(subject, SCHEDULES[schedule], execute)
    return verdict.wrong, executions


def _fault(found, schedules: Sequence[str]) -> Fault:
    names = tuple(dict.fromkeys(schedules))
    return Fault(found.word, found.source, str(found), found.is_fault, names)


def _remarks(executions: Iterable[Execution]) -> tuple[str, ...]:
    """What the assembler says of each kernel, once, with the line of the source."""
    said: Counter[str] = Counter()
    for run in executions:
        launch = run.launch
        for text, line in remarks(launch.ptx, launch.architecture):
            place = _source_at(run, line)
            said[f"{text} at {place}" if place else text] += 1
    return tuple(said)


def _source_at(run: Execution, ptx_line: int | None) -> str | None:
    """The line of the source of the last instruction up to a line of the PTX."""
    if ptx_line is None:
        return None
    program = run.program
    instructions = map(program.instruction, range(len(program.forms)))
    before = [
        (one.ptx_line, one.source.user_line)
        for one in instructions
        if one.source and one.ptx_line <= ptx_line
    ]
    return max(before)[1] if before else None


def judge_mutants(subject: Subject, most: int | None) -> list[Judged]:
    """What came of each mutant of the subject's kernels, at most so many of a kind, in
    this process.
    """
    torch.set_num_threads(1)
    return [
        replace(one, mutant=replace(one.mutant, ptx=""))
        for one in judged(subject, most)
    ]
