"""`batchline emulate`: execute GPU kernels without a GPU, and say what is wrong with them
and what they did.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from batchline.bench import console
from batchline.bench.commands import _arguments
from batchline.bench.commands import _emulation_choice as choice
from batchline.bench.commands._progress import Progress
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.statuses import case_id

if TYPE_CHECKING:
    from batchline.bench.commands._emulation_choice import Chosen
    from batchline.bench.declared import Catalogue, Declared
    from batchline.bench.measure.compiled.compile_pool import Pool
    from batchline.bench.measure.emulated.executed import Executed
    from batchline.bench.measure.emulated.mutant_table import Table
    from batchline.bench.measure.emulator.mutants import Judged
    from batchline.bench.measure.emulator.subjects import Subject

HELP = "execute GPU kernels without a GPU: verdicts, races, exact counts by source line"
SAMPLE = """
bmm/triton_tiled float16 sm_90
probe    verdict      instructions  sectors    banks    reads      seconds
-------  ---------  --------------  ---------  -------  -------  ---------
ragged   right               2,464  1.22x      1.00x    1.51x         0.21
nan      right               2,310  1.00x      1.00x    2.00x         0.19

2 subjects: 2 right; 14,322 warp instructions
"""
EXITS = {
    ExitCode.CLEAN: "all that was executed is right, and no fault was found",
    ExitCode.FAULT: "something is wrong, or a fault was found",
    ExitCode.USAGE: "no kernel, dtype, probe or dimension is called so, or a shape is too large",
    ExitCode.NOT_MEASURED: "nothing could be executed: the compilers are not "
    "installed, or all was declined",
    ExitCode.STOPPED: "stopped by Ctrl-C",
}
READS_OPS = True
_SCHEDULES = ("late", "early", "shuffled")
_MOST_ROWS = 120  # more subjects are a row for each variant, dtype and architecture
_LEAST_PROCESSES = 2
_EVERY_MUTANT = 1 << 30
_TIMED = 8  # probes of each variant, for --speed
# Whose blocks all do the same, for --speed.
_GRIDS = (
    "bmm/numba_cuda_naive/square_128/float32/B8",
    "grad_reduce/triton_whole_words/linear_512/float32/B64",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to execute, how, and what to print of it."""
    _arguments.add_ops(parser)
    parser.add_argument(
        "what",
        nargs="*",
        metavar="KERNEL",
        help="op/variant, a part of that, or a case id; a file of your own counts once "
        "it lies in its op's folder (default: every GPU kernel)",
    )
    parser.add_argument(
        "--arch",
        type=int,
        action="append",
        choices=choice.ARCHITECTURES,
        help="80, 90 or 100 of sm_100; may be repeated (default: 80 and 90, and 100 of "
        "what is for that alone)",
    )
    parser.add_argument("--dtype", help="only this dtype")
    parser.add_argument(
        "--probe", help="only the probe of this name, or those with it in their names"
    )
    parser.add_argument(
        "--shape",
        metavar="SIZES",
        help="a problem of your own size instead of the probes, in the variant's first "
        "dtype or that of --dtype: B=4,M=100,N=64,K=32 for bmm, B=8,P=1000 for "
        "grad_reduce; the names are those of the op's signature",
    )
    parser.add_argument(
        "--schedule",
        choices=(*_SCHEDULES, "all"),
        default="all",
        help="asynchronous work late or early, or blocks and warps shuffled (default: "
        "all of them)",
    )
    parser.add_argument(
        "--lines",
        action="store_true",
        help="with what each line of the source did, "
        "and the share of a GPU's ceiling that its counts leave by the datasheet",
    )
    parser.add_argument(
        "--each",
        action="store_true",
        help="a row for each probe, however many, and each of them with its findings",
    )
    parser.add_argument(
        "--declined",
        action="store_true",
        help="list each probe that a kernel declines, with the reason",
    )
    parser.add_argument(
        "--mutants",
        nargs="?",
        type=_arguments.count,
        const=_EVERY_MUTANT,
        metavar="MOST",
        help="instead: take each barrier, wait, fence and mask out of the compiled code, "
        "at most so many of a kind, and say whether that is noticed; on one probe of each "
        "kernel, unless inputs are named",
    )
    parser.add_argument(
        "--pin",
        action="store_true",
        help="with --mutants: execute the kernels that reports/baselines/mutants.json lacks, "
        "or those that are named, keep each there as soon as it is done, and print all that "
        "the file has",
    )
    parser.add_argument(
        "--speed",
        action="store_true",
        help="instead: how many instructions a second the emulator executes, in one process "
        "and in as many as there are cores",
    )


def run(options: argparse.Namespace) -> int:
    from batchline.bench import catalogue
    from batchline.bench.measure.compiled.compile_pool import Pool

    _require_fitting(options)
    found = catalogue.read()
    if options.speed:
        return _tell_speed(found)
    variants, cases = choice.named(found, options.what)
    sizes = choice.sizes_asked_for(found, options, variants)
    if why := choice.why_none([*variants, *cases.values()]):
        console.complain(why)
        return ExitCode.NOT_MEASURED
    with Pool(max(_LEAST_PROCESSES, os.cpu_count() or 1)) as pool:
        chosen = choice.choose(pool, options, variants, cases, sizes)
        if options.mutants is not None:
            return _judge_mutants(pool, options, chosen)
        return _execute(pool, options, chosen)


def _require_fitting(options: argparse.Namespace) -> None:
    """Raise UsageError for --pin where it would pin something else than whole kernels."""
    limits = (options.arch, options.dtype, options.probe, options.shape)
    is_limited = any(limits) or any(map(choice.is_case_id, options.what))
    if options.pin and (options.mutants is None or is_limited):
        raise UsageError(
            "--pin keeps what --mutants says of whole kernels: give no case id and no "
            "other limit"
        )


def _execute(pool: Pool, options: argparse.Namespace, chosen: Chosen) -> int:
    """Execute what was chosen, print it; the exit code."""
    from batchline.bench.commands import _emulation_tables as show
    from batchline.bench.measure.emulated import executed

    schedules = _SCHEDULES if options.schedule == "all" else (options.schedule,)
    taken = [one for one in chosen.subjects if one.declined is None]
    with_lines = options.lines or len(taken) == 1
    turns = executed.turns(taken, schedules, with_lines)
    with Progress() as progress:
        rows, problems = executed.execute_all(
            pool, turns, lambda done: progress.tell(done, len(turns))
        )
    place = {one: number for number, one in enumerate(taken)}
    rows.sort(key=lambda row: place[row.subject])
    problems = [*chosen.broken, *problems]
    parts = [show.summary(rows)] if len(rows) > _MOST_ROWS and not options.each else []
    if rows and not parts:
        parts = list(show.tables(rows))
    if rows:
        parts.append(show.legend())
    parts += _of_lines(rows) if with_lines else []
    parts += show.wrong(rows, options.each)
    parts += [
        "\n".join(lines) for lines in (show.remarks(rows), show.notes(rows)) if lines
    ]
    if refused := show.declined(chosen.subjects, options.declined):
        parts.append("\n".join(refused))
    parts += ["\n".join(problems)] if problems else []
    parts.append(_closing(rows, chosen, problems))
    print("\n\n".join(parts))
    if problems or not all(one.is_right for one in rows):
        return ExitCode.FAULT
    return ExitCode.CLEAN if rows else ExitCode.NOT_MEASURED


def _judge_mutants(pool: Pool, options: argparse.Namespace, chosen: Chosen) -> int:
    """Print what share of the mutants of the subjects' kernels is noticed, by kind, and
    each that is not; the exit code. With --pin, of all that the pinned table has.
    """
    from batchline.bench.measure.emulated import executed, mutant_table

    began_s = time.monotonic()
    most = None if options.mutants == _EVERY_MUTANT else options.mutants
    wanted = _with_mutants(options, chosen)
    left = _choose_unpinned(options, wanted, most) if options.pin else wanted
    judged, parts, problems = [], [], [*chosen.broken]
    with Progress() as progress:
        for subject, some, lines in executed.judge_all_mutants(
            pool, left, most, progress.tell
        ):
            if options.pin and not lines:
                mutant_table.add(subject, some, most)
            judged += some
            parts.append(mutant_table.part_of(subject, some))
            problems += lines
    closing = [f"{len(judged)} mutants in {time.monotonic() - began_s:.0f} s"]
    table = mutant_table.Table(most, tuple(parts))
    if options.pin:
        table = mutant_table.load(most)
        closing += _describe_pinned(table, wanted, is_all=not options.what)
    _print_mutants(table, judged, problems, closing)
    if problems or any(one.missed or one.broken for one in table.shares):
        return ExitCode.FAULT
    return ExitCode.CLEAN if table.shares else ExitCode.NOT_MEASURED


def _print_mutants(
    table: Table,
    judged: Sequence[Judged],
    problems: Sequence[str],
    closing: Sequence[str],
) -> None:
    """Print the table, and each mutant that it missed or that has broken the emulator
    now.
    """
    from batchline.bench.commands import _emulation_tables as show

    unproven = [*show.missed_mutants(table.missed), *show.broken_mutants(judged)]
    said = [
        show.mutants_table(table.shares),
        show.redundant_mutants(table.redundant),
        *("\n".join(lines) for lines in (unproven, problems, closing)),
    ]
    print("\n\n".join(filter(None, said)))


def _choose_unpinned(
    options: argparse.Namespace, wanted: Sequence[Subject], most: int | None
) -> Sequence[Subject]:
    """The subjects that the pinned table lacks; those of kernels that are named, anyway.

    Raises:
        UsageError: if a named one is counted together with others, or the table has
        another number of mutants.
    """
    from batchline.bench.measure.emulated import mutant_table

    table = mutant_table.load(most)
    if not options.what:
        return [one for one in wanted if str(one) not in table.subjects]
    for one in wanted:
        table.without(one)
    return wanted


def _describe_pinned(
    table: Table, wanted: Sequence[Subject], is_all: bool
) -> Iterator[str]:
    """How much of what is wanted the pinned table has; and, if that is all that there
    is, what it has besides.
    """
    from batchline.bench.measure.emulated.mutant_table import PINNED

    names = {str(one) for one in wanted}
    path = PINNED.relative_to(PINNED.parents[2])
    yield f"{path} has {len(names & table.subjects)} of these {len(names)} subjects"
    others = sorted(table.subjects - names)
    if others and is_all:
        yield f"counted, and none of them now: {', '.join(others)}"


def _with_mutants(options: argparse.Namespace, chosen: Chosen) -> list[Subject]:
    """One subject of each kernel and architecture, unless inputs were asked for."""
    from batchline.bench.measure.emulator import mutants

    taken = [one for one in chosen.subjects if one.declined is None]
    if options.probe is not None or options.shape is not None:
        return taken
    of_cases = [one for one in taken if choice.is_case(one)]
    return [
        *mutants.one_of_each(one for one in taken if one not in of_cases),
        *of_cases,
    ]


def _of_lines(rows: Sequence[Executed]) -> list[str]:
    from batchline.bench.commands import _emulation_tables as show

    return [
        f"{one.subject}: {show.classes(one.counts)}\n{show.lines_table(one.lines)}"
        f"\n{show.predicted(one)}"
        for one in rows
        if one.counts
    ]


def _closing(rows: Sequence[Executed], chosen: Chosen, problems: Sequence[str]) -> str:
    right = sum(one.is_right for one in rows)
    declined = sum(one.declined is not None for one in chosen.subjects)
    counts = {
        "right": right,
        "not right": len(rows) - right,
        "not executed to the end": len(problems),
        "declined": declined,
    }
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    instructions = sum(one.instructions for one in rows)
    count = len(chosen.subjects)
    subjects = "1 subject" if count == 1 else f"{count} subjects"
    return f"{subjects}: {said}; {instructions:,} warp instructions"


def _tell_speed(found: Catalogue) -> int:
    """Print warp instructions a second, with as many processes as cores at once: over
    small probes of every kernel in its first dtype, and of large grids.
    """
    from batchline.bench.measure.compiled.compile_pool import Pool
    from batchline.bench.measure.emulated import executed

    variants, cases = choice.named(found, ["", *_GRIDS])
    if why := choice.why_none(variants):
        console.complain(why)
        return ExitCode.NOT_MEASURED
    options = argparse.Namespace(arch=[90], dtype=None, probe=None)
    processes = os.cpu_count() or 1
    with Pool(processes) as pool:
        chosen = choice.choose(pool, options, variants, cases)
        turns = executed.turns(_small(chosen.subjects, variants), ("late",))
        executed.execute_all(pool, turns[:processes])  # compiles the emulator
        timed = {"probes": executed.execute_all(pool, turns)}
        for one in filter(choice.is_case, chosen.subjects):
            timed[_name(one)] = executed.execute_copies(pool, one, "late", processes)
    problems = [line for _, lines in timed.values() for line in lines]
    if problems:
        raise UsageError(problems[0])
    _print_speeds({name: done for name, (done, _) in timed.items()}, processes)
    return ExitCode.CLEAN


def _small(every: Iterable[Subject], variants: Iterable[Declared]) -> list[Subject]:
    """Of each variant the first few probes in its first dtype: the smallest."""
    first = {one.id: (one.dtypes or ("float32",))[0] for one in variants}
    of_variant: dict[str, list[Subject]] = {}
    for one in every:
        if one.declined is None and not choice.is_case(one):
            if one.dtype == first[one.variant]:
                of_variant.setdefault(one.variant, []).append(one)
    return [one for some in of_variant.values() for one in some[:_TIMED]]


def _name(subject: Subject) -> str:
    scenario, _, batch = subject.probe.partition("/B")
    op, _, variant = subject.variant.partition("/")
    return case_id(op, variant, scenario, subject.dtype, int(batch))


def _print_speeds(timed: Mapping[str, Sequence[Executed]], processes: int) -> None:
    from batchline.bench.commands import _emulation_tables as show
    from batchline.bench.report.render.terminal import wrapped

    print(show.speeds_table(timed, processes))
    print()
    print(
        wrapped(
            f"{processes} processes at once, one a core; each grid is executed by all of them. Seconds are "
            "of the machine alone, summed over the processes: parsing, compiling and checking results are "
            "left out."
        )
    )
