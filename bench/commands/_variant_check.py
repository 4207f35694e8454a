"""What a variant's file gets wrong, in seconds and in one line (`batchline check`).

A variant is asked in this order, and the first thing that is wrong is its line:
its name, its import, what it declares, its import where no compiler is installed, and
then every probe of its op, in every dtype that it takes, on this machine.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchline import kernels, own_ops
from batchline.bench import catalogue, reader
from batchline.bench.cases import CLOCKS
from batchline.bench.declared import Catalogue, Declared, DeclaredOp, Problem
from batchline.bench.errors import UsageError
from batchline.bench.measure.machine.environment import resolve_device
from batchline.bench.measure.machine.state import VARIABLE
from batchline.bench.measure.reading import declarations
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker.isolation import Isolation
from batchline.bench.measure.worker.task import Outcome, Task
from batchline.bench.selection import selected
from batchline.bench.statuses import (
    BROKEN,
    CRASHED,
    FAILED,
    HUNG,
    MEASURED,
    OUT_OF_MEMORY,
    UNSUPPORTED,
    WRONG,
    is_machines_fault,
)
from batchline.bench.store.regressions import INVALID
from batchline.bench.texts import clean_line, did_you_mean, error_line
from batchline.bench.verdicts import ranking
from batchline.kernels.discovery import is_name
from batchline.kernels.op import FP8, WIDE

RIGHT, IS_WRONG, NOT_RUN = "right", "wrong", "not run"
_DTYPES = (*WIDE, FP8)
_BATCHES = (3, 64)  # of the problem that is measured once; probes have their own
_MOST_FLOPS, _MOST_BYTES = 2e8, 2**24
_EFFORT = Effort(precision=0.05, seconds=0.03)  # no time is shown
_WARM_UP_S = 0.01
_COMPILERS = ("triton", "numba", "opacus", "backpack")
_COMPILER_NEEDED = (
    "it can't be imported where no compiler is installed: {}: take compilers from "
    "batchline.kernels.backends (triton, tl, numba, cuda), and peers in the function"
)
_BY_REASON = (  # parts of the checker's lines
    ("it changed its inputs", "write into outputs of its own alone"),
    ("never written", "write each element of each output, at ragged edges too"),
    ("memory", "allocate each output anew in each call, with torch.empty"),
    ("differ", "add in one order on every call: no atomics"),
    ("overwrote", "allocate each output anew in each call, with torch.empty"),
    ("new values in the same buffers", "remember nothing by an input's address"),
    ("the result has shape", "return {op}'s outputs in its shapes"),
    ("the result is torch.", "return {op}'s outputs in its dtypes, on its device"),
    ("elements are", "compare it with the reference in {op}/__init__.py"),
    ("what rounding typically", "add up in fp32, in blocks"),
    ("it left", "leave its process as it was before the call"),
    ("it replaced", "leave its process as it was before the call"),
)
_WHAT_TO_DO = {
    FAILED: "mend it, or decline such inputs with `dtypes=` or `supports=`",
    OUT_OF_MEMORY: "take less memory, or decline such inputs with `supports=`",
    CRASHED: "look for a write out of bounds: it ends its process",
    HUNG: "look for a loop without an end, or allow more with --deadline",
}


@dataclass(frozen=True)
class Verdict:
    """What is said of one variant: RIGHT, IS_WRONG or NOT_RUN, and a line."""

    kind: str
    line: str


def verdicts(
    expression: str, device: str, deadline_s: float
) -> Iterator[tuple[str, Verdict]]:
    """Each variant that the expression chooses, as op/variant, and what is said of it:
    first of those whose declaration is wrong already.

    Args:
        expression: as pytest's -k; "" chooses all.
        device: "auto", "cpu", "cuda" or the stand-in's name.
        deadline_s: the longest that one step may take.

    Raises:
        UsageError: for an expression that is none or matches nothing.
        ValueError: for an unknown device.
    """
    with reader.started_ahead():
        folders = own_ops.read_folders(Path(kernels.__path__[0]))
        chosen = _chosen(
            [one for folder in folders for one in _ids(folder)], expression
        )
        yield from _verdicts(chosen, device, deadline_s)


def _ids(folder: Path) -> list[str]:
    """op/variant of each file that should be a variant, whatever it is called; "op/" of
    an op that has none.
    """
    ids = []
    for op in sorted(folder.iterdir()):
        if op.is_dir() and op.name[0] not in "_.":
            files = {path.stem for path in op.glob("*.py")}
            packages = {path.parent.name for path in op.glob("*/__init__.py")}
            names = [name for name in sorted(files | packages) if name[0] not in "_."]
            if not names and (op / "__init__.py").is_file():
                names = [""]
            ids += [f"{op.name}/{name}" for name in names]
    return ids


def _chosen(ids: Sequence[str], expression: str) -> list[str]:
    try:
        return selected(ids, expression, "as op/variant")
    except UsageError as error:
        names = {one.rpartition("/")[2]: one for one in ids}
        close = difflib.get_close_matches(expression, [*ids, *names], n=1)
        if not close or did_you_mean(expression, ids):  # which is said already
            raise
        meant = names.get(close[0], close[0])
        raise UsageError(f"{error}; did you mean {meant!r}?") from error


def _verdicts(
    chosen: Sequence[str], device_name: str, deadline_s: float
) -> Iterator[tuple[str, Verdict]]:
    importable = [one for one in chosen if all(map(is_name, one.split("/")))]
    wrong = _need_a_compiler(importable, deadline_s)  # first: a fork must find no CUDA
    device = resolve_device(device_name)
    with _own_workers(device, deadline_s) as workers:  # they start while files are read
        read = catalogue.read(_request(chosen), deadline_s)
        wrong |= {one: line for one in chosen if (line := _declared_wrongly(read, one))}
        yield from ((one, Verdict(IS_WRONG, line)) for one, line in wrong.items())
        for one in chosen:
            if one not in wrong:
                op_name, name = one.split("/")
                op = read.ops[op_name]
                yield one, _checked(workers, op, op.variants[name], device)


def _request(chosen: Sequence[str]) -> dict:
    """What is asked of the chosen variants' files."""
    return {
        "dtypes": _DTYPES,
        "batches": _BATCHES,
        "details": True,
        "flops": _MOST_FLOPS,
        "bytes": _MOST_BYTES,
        "variants": chosen,
    }


def _declared_wrongly(read: Catalogue, variant_id: str) -> str | None:
    """What is wrong with a variant's name, file or declaration; None if nothing is."""
    op_name, _, name = variant_id.partition("/")
    for part, what in ((op_name, "an op"), (name, "a variant")):
        if part and not is_name(part):
            return (
                f"{part!r} can't name {what}: rename it to ASCII letters, digits "
                "and _, the first no digit"
            )
    op = read.ops.get(op_name)
    if op is None:
        return _broken_op(read, op_name)
    if not name:
        return "it has no variant in a file of its own: write its baseline's"
    variant = op.variants[name]
    if variant.broken:
        return clean_line(variant.broken[1])
    if not variant.idea:
        return "it has no docstring: write what is different about it in its first line"
    return _wrong_dtype(op, variant) or _refused_in_error(op, variant)


def _broken_op(read: Catalogue, op_name: str) -> str:
    for one in read.broken:
        if op_name in Path(one.file).parts[1:2]:
            return f"its op can't be read: {one}"
    return f"{op_name}/ is no op: it needs an __init__.py that makes one"


def _wrong_dtype(op: DeclaredOp, variant: Declared) -> str | None:
    """Which dtype a variant declares that its op has not."""
    known = {
        dtype: None for scenario in op.scenarios.values() for dtype in scenario.dtypes
    }
    for dtype in variant.dtypes or ():
        if dtype not in known:
            return (
                f"dtypes: no scenario of {op.name} is in {dtype}: declare some of "
                f"{', '.join(known)}"
            )
    return None


def _refused_in_error(op: DeclaredOp, variant: Declared) -> str | None:
    for refusal in op.refusals[variant.name]:
        if refusal and refusal[0] in BROKEN:
            return f"{refusal[1]}: return a reason, or None"
    return None


def _with_advice(op_name: str, status: str, reason: str) -> str:
    """The reason, and what to do about it."""
    kind = "" if status in (WRONG, FAILED, INVALID) else f"{status}: "
    advice = _WHAT_TO_DO.get(status, "")
    if status == WRONG:
        advice = next((todo for part, todo in _BY_REASON if part in reason), "")
    advice = f": {advice.format(op=op_name)}" if advice else ""
    return f"{kind}{clean_line(reason)}{advice}"


def _need_a_compiler(variant_ids: Sequence[str], deadline_s: float) -> dict[str, str]:
    """What is wrong with those that can't be imported where no compiler and no GPU is."""
    by_op: dict[str, list[str]] = {}
    for one in variant_ids:
        by_op.setdefault(one.partition("/")[0], []).append(one)
    jobs = [
        declarations.Job(op_name, _import_without_compilers(ids))
        for op_name, ids in by_op.items()
    ]
    wrong = {}
    for job, told in declarations.each(jobs, deadline_s, os.cpu_count() or 1):
        if isinstance(told, declarations.Ended):
            imported = dict(told.data)
            if told.failure:  # of the one after the last that was imported
                imported[by_op[job.name][len(imported)]] = told.failure[1]
            wrong |= {
                one: _COMPILER_NEEDED.format(why)
                for one, why in imported.items()
                if why
            }
    return wrong


def _import_without_compilers(variant_ids: Sequence[str]):
    """The work of a process that imports the variants' files as if there were only
    torch.
    """

    def work(begin: declarations.Begin) -> Iterator[tuple[str, str | None]]:
        for module in list(sys.modules):
            root = module.partition(".")[0]
            if root in _COMPILERS or f"{module}.".startswith("batchline.kernels."):
                del sys.modules[module]
        sys.meta_path.insert(0, _NotInstalled())
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        for one in variant_ids:
            begin(f"importing {one} without compilers")
            try:
                importlib.import_module(f"batchline.kernels.{one.replace('/', '.')}")
            except (Exception, SystemExit) as error:
                yield one, error_line(error)
            else:
                yield one, None

    return work


class _NotInstalled:
    """A finder that finds none of the compilers."""

    def find_spec(self, name, path=None, target=None):
        """Raise ModuleNotFoundError for a compiler; leave others to the next finder."""
        if name.partition(".")[0] in _COMPILERS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextlib.contextmanager
def _own_workers(device: str, deadline_s: float) -> Iterator[Isolation]:
    """Processes that variants run in. They may be as slow as a busy machine makes them."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    workers = Isolation(device, deadline_s)
    try:
        yield workers
    finally:
        workers.close()
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _checked(
    workers: Isolation, op: DeclaredOp, variant: Declared, device: str
) -> Verdict:
    """Run a variant on its op's probes and on one problem, in each dtype that it takes
    here.
    """
    passed, unranked, reasons = {}, None, []
    for dtype in _dtypes(op, variant):
        problem, why = _smallest_problem(op, variant, dtype)
        why = variant.why_not_here(device, dtype) or why
        if why:
            reasons.append(why)
            continue
        outcome = _measured(workers, variant, problem, device)
        if outcome.status != MEASURED and not is_machines_fault(
            outcome.status, outcome.reason
        ):
            line = _with_advice(op.name, outcome.status, outcome.reason)
            return Verdict(IS_WRONG, f"in {dtype}: {line}")
        passed[dtype] = outcome.facts.get("probes")
        unranked = unranked or ranking.why_unranked(outcome)
    if not passed:
        return Verdict(
            NOT_RUN, f"{reasons[0]} (its name, imports and dtypes are right)"
        )
    line = f"{max(n or 0 for n in passed.values())} probes in {', '.join(passed)}"
    return Verdict(RIGHT, f"{line}; never ranked: it {unranked}" if unranked else line)


def _dtypes(op: DeclaredOp, variant: Declared) -> list[str]:
    """Those that both the op and the variant have."""
    known = {
        dtype: None for scenario in op.scenarios.values() for dtype in scenario.dtypes
    }
    return [
        dtype for dtype in known if variant.dtypes is None or dtype in variant.dtypes
    ]


def _smallest_problem(
    op: DeclaredOp, variant: Declared, dtype: str
) -> tuple[Problem | None, str | None]:
    """The problem of least work that the variant takes in a dtype; or None, and why it
    takes none.
    """
    why, taken = f"no problem in {dtype} is small enough to check it on", []
    for problem, refusal in zip(op.problems, op.refusals[variant.name]):
        if problem.dtype == dtype:
            if refusal is None:
                taken.append(problem)
            elif refusal[0] == UNSUPPORTED:
                why = refusal[1]
    if not taken:
        return None, why
    return min(taken, key=lambda problem: problem.flops), None


def _measured(
    workers: Isolation, variant: Declared, problem: Problem, device: str
) -> Outcome:
    """What became of it: its probes first, then the problem, then a few samples whose
    outputs are looked at.
    """
    task = Task(
        *problem.key,
        entries=((variant.id, variant.name),),
        clocks=CLOCKS[device][:1],
        effort=_EFFORT,
        other_effort=_EFFORT,
        warm_up_s=_WARM_UP_S,
    )
    return workers.measure(task)[variant.id]
