"""`batchline profile`: one case under Nsight Compute or Triton's proton; without a GPU,
what its machine code does.

The two profilers are called as their manuals say; nobody has run this on a GPU yet.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from batchline.bench import units
from batchline.bench.declared import Declared
from batchline.bench.errors import UsageError
from batchline.bench.measure import (
    catalogue,
    compile_pool,
    environment,
    hot_loop,
    stand_in,
)
from batchline.bench.measure.machine_code import code_of_case
from batchline.bench.records import parse_case_id
from batchline.bench.report.fitting import TERMINAL, wrapped
from batchline.bench.report.static import shown_facts
from batchline.bench.verdicts.proton import kernel_times
from batchline.kernels import architectures

DONE, FAILED, NOTHING_TO_SHOW = 0, 1, 3
_ONE_CALL = (sys.executable, "-m", "batchline.bench.measure.one_call")
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


def profile(case: str, device: str, architecture: int) -> int:
    """Show where the case's time goes: on a GPU by ncu or proton, else by its machine
    code for sm_`architecture`.

    Returns:
        0, 1 where the profiler failed, 3 where there is nothing to show here.

    Raises:
        UsageError: if there is no such case, or the architecture is none that is
        compiled for.
        ValueError: for an unknown device.
    """
    variant = _variant(case)
    try:
        architectures.known(architecture)
    except ValueError as error:
        raise UsageError(str(error)) from error
    device = environment.resolve_device(device)
    if device == "cuda" and not variant.why_not_here(device):
        return _called(case) if stand_in.is_on() else _profiled(case)
    code, problems = compile_pool.each(code_of_case, [(case, architecture)])
    if problems:
        print(
            wrapped(
                f"{problems[0]}. What is known of the case: make explain CASE={case}"
            ),
            file=sys.stderr,
        )
        return NOTHING_TO_SHOW
    print(
        wrapped(
            f"{case}: no GPU here, so this is what the compiler made of it for sm_{architecture}, not yet run"
        )
    )
    for compiled, instructions in code[case, architecture]:
        print("\n".join(["", *_shown(compiled, instructions)]))
    return DONE


def _variant(case: str) -> Declared:
    """The case's variant, if there is such a case and its file is not broken."""
    if not case:
        raise UsageError(
            "say which case: make profile CASE=bmm/triton_tiled/square_128/float16/B64"
        )
    try:
        parts = parse_case_id(case)
        op = catalogue.read().ops[parts["op"]]
        variant, scenario = (
            op.variants[parts["variant"]],
            op.scenarios[parts["scenario"]],
        )
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"no case {case!r} (op/variant/scenario/dtype/B<batch>): `make list` shows the ids"
        ) from error
    if parts["dtype"] not in scenario.dtypes:
        raise UsageError(
            f"{scenario.name} is not defined in {parts['dtype']}: use {', '.join(scenario.dtypes)}"
        )
    if variant.broken:
        raise UsageError(": ".join(variant.broken))
    return variant


def _called(case: str) -> int:
    """Make the call that a profiler would watch, on the stand-in for a GPU, whose
    kernels no profiler sees.
    """
    done = subprocess.run([*_ONE_CALL, case], capture_output=True, text=True)
    if done.returncode:
        print(wrapped(f"the call failed: {_last_line(done)}"), file=sys.stderr)
        return FAILED
    print(
        wrapped(
            f"{case} was called, and no profiler sees an interpreted kernel. Its machine code: make profile "
            f"CASE={case} DEVICE=cpu"
        ),
        file=sys.stderr,
    )
    return NOTHING_TO_SHOW


def _profiled(case: str) -> int:
    why_not_ncu = "ncu is not in the PATH"
    if shutil.which("ncu"):
        done = subprocess.run([*_NCU, *_ONE_CALL, case], capture_output=True, text=True)
        if done.returncode == 0 and _NOT_PERMITTED not in done.stdout:
            print(done.stdout)
            return DONE
        why_not_ncu = (
            f"ncu may not read the counters ({_NOT_PERMITTED}: NVIDIA's page on it says how to allow it)"
            if _NOT_PERMITTED in done.stdout + done.stderr
            else f"ncu failed: {_last_line(done)}"
        )
    if importlib.util.find_spec("triton.profiler") is None:
        print(
            wrapped(f"{why_not_ncu}, and Triton's proton is not installed"),
            file=sys.stderr,
        )
        return NOTHING_TO_SHOW
    print(
        wrapped(f"{why_not_ncu}: by Triton's proton, which knows times alone"),
        file=sys.stderr,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "case")
        done = subprocess.run(
            [*_ONE_CALL, case, str(path)], capture_output=True, text=True
        )
        found = path.with_suffix(".hatchet")
        if done.returncode or not found.exists():
            print(wrapped(f"proton failed: {_last_line(done)}"), file=sys.stderr)
            return FAILED
        times = kernel_times(json.loads(found.read_text(encoding="utf-8")))
    print(
        TERMINAL.render(
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
    return DONE


def _last_line(done: subprocess.CompletedProcess) -> str:
    return next(
        reversed((done.stderr or done.stdout).strip().splitlines()),
        f"exit code {done.returncode}",
    )


def _shown(compiled, instructions) -> Iterator[str]:
    """The kernel's facts, the work of its hot loop, and that loop with what each
    instruction is for.
    """
    yield wrapped(f"{compiled.kernel} {compiled.config}: {shown_facts(vars(compiled))}")
    loop = hot_loop.hot_loop(instructions)
    if not loop:
        yield f"No loop in its {len(instructions)} instructions, which are:"
        loop = instructions
    else:
        yield (
            f"Hot loop: {len(loop)} of {len(instructions)} instructions, from {loop[0].address:#x} to "
            f"{loop[-1].address:#x}"
        )
    yield wrapped(", ".join(f"{count} {kind}" for kind, count in hot_loop.work(loop)))
    for one in loop:
        said = "" if one.kind == hot_loop.OTHER else f"← {one.kind}"
        yield f"  {one.address:5x}  {one.text:<58.58}  {said}".rstrip()
