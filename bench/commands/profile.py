"""`batchline profile`: one case under Nsight Compute or Triton's proton; without a GPU,
what its machine code does.

The two profilers are called as their manuals say; nobody has run this on a GPU yet.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batchline.bench import units
from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.measure import stand_in
from batchline.bench.measure.compiled import compile_pool
from batchline.bench.statuses import case_id, parse_case_id
from batchline.bench.texts import did_you_mean
from batchline.kernels import architectures

if TYPE_CHECKING:
    from batchline.bench.declared import Declared, DeclaredOp


_TIME = "time (ns)"
_CALLS = "count"
HELP = "one case under ncu or proton; without a GPU its hot loop"
SAMPLE = """
bmm/triton_naive/square_128/float16/B64: no GPU here, so this is what the compiler made of it for
  sm_90, not yet run

Hot loop: 85 of 382 instructions, from 0xd40 to 0x12f0
69 integer, address, move, 9 barrier or wait, 4 global load, 16 B, 2 tensor core, 1 branch
    d40  DEPBAR.LE SB0, 0x0                                          ← barrier or wait
"""
EXITS = {
    ExitCode.CLEAN: "the profile is above",
    ExitCode.FAULT: "the profiler failed",
    ExitCode.USAGE: "no such case, architecture or device",
    ExitCode.NOT_MEASURED: "there is nothing to show here",
    ExitCode.STOPPED: "stopped by Ctrl-C",
}
_ONE_CALL = (sys.executable, "-m", "batchline.bench.measure.worker.one_call")
_NCU = (
    "ncu",
    "--set",
    "detailed",
    "--profile-from-start",
    "off",
    "--target-processes",
    "all",
)
_NOT_PERMITTED = "ERR_NVGPUCTRPERM"


@dataclass(frozen=True)
class KernelTime:
    """A kernel's calls, their seconds in all, and its share of all kernels' time."""

    name: str
    calls: int
    seconds: float
    share: float


def kernel_times(profile: Sequence[Mapping]) -> list[KernelTime]:
    """The leaves of a hatchet profile (a list of trees, and the devices last) by name,
    the slowest first.
    """
    totals: dict[str, list[float]] = {}
    for tree in profile:
        for name, calls, nanoseconds in _leaves(tree):
            total_of_one = totals.setdefault(name, [0, 0.0])
            total_of_one[0] += calls
            total_of_one[1] += nanoseconds
    total = sum(nanoseconds for _, nanoseconds in totals.values()) or 1.0
    times = [
        KernelTime(name, int(calls), nanoseconds * 1e-9, nanoseconds / total)
        for name, (calls, nanoseconds) in totals.items()
    ]
    return sorted(times, key=lambda one: -one.seconds)


def _leaves(node: Mapping) -> Iterator[tuple[str, float, float]]:
    children = node.get("children", ())
    metrics = node.get("metrics", {})
    if not children and metrics.get(_TIME):
        yield node["frame"]["name"], metrics.get(_CALLS, 1), metrics[_TIME]
    for child in children:
        yield from _leaves(child)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", help="its id, as `batchline list` shows it")
    _arguments.add_ops(parser)
    _arguments.add_device(parser)
    known = ", ".join(map(str, architectures.KNOWN))
    parser.add_argument(
        "--architecture",
        type=_arguments.count,
        default=architectures.WITHOUT_GPU,
        metavar="NUMBER",
        help=f"without a GPU: what it is compiled for, {known} (default: "
        f"{architectures.WITHOUT_GPU})",
    )


def run(options: argparse.Namespace) -> int:
    return profile(options.case, options.device, options.architecture)


def profile(case: str, device: str, architecture: int) -> int:
    """Show where the case's time goes: on a GPU by ncu or proton, else by its machine
    code for sm_`architecture`.

    Returns:
        The exit code, as EXITS has it.

    Raises:
        UsageError: if there is no such case, or the architecture is none that is
        compiled for.
        ValueError: for an unknown device.
    """
    from batchline.bench.measure.compiled.static_facts import code_of_case
    from batchline.bench.measure.machine import environment
    from batchline.bench.report.render.terminal import wrapped

    try:
        architectures.known(architecture)
    except ValueError as error:
        raise UsageError(str(error)) from error
    variant = _variant(case)
    device = environment.resolve_device(device)
    if device == "cuda" and not variant.why_not_here(device):
        return _call_on_stand_in(case) if stand_in.is_on() else _profile_on_gpu(case)
    code, problems = compile_pool.each(code_of_case, [(case, architecture)])
    if problems:
        why = problems[0].removeprefix(f"{case} {architecture}: ")
        why = why.removeprefix("ValueError: ")
        _say(f"{why}. What is known of the case: batchline explain {case}")
        return ExitCode.NOT_MEASURED
    print(
        wrapped(
            f"{case}: no GPU here, so this is what the compiler made of it for sm_{architecture}, not yet run"
        )
    )
    for compiled, instructions in code[case, architecture]:
        print("\n".join(["", *_describe(compiled, instructions)]))
    return ExitCode.CLEAN


def _variant(case: str) -> Declared:
    """The case's variant, if there is such a case and its file is not broken."""
    if not case:
        raise UsageError(
            "say which case: batchline profile bmm/triton_tiled/square_128/float16/B64"
        )
    from batchline.bench import catalogue

    ops = catalogue.read().ops
    try:
        parts = parse_case_id(case)
        op = ops[parts["op"]]
        variant, scenario = (
            op.variants[parts["variant"]],
            op.scenarios[parts["scenario"]],
        )
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"no case {case!r} (op/variant/scenario/dtype/B<batch>)"
            f"{_nearest(case, ops)}: `batchline list` shows the ids"
        ) from error
    if parts["dtype"] not in scenario.dtypes:
        raise UsageError(
            f"{scenario.name} is not defined in {parts['dtype']}: use {', '.join(scenario.dtypes)}"
        )
    if variant.broken:
        raise UsageError(": ".join(variant.broken))
    return variant


def _nearest(case: str, ops: Mapping[str, DeclaredOp]) -> str:
    """What may have been meant: a case of the same batch."""
    batch = case.rpartition("/B")[2]
    known = [
        case_id(op.name, variant, scenario.name, dtype, int(batch))
        for op in ops.values()
        for variant in op.variants
        for scenario in op.scenarios.values()
        for dtype in scenario.dtypes
        if batch.isdecimal()
    ]
    return did_you_mean(case, known)


def _call_on_stand_in(case: str) -> int:
    """Make the call that a profiler would watch, on the stand-in for a GPU, whose
    kernels no profiler sees.
    """
    done = subprocess.run([*_ONE_CALL, case], capture_output=True, text=True)
    if done.returncode:
        _say(f"the call failed: {_last_line(done)}")
        return ExitCode.FAULT
    _say(
        f"{case} was called, and no profiler sees a kernel that is emulated. Its machine code: "
        f"batchline profile {case} --device cpu"
    )
    return ExitCode.NOT_MEASURED


def _profile_on_gpu(case: str) -> int:
    why_not_ncu = "ncu is not in the PATH"
    if shutil.which("ncu"):
        done = subprocess.run([*_NCU, *_ONE_CALL, case], capture_output=True, text=True)
        if done.returncode == 0 and _NOT_PERMITTED not in done.stdout:
            print(done.stdout)
            return ExitCode.CLEAN
        why_not_ncu = (
            f"ncu may not read the counters ({_NOT_PERMITTED}: NVIDIA's page on it says how to allow it)"
            if _NOT_PERMITTED in done.stdout + done.stderr
            else f"ncu failed: {_last_line(done)}"
        )
    if importlib.util.find_spec("triton.profiler") is None:
        _say(f"{why_not_ncu}, and Triton's proton is not installed")
        return ExitCode.NOT_MEASURED
    _say(f"{why_not_ncu}: by Triton's proton, which knows times alone")
    return _profile_by_proton(case)


def _profile_by_proton(case: str) -> int:
    from batchline.bench.report.render.terminal import draw

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "case")
        done = subprocess.run(
            [*_ONE_CALL, case, str(path)], capture_output=True, text=True
        )
        written = path.with_suffix(".hatchet")
        if done.returncode or not written.exists():
            _say(f"proton failed: {_last_line(done)}")
            return ExitCode.FAULT
        times = kernel_times(json.loads(written.read_text(encoding="utf-8")))
    print(
        draw(
            ["kernel", "calls", "time a call", "of all"],
            (
                [
                    one.name,
                    str(one.calls),
                    units.duration(one.seconds / one.calls),
                    f"{one.share:.0%}",
                ]
                for one in times
            ),
        )
    )
    return ExitCode.CLEAN


def _say(line: str) -> None:
    """A line on stderr, wrapped."""
    from batchline.bench.report.render.terminal import wrapped

    print(wrapped(line), file=sys.stderr)


def _last_line(done: subprocess.CompletedProcess) -> str:
    return next(
        reversed((done.stderr or done.stdout).strip().splitlines()),
        f"exit code {done.returncode}",
    )


def _describe(compiled, instructions) -> Iterator[str]:
    """The kernel's facts, the work of its hot loop, and that loop with what each
    instruction is for.
    """
    from batchline.bench.measure.compiled import sass
    from batchline.bench.report.render.terminal import wrapped
    from batchline.bench.report.sections.ladder import format_compiled

    yield wrapped(
        f"{compiled.kernel} {compiled.config}: {format_compiled(vars(compiled))}"
    )
    loop = sass.hot_loop(instructions)
    if not loop:
        yield f"No loop in its {len(instructions)} instructions, which are:"
        loop = instructions
    else:
        yield (
            f"Hot loop: {len(loop)} of {len(instructions)} instructions, from {loop[0].address:#x} to "
            f"{loop[-1].address:#x}"
        )
    yield wrapped(", ".join(f"{count} {kind}" for kind, count in sass.work(loop)))
    for one in loop:
        said = "" if one.kind == sass.OTHER else f"← {one.kind}"
        yield f"  {one.address:5x}  {one.text:<58.58}  {said}".rstrip()
