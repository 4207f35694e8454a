"""`batchline codegen`: compile every GPU variant with no GPU, and hold the result against
what is pinned.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping, Sequence

from batchline.bench.report import ci
from batchline.bench.report import codegen as report
from batchline.bench.sealed import SealBroken
from batchline.bench.verdicts import codegen as verdicts

CLEAN, MOVED, WRONG, NOT_COMPARED = 0, 1, 1, 3


def codegen(pin: bool, everything: bool) -> int:
    """Compile what has changed since it was pinned, or everything; print what moved, or
    pin it; the exit code.
    """
    from batchline.bench.measure import catalogue, pins, static_facts

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
        return _not_compared(
            "there is nothing to compile with: install what requirements.txt lists (`make install`)"
        )
    changed = [
        job for job in wanted if everything or not static_facts.is_current(job, pinned)
    ]
    # Before they are compiled: whoever edits meanwhile has not compiled what they then
    # have.
    sources = {job: static_facts.fingerprint(job[0]) for job in changed}
    fresh = static_facts.compiled(changed)
    if fresh.incomplete:
        return _not_compared(f"not compiled to the end: {fresh.incomplete}")
    broken = {
        variant.id: f"{variant.id}: {': '.join(variant.broken)}"
        for variant in found.variants
        if variant.broken
    }
    before = [
        row
        for job, entry in pinned.items()
        if job in changed or job not in wanted and job[0] not in broken
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
    unread = [*map(str, found.broken), *broken.values()]
    if pin and not unread:
        kept = {job: pinned[job] for job in wanted if job in pinned}
        new = {
            job: {"sources": sources[job], "kernels": fresh.rows[job]}
            for job in changed
        }
        print("\n\n".join([*([report.terminal(moved)] if pinned else []), compiled]))
        print(f"pinned in {pins.save(kept | new).relative_to(pins.FOLDER.parents[1])}")
        return CLEAN
    details = {variant.id for variant in found.variants if variant.detail}
    _tell(moved, _advice(moved, after, details), compiled)
    if unread:
        return _not_compared(
            f"{'not pinned' if pin else 'not compared'}: {'; '.join(unread)}"
        )
    return MOVED if moved else CLEAN


def _tell(moved: Sequence[verdicts.Move], advice: Sequence[str], compiled: str) -> None:
    """The table and what to do now, to the terminal and to GitHub."""
    print("\n\n".join([report.terminal(moved), *advice, compiled]))
    ci.step_summary(
        "\n\n".join(["## Compiled code", report.markdown(moved), *advice, compiled])
    )
    ci.announce("error", report.annotations(moved))


def _advice(
    moved: Sequence[verdicts.Move], after: Sequence[Mapping], details: Collection[str]
) -> list[str]:
    """What to do about what moved; `details` are the ids of the variants that the
    default profile leaves out.
    """
    if not moved:
        return []
    expression = verdicts.again(moved, after)
    profile = _profile(moved, details)
    timed = [
        f'On a GPU, time again what moved: `make regress BASE=<revision> {profile}K="{expression}"`'
    ]
    return [
        *(timed if expression else []),
        "Where it is meant: `make codegen PIN=1`, and commit the file.",
    ]


def _profile(moved: Sequence[verdicts.Move], details: Collection[str]) -> str:
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
    print(
        "batchline: not pinned: these run an instruction of a whole warp without all of the warp, or in another loop",
        *faults,
        sep="\n  ",
        file=sys.stderr,
    )
    ci.announce("error", [("codegen: parted warps", "\n".join(faults))])
    return WRONG


def _not_compared(why: str) -> int:
    print(f"batchline: {why}", file=sys.stderr)
    ci.announce("error", [("codegen", why)])
    return NOT_COMPARED
