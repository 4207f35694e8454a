"""What a run measures after its cases: the gains once more, numerics, batch invariance,
memory, the compilers' facts.

Each asks the run's worker, and none ends the run: what a worker is lost over is in its
rows.

What beats the baseline is measured once more, in a process of its own, with the
baseline alone beside it. There is nobody there whose time it could have taken, and
nothing that it or another has left behind in the process. Of each variant the problem
with its largest gain is tried, and others at random until two gains are there again,
for a variant can't prepare for what it does not know. One gain that is gone may be an
accident of its process; where two are, no others that are as small are believed. A run
spends a tenth of its time on it, the largest gains first.
"""

from __future__ import annotations

import contextlib
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from batchline import own_ops
from batchline.bench import study, units
from batchline.bench.cases import Plan, Profile
from batchline.bench.measure import stand_in
from batchline.bench.measure.checking import audit, steadiness
from batchline.bench.measure.compiled import own_facts, pins, static_facts
from batchline.bench.measure.compiled.pins import Job
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker.isolation import Isolation, WorkerLost
from batchline.bench.measure.worker.task import OWN_FAULT, Outcome, Task
from batchline.bench.stats import intervals
from batchline.bench.statuses import CRASHED, FAILED, HUNG, INVALID, MEASURED, WRONG
from batchline.bench.store.files import SealBroken
from batchline.bench.store.journal import RunBuilder
from batchline.bench.store.records import EmulatedLaunch, Record, Run
from batchline.bench.verdicts import crossovers, laws, ranking
from batchline.kernels import backends

_SHARE, _LEAST_S = 0.1, 10.0  # of the run's time; and so much in any case
_LEAST_S_STAND_IN = 2.0  # where nothing is gained by more: no time is one
_TRIES = 2  # before a gain is gone
_KEPT, _GONE = (
    2,
    2,
)  # so many gains of a variant that are tried and stay, or that are gone, are enough
LUCK = math.log(
    1.25
)  # an honest small kernel differs by a tenth from process to process (bench.measure.worker.runner)
_BLAME = math.log(2)  # and one of 4 us by half, which is no reason to blame its author
_REFUTES = (WRONG, FAILED, CRASHED, HUNG)


@dataclass(frozen=True)
class Gain:
    """How many times as fast as the baseline a variant is: its logarithm, and half of
    its 95% interval's width.
    """

    log: float
    half_width: float

    @property
    def times(self) -> str:
        return units.ratio(math.exp(self.log))

    def is_gone(self, again: "Gain") -> bool:
        """Whether less than half of the gain is there again, and less by more than
        luck, beyond both intervals.
        """
        return self.sank_by(again) > max(self.log / 2, LUCK)

    def sank_by(self, again: "Gain") -> float:
        """How much less of it is there again, as a logarithm, beyond both intervals."""
        return self.log - self.half_width - (again.log + again.half_width)

    def is_luck(self) -> bool:
        """Whether it is no more than what one process may be quicker than the next."""
        return self.log - self.half_width <= LUCK


@dataclass(frozen=True)
class Winner:
    """A variant and the baseline on one problem, on which the variant was told to be
    faster.

    Where the op's baseline does not take the problem, `baseline` is PyTorch's fastest
    there.
    """

    record: Record
    baseline: Record

    @property
    def gain(self) -> Gain:
        return gain(self.record.samples_s, self.baseline.samples_s)

    @property
    def variant(self) -> tuple[str, str]:
        return self.record.op, self.record.variant


def gain(samples_s: Sequence[float], baseline_s: Sequence[float]) -> Gain:
    """The gain of one over the other, by the medians of their samples."""
    log = math.log(statistics.median(baseline_s) / statistics.median(samples_s))
    return Gain(
        log,
        math.hypot(
            intervals.median_precision(samples_s),
            intervals.median_precision(baseline_s),
        ),
    )


def winners(records: Sequence[Record], baselines: Mapping[str, str]) -> list[Winner]:
    """Whatever is faster than its op's baseline, beyond what can't be told apart; the
    largest gain first.

    Of a problem that the baseline does not take (fp8) it is whatever is faster than
    PyTorch's fastest there.
    """
    strongest = ranking.opponents(records)
    found = []
    for problem, by_variant in crossovers.by_problem(records).items():
        op, by_batch = problem[0], {
            key[-1]: record for key, record in strongest.items() if key[:-1] == problem
        }
        by_batch |= by_variant.get(baselines.get(op), {})
        for timed in by_variant.values():
            found += [
                Winner(record, by_batch[batch])
                for batch, record in timed.items()
                if batch in by_batch
                and crossovers.leader(record, by_batch[batch]) == record.variant
                and record is not by_batch[batch]
            ]
    return sorted(found, key=lambda winner: -winner.gain.log)


def to_try(found: Sequence[Winner], draw: random.Random) -> list[tuple[Winner, ...]]:
    """Each variant's in the order to be tried, the largest gain and then the others at
    random; the largest first.
    """
    by_variant: dict[tuple[str, str], list[Winner]] = {}
    for winner in found:
        by_variant.setdefault(winner.variant, []).append(winner)
    return [
        (largest, *draw.sample(others, len(others)))
        for largest, *others in by_variant.values()
    ]


class Confirming:
    """Measures winners again by `workers` (an Isolation), with the effort of a profile,
    until the time is spent.
    """

    def __init__(
        self,
        workers,
        profile: Profile,
        run_s: float,
        now_s: Callable[[], float] = time.monotonic,
    ):
        self._workers = workers
        self._profile = profile
        self._now_s = now_s
        least_s = _LEAST_S_STAND_IN if stand_in.is_on() else _LEAST_S
        self._until_s = now_s() + max(least_s, _SHARE * run_s)

    def confirmations(
        self, records: Sequence[Record], baselines: Mapping[str, str]
    ) -> dict[str, dict]:
        """What became of the winners, by case id; of those that there was no time for,
        nothing.

        {"published", "again"}: both gains, of what was confirmed; "sank": how many
        times smaller one that is gone is, at the least. {"published", "why_not"}: it
        could not be. With
        "status" and "reason": the case's own from now on. With "unranked", a reason:
        its time stands and wins nothing, for it is the baseline that took less time
        there, or the gain sank by less than an honest kernel is blamed for. A variant
        that is blamed loses all its other gains that were not confirmed. One of which
        two gains are gone loses those that are no larger, and all of them where a gain
        sank by more than that.
        """
        found = winners(records, baselines)
        if found:
            print(
                "confirming what beats the baseline, in processes of their own",
                file=sys.stderr,
            )
        results: dict[str, dict] = {}
        for ours in to_try(found, random.SystemRandom()):
            if self._now_s() > self._until_s:
                break
            results |= self._tried_in_turn(ours)
        return results

    def _tried_in_turn(self, ours: Sequence[Winner]) -> dict[str, dict]:
        """What became of one variant's gains, by case id: until it is plain whether
        they are its own.
        """
        results, gone, kept = {}, [], 0
        for winner in ours:
            results[winner.record.id] = result = self._confirmed(winner)
            if _is_gone(result):
                gone.append((winner, result))
            elif "again" in result:
                kept += 1
            if "status" in result or len(gone) == _GONE:
                return results | {
                    other.record.id: not_believed
                    for other in ours
                    if other.record.id not in results
                    if (not_believed := _not_believed(other, gone))
                }
            if kept == _KEPT or self._now_s() > self._until_s:
                break
        return results

    def _confirmed(self, winner: Winner) -> dict:
        """What became of one winner; tried again before its variant is blamed."""
        for _ in range(_TRIES):
            result = self._tried(winner)
            if not _is_gone(result):
                break
        return {"published": math.exp(winner.gain.log)} | result

    def _tried(self, winner: Winner) -> dict:
        outcomes = self._measured_apart(winner)
        variant, baseline = (
            outcomes[record.id] for record in (winner.record, winner.baseline)
        )
        for outcome in (baseline, variant):
            if outcome.status != MEASURED and (
                outcome is baseline or not _refutes(outcome)
            ):
                return {"why_not": f"{outcome.status}: {outcome.reason}"}
        if variant.status != MEASURED:
            return {
                "status": variant.status,
                "reason": f"measured as {winner.gain.times}, and in a process of its own: {variant.reason}",
            }
        again = gain(variant.samples_s, baseline.samples_s)
        if not winner.gain.is_gone(again):
            return {"again": math.exp(again.log)}
        reason = (
            f"its gain over {winner.baseline.variant} was {winner.gain.times}, and {again.times} in a process of "
            "its own"
        )
        sank = winner.gain.sank_by(again)
        facts = {"again": math.exp(again.log), "sank": math.exp(sank)}
        if gain(winner.record.samples_s, variant.samples_s).is_luck():
            return facts | {"unranked": f"{reason}, where it takes as long as it did"}
        return facts | (
            {"unranked": reason}
            if sank <= _BLAME
            else {"status": INVALID, "reason": reason}
        )

    def _measured_apart(self, winner: Winner) -> dict[str, Outcome]:
        """The outcomes of the variant and of the baseline in a fresh process, by case
        id.
        """
        record, profile = winner.record, self._profile
        entries = tuple((one.id, one.variant) for one in (winner.baseline, record))
        self._workers.renew()
        return self._workers.measure(
            Task(
                record.op,
                record.scenario,
                record.dtype,
                record.batch,
                entries,
                (record.facts["clock"],),
                Effort(profile.precision, profile.sampling_s),
                Effort(profile.precision, profile.other_clocks_s),
                profile.warm_up_s,
                longest_call_s=profile.longest_call_s,
                probes=False,
            )
        )


def _refutes(outcome: Outcome) -> bool:
    """Whether an outcome without a time says something of its variant, and not of the
    machine or of us.
    """
    return outcome.status in _REFUTES and not outcome.reason.startswith(OWN_FAULT)


def _is_gone(result: Mapping) -> bool:
    return "status" in result or "unranked" in result


def _not_believed(
    winner: Winner, gone: Sequence[tuple[Winner, Mapping]]
) -> dict | None:
    """What becomes of a gain whose variant has lost those others; None where it is too
    large for that to be said.
    """
    refuted, result = gone[-1]
    if "status" not in result:
        refuted, result = max(gone, key=lambda one: one[0].gain.log)
        if winner.gain.log > refuted.gain.log and not any(
            result["sank"] > math.exp(_BLAME) for _, result in gone
        ):
            return None
    why = result.get("reason") or result["unranked"]
    reason = f"its gain of {winner.gain.times} is not believed, for one was not confirmed: {refuted.record.id}: {why}"
    lost = (
        {"status": INVALID, "reason": reason}
        if "status" in result
        else {"unranked": reason}
    )
    return {"published": math.exp(winner.gain.log)} | lost


def measure_further(isolation: Isolation, the_plan: Plan, builder: RunBuilder) -> None:
    """Measure what a run has beside its cases, and add each part to it as it is known;
    the worker is closed on the way.

    The noise of the workloads is looked at where all cases of a profile that has more
    than a fixed list were chosen, and Batchline's own ops are among them.
    """
    run = builder.run()
    confirming = Confirming(isolation, the_plan.profile, run.seconds)
    builder.add_confirmations(confirming.confirmations(run.records, run.baselines))
    # By the worker that has compiled the variants.
    builder.add(audit=audit_variants(isolation, the_plan, run))
    builder.add(invariance=check_invariance(isolation, the_plan, run))
    is_whole = not run.plan.selection and not the_plan.profile.fixed
    if is_whole and own_ops.repository() is None:
        sweep = study.stored_sweep()
        for noise in study.surveys(isolation, the_plan.profile.name):
            builder.add(noise=noise, sweep=sweep)
    room_bytes, trials = confirm_memory(isolation, the_plan, run)
    builder.add(capacity={"room_bytes": room_bytes, "trials": trials})
    isolation.close()
    rows, missing = read_compiled_facts(the_plan, run)
    emulated, not_emulated = read_emulated(the_plan, run)
    builder.add(
        compiled={"kernels": rows, "incomplete": missing},
        emulated={"variants": emulated, "incomplete": not_emulated},
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
    batch (bench.measure.compiled.static_facts).
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
        return [], f"{stand_in.WORDS}, and its kernels are executed in emulation"
    print("the compiled facts of the GPU variants, then the report", file=sys.stderr)
    jobs = _jobs_of(the_plan, run)
    if the_plan.profile.fixed or the_plan.profile.budget_s[the_plan.device]:
        return _read_pinned(jobs, run.machine)
    own = {name for name, op in the_plan.ops.items() if own_ops.has(op.folder)}
    facts = own_facts.facts(jobs, own)
    return facts.rows, facts.incomplete


def _jobs_of(the_plan: Plan, run: Run) -> list[Job]:
    """Each GPU variant of the run's cases, in each dtype of the profile."""
    chosen = {record.id for record in run.records}
    variants = {
        case.variant.id: case.variant for case in the_plan.cases if case.id in chosen
    }
    return static_facts.jobs(variants.values(), the_plan.profile.dtypes["cuda"])


def read_emulated(the_plan: Plan, run: Run) -> tuple[list[dict], str | None]:
    """What the run's GPU variants did in emulation, as it was pinned from the sources
    and the emulator that there are now; and why that is not all, if so.
    """
    if stand_in.is_on():
        return [], None
    # It imports Numba's compiler for GPUs, which takes a second.
    from batchline.bench.measure.emulated import pinned

    jobs = _jobs_of(the_plan, run)
    try:
        known = pinned.load()
    except SealBroken as refusal:
        return [], str(refusal)
    current = [job for job in jobs if pinned.is_current(job, known)]
    left = len(jobs) - len(current)
    return [_emulated(job, known[job]) for job in current], (
        f"{left} of {len(jobs)} variants and dtypes are not as they were when they were "
        f"executed (`batchline codegen{own_ops.options()}` executes them)"
        if left
        else None
    )


def _emulated(job: Job, entry) -> dict:
    kept = {one.name for one in fields(EmulatedLaunch)}
    return {
        "variant": job[0],
        "dtype": job[1],
        "right": entry.right,
        "wrong": entry.wrong,
        "launches": [
            {name: value for name, value in row.items() if name in kept}
            for row in entry.launches
        ],
        "calls": entry.calls,
    }


def _read_pinned(
    jobs: Sequence[Job], machine: Mapping
) -> tuple[list[dict], str | None]:
    """The pinned facts of those jobs whose sources are as they were pinned, for the GPU
    that is here if there is one.
    """
    try:
        known = pins.load()
    except SealBroken as refusal:
        return [], str(refusal)
    current = [job for job in jobs if static_facts.is_current(job, known)]
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
