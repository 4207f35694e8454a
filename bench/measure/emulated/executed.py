"""Subjects of the emulator, executed in processes of their own by one schedule or
several; what came of each as plain data.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from batchline.bench.errors import Missing
from batchline.bench.measure.compiled.compile_pool import Pool
from batchline.bench.measure.compiled.compiler import why_cannot_compile
from batchline.bench.measure.compiled.static_facts import variant_of
from batchline.bench.measure.emulated.assembler import remarks
from batchline.bench.measure.emulated.filling import counted_call
from batchline.bench.measure.emulator import execution, mutants, subjects
from batchline.bench.measure.emulator.counts import Counts, LineCounts, count_lines
from batchline.bench.measure.emulator.execution import EARLY, LATE, SHUFFLED, Execution
from batchline.bench.measure.emulator.layout import Finding
from batchline.bench.measure.emulator.mutants import Judged
from batchline.bench.measure.emulator.subjects import Subject
from batchline.bench.stats.prediction import CountedCall

LARGE = 2**18  # elements of all inputs: `batchline emulate` alone executes them
SCHEDULES = {"late": LATE, "early": EARLY, "shuffled": SHUFFLED}
_HANG = execution.WORDS[Finding.HANG][0]
_IN_TURN = 12  # subjects that a process is given at once: some take seconds
_FINDINGS = 8  # that a row keeps
_PARTS_OF_LARGE = 8  # in which the mutants of a subject of minutes are judged


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
            not, and which schedules those are unless all; None where they are.
        schedules: those that it was executed by.
        counts: of all its launches, under the first schedule; None without a launch.
        lines: what each line of the source did there, the busiest first; () unless
            asked for.
        call: what a prediction is made from; None unless lines are asked for.
        remarks: what the assembler says of its wgmma.
        instructions, machine_s: over all schedules, and how long they took.
        seconds: of all of it, compilers included.
    """

    subject: Subject
    wrong: str | None = None
    faults: tuple[Fault, ...] = ()
    schedules: tuple[str, ...] = ()
    counts: Counts | None = None
    lines: tuple[LineCounts, ...] = ()
    call: CountedCall | None = None
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
    variant = variant_of(variant_id)
    return [
        one
        for architecture in architectures
        for one in subjects.of_variant(variant, architecture)
    ]


def pinned_subjects_of(variant_id: str) -> list[Subject]:
    """Those of a variant whose verdicts are pinned: on each of its architectures, what
    it does not decline, but for the few probes that take a minute each.
    """
    asked = subjects.architectures_of(variant_of(variant_id))
    return [
        one
        for one in subjects_of(variant_id, asked)
        if one.declined is None and subjects.elements_of(one) < LARGE
    ]


def case_of(
    variant_id: str, scenario: str, dtype: str, batch: int, architectures: Sequence[int]
) -> list[Subject]:
    """A case as a subject for each architecture."""
    variant = variant_of(variant_id)
    return [
        subjects.case(variant, scenario, dtype, batch, one) for one in architectures
    ]


def shape_of(
    variant_id: str, sizes: str, dtype: str | None, architectures: Sequence[int]
) -> list[Subject | Missing]:
    """A problem of these sizes as a subject for each architecture; by default in the
    variant's first dtype.
    """
    variant = variant_of(variant_id)
    dtype = dtype or (variant.dtypes or subjects.ALL_DTYPES)[0]
    return [subjects.shaped(variant, sizes, dtype, one) for one in architectures]


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


def execute_copies(
    pool: Pool, subject: Subject, schedule: str, processes: int
) -> tuple[list[Executed], list[str]]:
    """What came of the subject in so many processes at once; and a line for each that
    did not come to its end.
    """
    turn = Turn((subject,), (schedule,))
    results, problems = pool.each(
        take_copy, [(turn, number) for number in range(processes)]
    )
    return [one for rows in results.values() for one in rows], problems


def take_copy(turn: Turn, number: int) -> list[Executed]:
    """As `take_turn`: the number tells one copy from another."""
    return take_turn(turn)


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
    SCHEDULES; by the first alone where that takes more than `most_again` instructions,
    and by none after one in which it hangs, which takes long.
    """
    start_s = time.perf_counter()
    wrong, found, runs = {}, {}, []
    for name in schedules:
        why, executions = _verdict(subject, name)
        if why:
            wrong[name] = why
        for one in (one for run in executions for one in run.findings):
            found.setdefault((one.word, one.source), (one, []))[1].append(name)
        runs.append(executions)
        if _is_enough(executions, most_again):
            break
    first = runs[0]
    why = next(iter(wrong.values()), None)
    if why and len(wrong) < len(runs):
        why += f" [{', '.join(wrong)} only]"
    every = [run for executions in runs for run in executions]
    return Executed(
        subject,
        why,
        tuple(_fault(*one) for one in itertools.islice(found.values(), _FINDINGS)),
        tuple(schedules[: len(runs)]),
        sum((run.counts for run in first[1:]), first[0].counts) if first else None,
        tuple(count_lines(first)) if with_lines else (),
        _call(subject, first) if with_lines and first else None,
        _remarks(first),
        sum(run.warp_instructions for run in every),
        sum(run.seconds for run in every),
        time.perf_counter() - start_s,
    )


def _call(subject: Subject, runs: Sequence[Execution]) -> CountedCall:
    return counted_call(
        subjects.variant_of(subject),
        subject.probe,
        subjects.inputs_of(subject),
        subject.architecture,
        runs,
    )


def _is_enough(executions: Sequence[Execution], most_again: float) -> bool:
    """Whether a subject that did this by one schedule is executed by no other."""
    if any(found.word == _HANG for run in executions for found in run.findings):
        return True
    return sum(run.warp_instructions for run in executions) > most_again


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


def judge_all_mutants(
    pool: Pool,
    chosen: Iterable[Subject],
    most: int,
    tell: Callable[[int, int], None] = lambda done, count: None,
) -> Iterator[tuple[Subject, list[Judged], list[str]]]:
    """Each subject as soon as its mutants are all judged, at most so many of a kind and
    change: it, what came of them, and a line for each piece of the work that came to
    no end.

    `tell` is given how many pieces of work are over, and how many there are.
    """
    jobs = mutant_jobs(chosen, most)
    pieces = defaultdict(list)
    for done, piece in enumerate(pool.as_they_end(judge_mutants, jobs), start=1):
        (subject, *_, parts), _, _ = piece
        pieces[subject].append(piece)
        tell(done, len(jobs))
        if len(pieces[subject]) == parts:
            over = pieces.pop(subject)
            judged = [one for _, some, _ in over for one in some or ()]
            yield subject, judged, [line for _, _, line in over if line]


def mutant_jobs(
    chosen: Iterable[Subject], most: int
) -> list[tuple[Subject, int, int, int]]:
    """The arguments of `judge_mutants` for each piece of the subjects' work: those that
    are small come first, and those that are large in parts, for a process answers
    within minutes.
    """
    parts = {one: _PARTS_OF_LARGE if one.probe == mutants.DEEP else 1 for one in chosen}
    jobs = [
        (one, most, part, parts[one]) for one in parts for part in range(parts[one])
    ]
    return sorted(jobs, key=lambda job: job[-1])


def judge_mutants(subject: Subject, most: int, part: int, parts: int) -> list[Judged]:
    """What came of each mutant of the subject's kernels in this process: see
    `mutants.judged`.
    """
    torch.set_num_threads(1)
    return [
        replace(one, mutant=replace(one.mutant, ptx=""))
        for one in mutants.judged(subject, most, part, parts)
    ]
