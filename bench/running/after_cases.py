"""What a run measures after its cases: the gains once more, numerics, batch invariance,
memory, the compilers' facts.

Each asks the run's worker, and none ends the run: what a worker is lost over is in its
rows.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence

from batchline.bench import study, units
from batchline.bench.cases import Plan
from batchline.bench.measure import stand_in
from batchline.bench.measure.checking import audit, steadiness
from batchline.bench.measure.compiled import pins, static_facts
from batchline.bench.measure.compiled.pins import Job
from batchline.bench.measure.worker.isolation import Isolation, WorkerLost
from batchline.bench.running.confirm import Confirming
from batchline.bench.statuses import MEASURED
from batchline.bench.store.files import SealBroken
from batchline.bench.store.journal import RunBuilder
from batchline.bench.store.records import Run
from batchline.bench.verdicts import laws
from batchline.kernels import backends


def measure_further(isolation: Isolation, the_plan: Plan, builder: RunBuilder) -> None:
    """Measure what a run has beside its cases, and add each part to it as it is known;
    the worker is closed on the way.

    The noise of the workloads is looked at where all cases of a profile that has more
    than a fixed list were chosen.
    """
    run = builder.run()
    confirming = Confirming(isolation, the_plan.profile, run.seconds)
    builder.add_confirmations(confirming.confirmations(run.records, run.baselines))
    # By the worker that has compiled the variants.
    builder.add(audit=audit_variants(isolation, the_plan, run))
    builder.add(invariance=check_invariance(isolation, the_plan, run))
    if not run.plan.selection and not the_plan.profile.fixed:
        sweep = study.stored_sweep()
        for noise in study.surveys(isolation, the_plan.profile.name):
            builder.add(noise=noise, sweep=sweep)
    room_bytes, trials = confirm_memory(isolation, the_plan, run)
    builder.add(capacity={"room_bytes": room_bytes, "trials": trials})
    isolation.close()
    rows, missing = read_compiled_facts(the_plan, run)
    builder.add(
        compiled={"kernels": rows, "incomplete": missing},
        waves=measure_waves(isolation, the_plan, run, rows),
    )


def audit_variants(isolation: Isolation, the_plan: Plan, run: Run) -> list[dict]:
    """The numerics audit of the run's variants that can run here, and of the negative
    controls of their ops.
    """
    chosen = {record.id for record in run.records}
    variants = {
        case.variant.id: case.variant
        for case in the_plan.cases
        if case.id in chosen
        and not case.refusal
        and not (
            stand_in.is_on() and case.variant.backend in backends.INTERPRETED_BACKENDS
        )
    }  # takes minutes
    jobs = audit.jobs(
        list(variants.values()),
        {op.name: op.audit for op in the_plan.ops.values() if op.audit},
    )
    if jobs:
        print("the numerics of the statistics", file=sys.stderr)
    rows = []
    for subject, dtype in jobs:
        try:
            rows += isolation.call("audit", subject.op, subject.variant, dtype)
        except WorkerLost as lost:
            rows.append(audit.row(subject, dtype, failed=f"{lost} ({lost.step})"))
        except RuntimeError as error:
            rows.append(
                audit.row(subject, dtype, failed=f"Batchline itself failed: {error}")
            )
    return rows


def check_invariance(isolation: Isolation, the_plan: Plan, run: Run) -> list[dict]:
    """Whether each measured variant gives a sample the same bits in every batch and
    call; `full` asks two processes.
    """
    batches: dict[tuple, set[int]] = {}
    for record in run.records:
        if record.status == MEASURED and record.facts["flops"] <= steadiness.MOST_FLOPS:
            batches.setdefault(
                (record.op, record.variant, record.scenario, record.dtype), set()
            ).add(record.batch)
    jobs = {job: tuple(sorted(small)) for job, small in batches.items()}
    if jobs:
        print("batch invariance", file=sys.stderr)
    rows = [_check_group(isolation, *job, small) for job, small in jobs.items()]
    if the_plan.profile.details:
        isolation.close()  # the next call is answered by a fresh process
        for row, (job, small) in zip(rows, jobs.items()):
            again = _check_group(isolation, *job, small)
            row["failed"] = row["failed"] or again["failed"]
            row["repeats"] = row["repeats"] and again["digest"] == row["digest"]
    return rows


def _check_group(
    isolation: Isolation,
    op: str,
    variant: str,
    scenario: str,
    dtype: str,
    batches: Sequence[int],
) -> dict:
    try:
        return isolation.call("invariance", op, variant, scenario, dtype, batches)
    except (WorkerLost, RuntimeError) as error:
        return steadiness.row(op, variant, scenario, dtype, batches, failed=str(error))


def confirm_memory(
    isolation: Isolation, the_plan: Plan, run: Run
) -> tuple[int | None, list[dict]]:
    """What the device has room for, and for each variant whether the largest batch that
    its memory law predicts is it.

    Of the scenarios of a variant that one is tried whose call at that batch takes the
    least time, if that is within the profile's bound.
    """
    longest_s = the_plan.profile.confirm_s
    try:
        if not longest_s:
            return isolation.call("room"), []
        isolation.close()
        # A worker of its own: the heap of the last one is full of what it has kept, and
        # these deadlines are shorter.
        with contextlib.closing(Isolation(the_plan.device, 4 * longest_s)) as fresh:
            room = fresh.call("room")
            if room is None:
                return room, []
            print("confirming the memory laws", file=sys.stderr)
            tried_in = (
                min(room, the_plan.profile.confirm_bytes or room)
                if the_plan.device == "cpu"
                else room
            )
            return room, list(_try_largest_batches(fresh, run, tried_in, longest_s))
    except (WorkerLost, RuntimeError):
        return None, []


def measure_waves(
    isolation: Isolation,
    the_plan: Plan,
    run: Run,
    rows: Sequence[dict],
) -> list[dict]:
    """How each variant that was timed on a GPU fills it, where its blocks go with the
    batch (bench.measure.compiled.grids).
    """
    gpu = run.machine.get("gpu")
    if gpu is None or the_plan.device != "cuda" or not rows:
        return []
    largest: dict[tuple, int] = {}
    for record in run.records:
        if (
            record.status == MEASURED
            and record.facts["backend"] in backends.INTERPRETED_BACKENDS
        ):
            key = record.op, record.variant, record.scenario, record.dtype
            largest[key] = max(largest.get(key, 0), record.batch)
    filled = []
    for (op, variant, scenario, dtype), batch in largest.items():
        row = {"op": op, "variant": variant, "scenario": scenario, "dtype": dtype}
        try:
            one = isolation.call(
                "waves", op, variant, scenario, dtype, batch, rows, gpu
            )
        except (
            WorkerLost,
            RuntimeError,
        ) as error:  # whatever a launcher raises that CPU tensors don't do for
            filled.append(row | {"why_not": str(error)})
        else:
            filled += [row | one] if one else []
    isolation.close()
    return filled


def _try_largest_batches(
    isolation: Isolation, run: Run, room: int, longest_s: float
) -> Iterator[dict]:
    for growth in laws.quickest(laws.memory_growths(run.records), room):
        row = {
            "op": growth.op,
            "variant": growth.variant,
            "scenario": growth.scenario,
            "dtype": growth.dtype,
        }
        expected_s = growth.seconds_at(growth.largest_batch(room))
        if expected_s > longest_s:
            yield row | {
                "why_not": f"a call of that size would take about {units.duration(expected_s)}"
            }
            continue
        try:
            yield row | isolation.call("capacity", *row.values(), growth.total, room)
        except (WorkerLost, RuntimeError) as error:
            yield row | {"why_not": str(error)}


def read_compiled_facts(the_plan: Plan, run: Run) -> tuple[list[dict], str | None]:
    """The static facts of the run's GPU variants, and why they are not complete, if so.

    With a fixed list of problems, or in a budget, nothing is compiled for them, and
    where there is a GPU only its own are shown.
    """
    if stand_in.is_on():
        return [], f"{stand_in.WORDS}, and its kernels are interpreted"
    print("the compiled facts of the GPU variants, then the report", file=sys.stderr)
    chosen = {record.id for record in run.records}
    variants = {
        case.variant.id: case.variant for case in the_plan.cases if case.id in chosen
    }
    jobs = static_facts.jobs(variants.values(), the_plan.profile.dtypes["cuda"])
    if the_plan.profile.fixed or the_plan.profile.budget_s[the_plan.device]:
        return _read_pinned(jobs, run.machine)
    facts = static_facts.facts(jobs)
    return facts.rows, facts.incomplete


def _read_pinned(
    jobs: Sequence[Job], machine: Mapping
) -> tuple[list[dict], str | None]:
    """The pinned facts of those jobs whose sources are as they were pinned, for the GPU
    that is here if there is one.
    """
    try:
        pinned = pins.load()
    except SealBroken as refusal:
        return [], str(refusal)
    current = [job for job in jobs if static_facts.is_current(job, pinned)]
    rows = static_facts.facts(current).rows
    if "gpu" in machine:
        here = int(machine["gpu"]["compute_capability"].replace(".", ""))
        rows = [row for row in rows if row["architecture"] == here]
    left = len(jobs) - len(current)
    return rows, (
        f"{left} of {len(jobs)} are not as they were pinned, and this profile compiles none"
        if left
        else None
    )
