"""Every GPU kernel is right in emulation, on every probe that it takes, in each dtype and
for each architecture, and no check finds a fault.

A verdict that is pinned is believed where the sources and the emulator are still those
that it came from. Others are found anew, and so is one of each variant, whatever is
pinned. The few probes that take a minute each are left to `batchline emulate`, which
executes all.
"""

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.compiled.compiler import why_cannot_compile
from batchline.bench.measure.emulated import executed, pinned
from batchline.bench.measure.emulator import subjects
from tests.plans import declared

PINNED = pinned.load()
NOT_PINNED = pinned.why_none()
VARIANTS = [
    variant
    for op in kernels.ops.values()
    for variant in op.variants.values()
    if variant.backend in subjects.BACKENDS
]
JOBS = [
    (variant.id, dtype)
    for variant in VARIANTS
    if executed.why_not_executed(variant.backend) is None
    for dtype in variant.dtypes or subjects.ALL_DTYPES
]


def lines(rows):
    """What is wrong, a line for each subject that is not right."""
    return [f"{one.subject}: {pinned.why(one)}" for one in rows if not one.is_right]


@pytest.mark.skipif(not PINNED, reason=NOT_PINNED)
@pytest.mark.parametrize("job", JOBS, ids="-".join)
def test_every_subject_is_right(job, one_thread):
    if pinned.is_current(job, PINNED):
        assert not PINNED[job].wrong
        return
    chosen = [one for one in executed.pinned_subjects_of(job[0]) if one.dtype == job[1]]
    rows = [executed.execute_subject(one, pinned.SCHEDULES) for one in chosen]
    assert not lines(rows), "\n".join(lines(rows))


@pytest.mark.commands
@pytest.mark.skipif(not PINNED, reason=NOT_PINNED)
def test_what_is_pinned_is_every_kernel_and_every_subject_that_is_not_declined():
    assert set(PINNED) == set(JOBS) == set(pinned.jobs(declared()))
    current = [job for job in JOBS if pinned.is_current(job, PINNED)]
    variants = dict.fromkeys(variant for variant, _ in current)
    taken = {job: set() for job in current}
    for variant in variants:
        for one in executed.pinned_subjects_of(variant):
            if (variant, one.dtype) in taken:
                name = f"{one.probe} sm_{one.architecture}"
                taken[variant, one.dtype].add(name)
    assert taken == {job: {*PINNED[job].right, *PINNED[job].wrong} for job in current}


def computes(subject):
    """Whether the variant takes it and something is computed."""
    if subject.declined is not None:
        return False
    make = subjects.probes_of(subjects.variant_of(subject).op)[subject.probe]
    inputs = make(getattr(torch, subject.dtype), "meta", 0)
    return all(tensor.numel() for tensor in inputs)


def cheapest(number, variant):
    """One subject of a variant: of the smallest probe that it takes. The dtypes and
    architectures take turns from one variant to the next.
    """
    every = executed.subjects_of(variant.id, subjects.architectures_of(variant))
    taken = [one for one in every if computes(one)]
    kinds = list(dict.fromkeys((one.dtype, one.architecture) for one in taken))
    chosen = kinds[number % len(kinds)]
    return min(
        (one for one in taken if (one.dtype, one.architecture) == chosen),
        key=subjects.elements_of,
    )


@pytest.mark.parametrize(
    "number, variant", list(enumerate(VARIANTS)), ids=[one.id for one in VARIANTS]
)
def test_one_of_each_variant_is_executed_whatever_is_pinned(
    number, variant, one_thread
):
    if why := why_cannot_compile(variant.backend):
        pytest.skip(why)
    row = executed.execute_subject(cheapest(number, variant), ("late",))
    assert row.counts is not None and row.instructions
    assert row.is_right, lines([row])
