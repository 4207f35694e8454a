"""A run as records: what was planned, what came of each case, and what else was looked
at.

All judging and showing reads these, and a report renders on any machine: nothing here
imports what measures. Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace

from batchline.bench.stats.prediction import CountedCall
from batchline.bench.statuses import MEASURED, STATUSES, case_id, parse_case_id

_CONFIRMED = (
    "published",
    "again",
    "why_not",
    "unranked",
)  # bench.running.after_cases defines them


@dataclass(frozen=True)
class Record:
    """One planned case and what came of it.

    `samples_s` are the raw rounds of the first clock, each the mean of `iterations`
    calls in a row. `facts` is what else was recorded: clock, precision, discarded
    (samples), clocks (each clock's median_s, precision and number of samples, or why it
    has none), peak_bytes, memory_method, input_bytes, output_bytes, error (relative,
    Frobenius), error_of_tolerance, own_tolerance (the variant's, instead of the op's),
    gives (the first so many outputs; None is all), is_peer (another library's way),
    flops, least_bytes, bound (regime, least_s, share), state, energy_j, sustained
    (bench.measure.timing.sustained), alone (not
    timed in turns with the others: bench.measure.worker.isolation), confirmed (bench.running.after_cases). A
    clock that was not sampled in turns says why as its `alone`.
    `refuted_samples_s` are the rounds of a case that lost its time because its gain was
    not confirmed: they are kept, and nothing is judged by them.
    `rank` is the process whose device measured it, in a run of several
    (bench.running.dealing); None in one of one device.
    """

    op: str
    variant: str
    scenario: str
    dtype: str
    batch: int
    status: str
    reason: str = ""
    samples_s: tuple[float, ...] = ()
    iterations: int = 1
    facts: Mapping = field(default_factory=dict)
    refuted_samples_s: tuple[float, ...] = ()
    rank: int | None = None

    @property
    def id(self) -> str:
        return case_id(self.op, self.variant, self.scenario, self.dtype, self.batch)

    @property
    def median_s(self) -> float:
        """Median of the samples; raises statistics.StatisticsError where there are
        none.
        """
        return statistics.median(self.samples_s)

    @property
    def quartiles_s(self) -> tuple[float, float]:
        """First and third quartile of the samples (both the sample itself where there
        is one).
        """
        if len(self.samples_s) < 2:
            return self.median_s, self.median_s
        first, _, third = statistics.quantiles(self.samples_s, n=4, method="inclusive")
        return first, third

    def confirmed_by(self, result: Mapping) -> Record:
        """The record after its gain was tried again: what bench.running.after_cases says of it is
        added to its facts, or its status and reason are replaced.
        """
        status = result.get("status", self.status)
        if status != MEASURED:
            return replace(
                self,
                status=status,
                reason=result.get("reason", self.reason),
                samples_s=(),
                iterations=1,
                facts={},
                refuted_samples_s=self.samples_s or self.refuted_samples_s,
            )
        facts = {name: result[name] for name in _CONFIRMED if name in result}
        return replace(self, facts={**self.facts, "confirmed": facts})

    def to_json(self) -> dict:
        """The record as it is stored: its parts as its id, and only what it has."""
        document: dict = {"id": self.id, "status": self.status}
        for name, default in (
            ("reason", ""),
            ("samples_s", ()),
            ("iterations", 1),
            ("facts", {}),
            ("refuted_samples_s", ()),
            ("rank", None),
        ):
            value = getattr(self, name)
            if value != default:
                document[name] = list(value) if isinstance(value, tuple) else value
        return document

    @classmethod
    def from_json(cls, document: Mapping) -> Record:
        """The record that `to_json` has stored.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: if it is none.
        """
        status, samples_s = document["status"], tuple(document.get("samples_s", ()))
        if status not in STATUSES:
            raise ValueError(f"{document['id']} has the status {status!r}")
        if status == MEASURED and not samples_s:
            raise ValueError(f"{document['id']} was measured and has no sample")
        if not all(0 < sample < math.inf for sample in samples_s):
            raise ValueError(f"{document['id']} has a sample that is no time")
        return cls(
            **parse_case_id(document["id"]),
            status=status,
            reason=document.get("reason", ""),
            samples_s=samples_s,
            iterations=document.get("iterations", 1),
            facts=document.get("facts", {}),
            refuted_samples_s=tuple(document.get("refuted_samples_s", ())),
            rank=document.get("rank"),
        )


class Row(Mapping):
    """A record whose fields can be read by name, too: `row["op"]` is `row.op`."""

    def __getitem__(self, name: str):
        if name in self:
            return getattr(self, name)
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return name in _names(type(self))

    def __iter__(self) -> Iterator[str]:
        return iter(_names(type(self)))

    def __len__(self) -> int:
        return len(_names(type(self)))


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(one.name for one in fields(kind))


@dataclass(frozen=True)
class Limits(Row):
    """The largest problem that the profile took on the device, for one call."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Effort(Row):
    """When a case's samples ended: its median known to ±`precision`, a share, or after
    so many seconds.
    """

    precision: float
    seconds: float


@dataclass(frozen=True)
class RunPlan(Row):
    """What the run was asked for. `selection` is pytest's -k, "" for all cases.
    `left_out` are problems over the limits: op, scenario, dtype, batch.
    """

    profile: str = ""
    selection: str = ""
    limits: Limits | None = None
    effort: Effort | None = None
    left_out: tuple[tuple[str, str, str, int], ...] = ()


@dataclass(frozen=True)
class Forecast(Row):
    """How long the run was expected to take, by part."""

    before_s: float = 0.0
    compile_s: float = 0.0
    cases_s: float = 0.0
    after_s: float = 0.0


@dataclass(frozen=True)
class BrokenFile(Row):
    """A file that should have been an op or a variant and has no cases: how it ended,
    and why.
    """

    file: str
    status: str
    reason: str


@dataclass(frozen=True)
class ScenarioFacts(Row):
    """A problem's title, and its sizes by name (none in runs of before)."""

    title: str
    sizes: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Tuning(Row):
    """Which file an op's configurations come from, the date when and the seconds in
    which they were found (None without such a file), or why it can't be read.
    """

    file: str
    measured: str | None = None
    seconds: float | None = None
    why_not: str | None = None


@dataclass(frozen=True)
class OpFacts(Row):
    """An op of the run. `tuning` is None where no variant of it is tuned."""

    signature: str = ""
    baseline: str = ""
    scenarios: Mapping[str, ScenarioFacts] = field(default_factory=dict)
    tuning: Tuning | None = None


@dataclass(frozen=True)
class VariantFacts(Row):
    """What a variant declares of itself. `builds_on` is the id of the variant that it
    improves; `gives` the first so many outputs that it computes, None for all.
    """

    idea: str
    backend: str
    builds_on: str | None = None
    own_tolerance: bool = False
    gives: int | None = None


@dataclass(frozen=True)
class Ceilings(Row):
    """What the machine can do, as bench.measure.timing.ceilings measures it.

    Rates are of the median sample; `matmul_flops_per_s` and `fma_flops_per_s` by dtype,
    `launch_s` by clock; `best` has the rates of the fastest sample, for floors. `quiet`:
    whether the machine was it in one of the measurements; else no floor follows.
    """

    copy_bytes_per_s: float
    read_bytes_per_s: float
    cache_bytes_per_s: float
    cache_bytes: int
    matmul_flops_per_s: Mapping[str, float]
    fma_flops_per_s: Mapping[str, float]
    launch_s: Mapping[str, float]
    best: Mapping[str, float]
    quiet: bool = True


@dataclass(frozen=True)
class AuditRow(Row):
    """How far one way of computing an op's statistics is from fp64 on a condition, as
    relative errors of each; `whose` is "ours", "peer" or "control".

    Where it was not computed, `failed` or `not_run` says why and the errors are None.
    """

    op: str
    variant: str
    dtype: str
    whose: str
    condition: str | None = None
    mean: float | None = None
    n: float | None = None
    d: float | None = None
    noise_scale: float | None = None
    failed: str | None = None
    impossible: bool = False
    not_run: str | None = None


@dataclass(frozen=True)
class InvarianceRow(Row):
    """Whether a sample's result is bitwise the same in every batch and call, as
    bench.measure.checking.steadiness looks at it.

    `rows` is False where it differs between batches, at those in `differs_at`, and None
    where no output has a row for each sample; `repeats` whether every call gave the
    same bits.
    """

    op: str
    variant: str
    scenario: str
    dtype: str
    batches: tuple[int, ...]
    rows: bool | None = None
    differs_at: tuple[int, ...] = ()
    repeats: bool | None = None
    digest: str | None = None
    failed: str | None = None


@dataclass(frozen=True)
class CapacityTrial(Row):
    """The largest batch that a variant's memory law predicts in so many bytes, and
    whether a batch 5% below and one 5% above fit ({"95%": True, "105%": False}); or why
    it was not tried.
    """

    op: str
    variant: str
    scenario: str
    dtype: str
    room_bytes: int | None = None
    predicted: int | None = None
    fits: Mapping[str, bool] | None = None
    why_not: str | None = None


@dataclass(frozen=True)
class Capacity(Row):
    """The bytes that the device had room for (None where that is not known), and the
    memory laws that were tried.
    """

    room_bytes: int | None = None
    trials: tuple[CapacityTrial, ...] = ()


@dataclass(frozen=True)
class CompiledKernel(Row):
    """A kernel compiled for an architecture (90 is sm_90), as bench.measure.compiled.compiler
    reads it, and where it was launched. None is what its run did not look at.

    `example`: launched on the variant's own example. One that was not compiled has the
    `error`, or why it `declined`, and none of the facts.
    """

    variant: str
    dtype: str
    scenario: str
    batch: int
    example: bool
    architecture: int
    kernel: str | None = None
    config: str | None = None
    threads: int | None = None
    registers: int | None = None
    stack_bytes: int | None = None
    shared_bytes: int | None = None
    code_bytes: int | None = None
    spills: int | None = None
    barriers: int | None = None
    matrix_instruction: str | None = None
    matrix: int | None = None
    loads: Mapping[str, int] | None = None
    stores: Mapping[str, int] | None = None
    warp_specialized: bool | None = None
    warp_fault: str | None = None
    error: str | None = None
    declined: str | None = None


@dataclass(frozen=True)
class WavesRow(Row):
    """How a variant's launch fills the GPU (bench.stats.roofline.Waves), or why
    that can't be said.
    """

    op: str
    variant: str
    scenario: str
    dtype: str
    ctas_per_sample: int | None = None
    multiprocessors: int | None = None
    ctas_per_multiprocessor: int | None = None
    why_not: str | None = None


@dataclass(frozen=True)
class Compiled(Row):
    """The compiled kernels of the run's GPU variants, and why some are missing, or
    None.
    """

    kernels: tuple[CompiledKernel, ...] = ()
    incomplete: str | None = None


@dataclass(frozen=True)
class EmulatedLaunch(Row):
    """A launch of a variant's example that was executed in emulation, with fewer
    samples (`batch`), as bench.measure.emulated.counted makes it; one that was not has
    the `error`, or why it `declined`, and none of the counts.
    """

    scenario: str
    batch: int
    architecture: int
    launch: int
    kernel: str | None = None
    config: str | None = None
    instructions: int | None = None
    sectors: int | None = None
    sectors_needed: int | None = None
    passes: int | None = None
    requests: int | None = None
    read_bytes: int | None = None
    distinct_bytes: int | None = None
    products: int | None = None
    error: str | None = None
    declined: str | None = None


@dataclass(frozen=True)
class EmulatedVariant(Row):
    """What came of executing the compiled code of a variant in a dtype without a GPU.

    `right` are the probes on which it was and no fault was found, "ragged sm_90", and
    `wrong` the others, each with a line. `launches` are those of its example, `calls` what is
    predicted from, one an architecture (bench.measure.emulated.filling).
    """

    variant: str
    dtype: str
    right: tuple[str, ...] = ()
    wrong: Mapping[str, str] = field(default_factory=dict)
    launches: tuple[EmulatedLaunch, ...] = ()
    calls: tuple[CountedCall, ...] = ()


@dataclass(frozen=True)
class Emulated(Row):
    """The run's GPU variants in emulation, and why some are missing, or None."""

    variants: tuple[EmulatedVariant, ...] = ()
    incomplete: str | None = None


@dataclass(frozen=True)
class Noise(Row):
    """The gradient noise of the workloads by name, each as
    bench.noise.experiments.survey measures it or with what it `failed` of; `seconds`
    is how long all took.
    """

    workloads: Mapping[str, Mapping]
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """A whole run. `records` are its cases in the order of the plan.

    `started` is ISO 8601; `seconds` how long it took, None in runs of before; `partial`
    whether it was stopped before its end. `machine` is as
    bench.measure.machine.environment.machine describes it. `along` are the ids of cases that
    were measured only because others are compared with them. `compiled_ahead` says of
    each of the run's passes what was compiled before its first case
    (bench.measure.ahead). `sweep` is the training sweep that the run's claims are
    judged by (bench.noise.experiments.sweep). `benchmark_header` is what
    pytest-benchmark says of the machine and the commit.
    """

    records: tuple[Record, ...] = ()
    machine: Mapping = field(default_factory=dict)
    started: str = ""
    seconds: float | None = None
    partial: bool = False
    plan: RunPlan = RunPlan()
    ops: Mapping[str, OpFacts] = field(default_factory=dict)
    variants: Mapping[str, VariantFacts] = field(default_factory=dict)
    broken_files: tuple[BrokenFile, ...] = ()
    along: tuple[str, ...] = ()
    forecast: Forecast | None = None
    ceilings: Ceilings | None = None
    why_no_ceilings: str | None = None
    audit: tuple[AuditRow, ...] = ()
    invariance: tuple[InvarianceRow, ...] = ()
    noise: Noise | None = None
    sweep: Mapping | None = None
    capacity: Capacity = Capacity()
    compiled: Compiled = Compiled()
    emulated: Emulated = Emulated()
    waves: tuple[WavesRow, ...] = ()
    compiled_ahead: tuple[Mapping, ...] = ()
    benchmark_header: Mapping = field(default_factory=dict)

    @property
    def baselines(self) -> dict[str, str]:
        """The baseline's name, by op."""
        return {name: op.baseline for name, op in self.ops.items() if op.baseline}

    def frame(self, name: str = "", with_host: bool = False):
        """A pandas.DataFrame with a row for each case and clock; bench.store.rows.CASES
        says what its columns hold. `name` is the run's, `with_host`: also the machine's
        name on its network.

        Raises:
            UsageError: if pandas is missing.
        """
        from batchline.bench.store import rows, tables

        return tables.frame_of(rows.CASES, rows.case_rows(self, name, with_host))

    def groups(self) -> dict[tuple[str, str, str], list[Record]]:
        """Records by (op, scenario, dtype), in the order of the plan."""
        groups: dict[tuple[str, str, str], list[Record]] = {}
        for record in self.records:
            groups.setdefault((record.op, record.scenario, record.dtype), []).append(
                record
            )
        return groups


@dataclass(frozen=True, kw_only=True)
class Study:
    """What the batch size does to training: the gradient noise, and the training sweep
    that the claims are judged by (None where none is stored). `partial`: it was stopped
    before its end.
    """

    machine: Mapping
    noise: Noise
    started: str = ""
    profile: str = ""
    sweep: Mapping | None = None
    partial: bool = False
