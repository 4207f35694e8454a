"""`batchline emulate`: execute GPU kernels without a GPU, and say what is wrong with them
and what they did.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchline.bench import console
from batchline.bench.commands import _arguments
from batchline.bench.commands._progress import Progress
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.statuses import case_id, parse_case_id
from batchline.bench.texts import did_you_mean

if TYPE_CHECKING:
    from batchline.bench.declared import Catalogue, Declared
    from batchline.bench.measure.compiled.compile_pool import Pool
    from batchline.bench.measure.emulated.executed import Executed
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
    ExitCode.USAGE: "no kernel, dtype or probe is called so",
    ExitCode.NOT_MEASURED: "nothing could be executed: the compilers are not "
    "installed, or all was declined",
    ExitCode.STOPPED: "stopped by Ctrl-C",
}
READS_OPS = True
_ARCHITECTURES = (80, 90)  # as bench.measure.emulator.subjects, which imports torch
_SCHEDULES = ("late", "early", "shuffled")
_PARTS = 5  # of a case id
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
        choices=_ARCHITECTURES,
        help="80 or 90 of sm_90; may be repeated (default: both)",
    )
    parser.add_argument("--dtype", help="only this dtype")
    parser.add_argument(
        "--probe", help="only the probe of this name, or those with it in their names"
    )
    parser.add_argument(
        "--schedule",
        choices=(*_SCHEDULES, "all"),
        default="all",
        help="asynchronous work late or early, or blocks and warps shuffled (default: "
        "all of them)",
    )
    parser.add_argument(
        "--lines", action="store_true", help="with what each line of the source did"
    )
    parser.add_argument(
        "--each", action="store_true", help="a row for each probe, however many"
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
        "at most so many of a kind, and say whether that is noticed",
    )
    parser.add_argument(
        "--speed",
        action="store_true",
        help="instead: how many instructions a second the emulator executes",
    )


@dataclass(frozen=True)
class Chosen:
    """The subjects, and a line for each variant whose subjects can't be told."""

    subjects: tuple[Subject, ...]
    broken: tuple[str, ...]


def run(options: argparse.Namespace) -> int:
    from batchline.bench import catalogue
    from batchline.bench.measure.compiled.compile_pool import Pool

    found = catalogue.read()
    with Pool(max(_LEAST_PROCESSES, os.cpu_count() or 1)) as pool:
        if options.speed:
            return _tell_speed(pool, found)
        variants, cases = _named(found, options.what)
        if why := _why_none([*variants, *cases.values()]):
            console.complain(why)
            return ExitCode.NOT_MEASURED
        chosen = _chosen(pool, options, variants, cases)
        if options.mutants is not None:
            return _judge_mutants(pool, options.mutants, chosen)
        return _execute(pool, options, chosen)


def _named(
    found: Catalogue, names: Sequence[str]
) -> tuple[list[Declared], dict[str, Declared]]:
    """The GPU variants that are named, and the variants of the case ids by those.

    Raises:
        UsageError: for a name that fits none.
    """
    kernels = [one for one in found.variants if _is_kernel(one)]
    variants, cases = {}, {}
    for name in names or [""]:
        if name.count("/") == _PARTS - 1:
            cases[name] = _variant_of_case(found, name)
            continue
        exact = [one for one in kernels if one.id == name]
        fitting = exact or [one for one in kernels if name in one.id]
        if not fitting:
            raise UsageError(_why_no_kernel(found, kernels, name))
        variants |= {one.id: one for one in fitting}
    return list(variants.values()), cases


def _is_kernel(variant: Declared) -> bool:
    return variant.backend in ("triton", "numba_cuda")


def _why_no_kernel(found: Catalogue, kernels: Sequence[Declared], name: str) -> str:
    other = next((one for one in found.variants if one.id == name), None)
    if other is not None and other.broken:
        return f"{name} can't be read: {': '.join(other.broken)}"
    if other is not None:
        return (
            f"{name} is no kernel that can be emulated: its backend is {other.backend}, "
            "and Triton's and Numba's kernels are"
        )
    near = did_you_mean(name, [one.id for one in kernels])
    return f"no GPU kernel is called {name!r}{near}: `batchline list` shows the ids"


def _variant_of_case(found: Catalogue, case: str) -> Declared:
    """The GPU variant of a case id.

    Raises:
        UsageError: if there is no such variant, scenario, dtype or batch.
    """
    try:
        parts = parse_case_id(case)
    except ValueError as error:
        raise UsageError(
            f"{case!r} is no case id: its last part is B8 or so"
        ) from error
    name = f"{parts['op']}/{parts['variant']}"
    variant = next((one for one in found.variants if one.id == name), None)
    if variant is None or not _is_kernel(variant):
        kernels = [one for one in found.variants if _is_kernel(one)]
        raise UsageError(_why_no_kernel(found, kernels, name))
    scenarios = found.ops[variant.op].scenarios
    if parts["scenario"] not in scenarios:
        near = did_you_mean(parts["scenario"], scenarios)
        raise UsageError(f"{variant.op} has no scenario {parts['scenario']!r}{near}")
    if parts["dtype"] not in (variant.dtypes or ()):
        raise UsageError(
            f"{name} takes {', '.join(variant.dtypes or ())}: not that dtype"
        )
    if parts["batch"] < 1:
        raise UsageError(f"{case}: the batch must be 1 or more")
    return variant


def _why_none(variants: Sequence[Declared]) -> str | None:
    """Why nothing of the variants can be executed here, or None."""
    from batchline.bench.measure.compiled.compiler import why_cannot_compile

    whys = {one.backend: why_cannot_compile(one.backend) for one in variants}
    return None if None in whys.values() else "; ".join(filter(None, whys.values()))


def _chosen(
    pool: Pool,
    options: argparse.Namespace,
    variants: Sequence[Declared],
    cases: Mapping[str, Declared],
) -> Chosen:
    """The subjects of the variants and cases, as the options limit them.

    Raises:
        UsageError: if no subject is left.
    """
    from batchline.bench.measure.emulated import executed

    architectures = tuple(dict.fromkeys(options.arch or _ARCHITECTURES))
    can = [one for one in variants if executed.why_not_executed(one.backend) is None]
    listed, broken = pool.each(
        executed.subjects_of, [(one.id, architectures) for one in can]
    )
    wanted = [(one.id, *_problem(case), architectures) for case, one in cases.items()]
    of_cases, more = pool.each(executed.case_of, wanted)
    every = [
        *(
            one
            for job in [(one.id, architectures) for one in can]
            for one in listed.get(job, ())
        ),
        *(one for job in wanted for one in of_cases.get(job, ())),
    ]
    left = _limited(every, options)
    if not left and not broken and not more:
        raise UsageError(_why_nothing_left(every, options))
    return Chosen(tuple(left), (*broken, *more))


def _problem(case: str) -> tuple[str, str, int]:
    parts = parse_case_id(case)
    return parts["scenario"], parts["dtype"], parts["batch"]


def _limited(every: Sequence[Subject], options: argparse.Namespace) -> list[Subject]:
    """Those of the dtype and of the probe."""
    exact = any(one.probe == options.probe for one in every)
    return [
        one
        for one in every
        if options.dtype in (None, one.dtype)
        and (
            one.probe == options.probe if exact else (options.probe or "") in one.probe
        )
    ]


def _why_nothing_left(every: Sequence[Subject], options: argparse.Namespace) -> str:
    dtypes = dict.fromkeys(one.dtype for one in every)
    if options.dtype is not None and options.dtype not in dtypes:
        return f"no dtype {options.dtype!r} here: {', '.join(dtypes)}"
    probes = dict.fromkeys(one.probe for one in every)
    near = did_you_mean(options.probe or "", probes)
    return f"no probe {options.probe!r}{near} here: {', '.join(probes)}"


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
    problems = [*chosen.broken, *problems]
    parts = [show.summary(rows)] if len(rows) > _MOST_ROWS and not options.each else []
    if rows and not parts:
        parts = list(show.tables(rows))
    if rows:
        parts.append(show.legend())
    parts += _of_lines(rows) if with_lines else []
    parts += show.wrong(rows, len(schedules))
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


def _judge_mutants(pool: Pool, most: int, chosen: Chosen) -> int:
    """Print what share of the mutants of the subjects' kernels is noticed, by kind, and
    each that is not; the exit code.
    """
    from batchline.bench.commands import _emulation_tables as show
    from batchline.bench.measure.emulated import executed

    taken = [one for one in chosen.subjects if one.declined is None]
    jobs = [(one, most) for one in taken]
    with Progress() as progress:
        results, problems = pool.each(
            executed.judge_mutants,
            jobs,
            tell=lambda done: progress.tell(done, len(jobs)),
        )
    judged = [one for job in jobs for one in results.get(job, ())]
    missed = show.missed_mutants(judged)
    problems = [*chosen.broken, *problems]
    parts = [show.mutants_table(judged), "\n".join(missed), "\n".join(problems)]
    print("\n\n".join(filter(None, parts)))
    if missed or problems:
        return ExitCode.FAULT
    return ExitCode.CLEAN if judged else ExitCode.NOT_MEASURED


def _of_lines(rows: Sequence[Executed]) -> list[str]:
    from batchline.bench.commands import _emulation_tables as show

    return [
        f"{one.subject}: {show.classes(one.counts)}\n{show.lines_table(one.lines)}"
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


def _tell_speed(pool: Pool, found: Catalogue) -> int:
    """Print warp instructions a second of a process: over small probes of every kernel
    in its first dtype, and of two large grids.
    """
    from batchline.bench.measure.emulated import executed
    from batchline.bench.report.render.terminal import draw

    variants, cases = _named(found, ["", *_GRIDS])
    if why := _why_none(variants):
        console.complain(why)
        return ExitCode.NOT_MEASURED
    options = argparse.Namespace(arch=[90], dtype=None, probe=None)
    first = {one.id: (one.dtypes or ("float32",))[0] for one in variants}
    chosen = _chosen(pool, options, variants, cases)
    grids = [one for one in chosen.subjects if "/B" in one.probe]
    probes = _small(
        one
        for one in chosen.subjects
        if one not in grids and one.dtype == first[one.variant] and one.declined is None
    )
    rows = []
    for name, some in (("probes", probes), *((_name(one), [one]) for one in grids)):
        turns = executed.turns(some, ("late",))
        executed.execute_all(pool, turns[:_LEAST_PROCESSES])  # compiles the emulator
        done, problems = executed.execute_all(pool, turns)
        if problems:
            raise UsageError(problems[0])
        rows.append((name, *_speed(done)))
    print(
        draw(
            ("what", "subjects", "warp instructions", "seconds", "a second"),
            rows,
        )
    )
    print(
        "\nA second of one process, in the machine alone: parsing, compiling and checking "
        "results are left out."
    )
    return ExitCode.CLEAN


def _small(probes: Iterable[Subject]) -> list[Subject]:
    """The first few of each variant, which are the smallest."""
    of_variant: dict[str, list[Subject]] = {}
    for one in probes:
        of_variant.setdefault(one.variant, []).append(one)
    return [one for some in of_variant.values() for one in some[:_TIMED]]


def _name(subject: Subject) -> str:
    scenario, _, batch = subject.probe.partition("/B")
    op, _, variant = subject.variant.partition("/")
    return case_id(op, variant, scenario, subject.dtype, int(batch))


def _speed(done: Sequence[Executed]) -> tuple[str, ...]:
    instructions = sum(one.instructions for one in done)
    seconds = sum(one.machine_s for one in done)
    return (
        f"{len(done)}",
        f"{instructions:,}",
        f"{seconds:.2f}",
        f"{instructions / seconds / 1e6:.1f} M",
    )
