"""`batchline codegen`: compile every GPU variant with no GPU, execute it in emulation, and
hold the result against what is pinned.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from batchline import own_ops
from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.store.files import SealBroken

if TYPE_CHECKING:
    from batchline.bench.declared import Catalogue
    from batchline.bench.verdicts.compiled_changes import Move

HELP = "compile and emulate every GPU variant (no GPU needed), compare with the pins"
SAMPLE = """
2 of 340 kernels moved

bmm/triton_tiled _product (2 kernels)
where                      what
-------------------------  ---------------------------------
float16 sm_90 square_128   registers 96 → 128, spills 0 → 12

12 kernels of 1 variants and dtypes compiled in 9 s, 328 more have the sources that
were pinned.

In emulation: 1 kernel is not as pinned (1 changed): 1 worse. Of bmm/triton_tiled.

bmm/triton_tiled _kernel (1 kernel)
where                              what moved
---------------------------------  --------------------------------------------------
float16 sm_90 linear_grad_weight   worse: sectors 1,024 → 2,048 (1.00x → 2.00x of the
/B2                                fewest) at product.py:89
"""
EXITS = {
    ExitCode.CLEAN: "as pinned, or pinned now",
    ExitCode.FAULT: "something moved, a kernel parts its warps, or one is not right in "
    "emulation",
    ExitCode.USAGE: "the environment is not usable, or pins can't be written",
    ExitCode.NOT_MEASURED: "it could not be compiled, or there is nothing to compare "
    "with",
    ExitCode.STOPPED: "stopped by Ctrl-C",
}

_COMPILED, _EXECUTED = "compiled", "executed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_ops(parser)
    parser.add_argument(
        "--pin",
        action="store_true",
        help="write what was compiled and executed as the pins of this toolchain",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="compile and execute also what has not changed since it was pinned",
    )
    parser.add_argument(
        "--only",
        choices=(_COMPILED, _EXECUTED),
        help="compile alone, or execute in emulation alone (default: both)",
    )


def run(options: argparse.Namespace) -> int:
    from batchline.bench.commands._executed_pins import execute_and_compare
    from batchline.bench.measure.compiled import pins

    if own_ops.folders() and not own_ops.repository():
        raise UsageError(
            "Batchline's own ops are pinned with Batchline, those of another repository "
            f"there: name the one (--ops batchline) or the other ({own_ops.options().strip()})"
        )
    if options.pin:
        pins.require_writable()
    codes = []
    if options.only != _EXECUTED:
        codes.append(codegen(options.pin, options.all))
    if options.only is None:
        print(flush=True)
    if options.only != _COMPILED:
        codes.append(execute_and_compare(options.pin, options.all))
    # Something that is wrong says more than something that could not be compared.
    return ExitCode.FAULT if ExitCode.FAULT in codes else max(codes)


def codegen(pin: bool, everything: bool) -> int:
    """Compile what has changed since it was pinned, or everything; print what moved, or
    pin it; the exit code.
    """
    from batchline.bench import catalogue
    from batchline.bench.measure.compiled import pins, static_facts
    from batchline.bench.report import of_commands as report
    from batchline.bench.verdicts import compiled_changes as verdicts

    started = time.monotonic()
    try:
        pinned = pins.load()
    except SealBroken as refusal:
        if not pin:
            return _not_compared(str(refusal))
        print(refusal)
        pinned = {}
    if not pinned and not pin:
        return _not_compared(pins.why_none())
    found = catalogue.read()
    wanted = sorted(
        static_facts.jobs(found.variants),
        key=lambda job: -len(pinned.get(job, {"kernels": ()})["kernels"]),
    )
    if not wanted:
        return _not_compared(_why_nothing_compiles(found))
    changed = [
        job for job in wanted if everything or not static_facts.is_current(job, pinned)
    ]
    # Before they are compiled: whoever edits meanwhile has not compiled what they then
    # have.
    sources = {job: static_facts.fingerprint(job[0]) for job in changed}
    fresh = static_facts.compiled(changed)
    if fresh.incomplete:
        return _not_compared(f"not compiled to the end: {fresh.incomplete}")
    unread = found.unread
    before = [
        row
        for job, entry in pinned.items()
        # What can't be read may still have its variants: they are not gone.
        if job in changed or job not in wanted and not unread
        for row in entry["kernels"]
    ]
    after = [row for job in changed for row in fresh.rows[job]]
    current = [
        row for job in wanted if job not in changed for row in pinned[job]["kernels"]
    ]
    if faults := verdicts.warp_faults([*current, *after]):
        return _refused(faults)
    moved = verdicts.moves(before, after)
    compiled = (
        f"{len(after)} kernels of {len(changed)} variants and dtypes compiled in "
        f"{time.monotonic() - started:.0f} s ({fresh.cached} of the {len(changed)} by an earlier call on this "
        f"machine), {len(wanted) - len(changed)} more have the sources that were pinned."
    )
    if pin:
        unread += verdicts.not_compiling(after)
    if pin and not unread:
        kept = {job: pinned[job] for job in wanted if job in pinned}
        new = {
            job: {"sources": sources[job], "kernels": fresh.rows[job]}
            for job in changed
        }
        print(
            "\n\n".join(
                [*([report.moves_on_terminal(moved)] if pinned else []), compiled]
            )
        )
        print(f"pinned in {os.path.relpath(pins.save(kept | new))}")
        return ExitCode.CLEAN
    details = {variant.id for variant in found.variants if variant.detail}
    _tell(moved, _advice(moved, after, details), compiled)
    if unread:
        return _not_compared(
            f"{'not pinned' if pin else 'not compared'}: {'; '.join(unread)}"
        )
    return ExitCode.FAULT if moved else ExitCode.CLEAN


def _why_nothing_compiles(found: Catalogue) -> str:
    """Why there is no (variant, dtype) to compile, in a line."""
    from batchline.kernels.backends import INTERPRETED_BACKENDS

    if found.unread:
        return f"not compared: {'; '.join(found.unread)}"
    if not any(one.backend in INTERPRETED_BACKENDS for one in found.variants):
        return f"of {', '.join(found.ops)} no variant is a GPU kernel that this compiles (Triton, Numba CUDA)"
    return "there is nothing to compile with: install what requirements.txt lists (`make install`)"


def _tell(moved: Sequence[Move], advice: Sequence[str], compiled: str) -> None:
    """The table and what to do now, to the terminal and to GitHub."""
    from batchline.bench.report import of_commands as report
    from batchline.bench.report.render import github

    print("\n\n".join([report.moves_on_terminal(moved), *advice, compiled]))
    github.step_summary(
        "\n\n".join(
            ["## Compiled code", report.moves_on_github(moved), *advice, compiled]
        )
    )
    github.announce("error", report.move_annotations(moved))


def _advice(
    moved: Sequence[Move], after: Sequence[Mapping], details: Collection[str]
) -> list[str]:
    """What to do about what moved; `details` are the ids of the variants that the
    default profile leaves out.
    """
    from batchline.bench.measure.compiled import pins
    from batchline.bench.verdicts import compiled_changes as verdicts

    if not moved:
        return []
    expression = verdicts.cases_to_time_again(moved, after)
    profile = _profile(moved, details)
    regress = (
        f'batchline regress{own_ops.options()} --base <revision> {profile and "--profile full "}-k "{expression}"'
        if own_ops.repository()
        else f'make regress BASE=<revision> {profile}K="{expression}"'
    )
    return [
        *([f"On a GPU, time again what moved: `{regress}`"] if expression else []),
        f"Where it is meant: {pins.command()}, and commit the file.",
    ]


def _profile(moved: Sequence[Move], details: Collection[str]) -> str:
    """ "PROFILE=full ", where the default profile leaves a case out that moved."""
    from batchline.bench.cases import PROFILES

    timed = PROFILES["quick"].dtypes["cuda"]
    return (
        "PROFILE=full "
        if any(move.dtype not in timed or move.variant in details for move in moved)
        else ""
    )


def _refused(faults: Sequence[str]) -> int:
    """Nothing is compared or pinned where a kernel is wrong."""
    from batchline.bench.report.render import github

    print(
        "batchline: not pinned: these run an instruction of a whole warp without all of the warp, or in another loop",
        *faults,
        sep="\n  ",
        file=sys.stderr,
    )
    github.announce("error", [("codegen: parted warps", "\n".join(faults))])
    return ExitCode.FAULT


def _not_compared(why: str) -> int:
    from batchline.bench.report.render import github

    print(f"batchline: {why}", file=sys.stderr)
    github.announce("error", [("codegen", why)])
    return ExitCode.NOT_MEASURED
