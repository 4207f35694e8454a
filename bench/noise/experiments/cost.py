"""`batchline noise-cost`: what measuring the noise adds to a training step, beside
Opacus and BackPACK in the same run.

Every way takes the same step, forward and backward on the same model and batch. They
are sampled in turns (bench.measure.timing.sampling), so that whatever the machine does it does
to all alike. A way that can't run is a row that says why.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import nn

from batchline.bench import texts
from batchline.bench.errors import Missing
from batchline.bench.measure.machine.state import Guard, NoGuard, guard_of, state_of
from batchline.bench.measure.timing.clocks import Host
from batchline.bench.measure.timing.clocks import hardware as hardware_of
from batchline.bench.measure.timing.sampling import Effort, Samples, sample
from batchline.bench.noise.meter import NoiseMeter
from batchline.bench.noise.workloads import Workload, workloads
from batchline.bench.stats import intervals
from batchline.bench.stats.intervals import Estimate
from batchline.bench.statuses import NotMeasured
from batchline.bench.units import duration
from batchline.kernels import backends

PLAIN = "plain step"
METERED = "NoiseMeter"
READ = "NoiseMeter, read"
SCALED = "NoiseMeter, Adam's scale"
OPACUS = "Opacus ghost norms"
BACKPACK = "BackPACK batch_l2"
CLEAN = 0
NOT_MEASURED = 3
_WARM_STEPS = 5
_STEPS_TO_ESTIMATE = 3
_SAMPLE_S = 2e-3
_SEED = 0
_MOST_SAMPLES = 1000  # of one way
_LARGER = 4
_EXTENDED = nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d
Step = Callable[[], object]


@dataclass(frozen=True)
class StepTime:
    """Of a step, in seconds: the median and the quartiles of so many `samples`.

    `overhead` is its median over the plain step's, less 1.
    """

    samples: int
    median_s: float
    first_quartile_s: float
    third_quartile_s: float
    overhead: Estimate


@dataclass(frozen=True)
class Cost:
    """The time of a step in one way, or why it did not run.

    `gives`: what is known afterwards, beside .grad. `left_out`: parameters that the way
    can't see.
    """

    workload: str
    batch: int
    device: str
    way: str
    gives: str
    left_out: tuple[str, ...]
    time: StepTime | Missing


@dataclass(frozen=True)
class Way:
    """`make`: workload, its model and a batch x, y → the step, and the names of the
    parameters that it leaves out.
    """

    name: str
    gives: str
    make: Callable[
        [Workload, nn.Module, torch.Tensor, torch.Tensor], tuple[Step, tuple[str, ...]]
    ]
    needs: str | None = None


def _plain(workload, model, x, y):
    def step():
        model.zero_grad()
        workload.losses(model, x, y).mean().backward()

    return step, ()


def _metered(workload, model, x, y):
    meter = NoiseMeter(model, reduction="mean")
    step, _ = _plain(workload, model, x, y)

    def metered():
        with meter:
            step()

    metered()
    return metered, meter.reading.without_gradient


def _read(workload, model, x, y):
    meter = NoiseMeter(model, reduction="mean")
    step, _ = _plain(workload, model, x, y)

    def read():
        with meter:
            step()
        return meter.reading.noise(), meter.reading.tests()

    return read, ()


def _scaled(workload, model, x, y):
    """Gradients as Adam scales them, too: it has taken a step, so it has a scale."""
    optimizer = torch.optim.Adam(model.parameters())
    step, _ = _plain(workload, model, x, y)
    step()
    optimizer.step()
    meter = NoiseMeter(model, reduction="mean", optimizer=optimizer)

    def scaled():
        with meter:
            step()

    scaled()
    return scaled, meter.reading.without_gradient


def _opacus(workload, model, x, y):
    """The first of the two backward passes of its fast gradient clipping: the one that
    takes the norms.
    """
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    for module in model.modules():
        if isinstance(
            module, nn.Embedding
        ):  # its norms take a view of the ids, which expanded positions have not
            module.register_forward_pre_hook(
                lambda module, inputs: (inputs[0].contiguous(),)
            )
    wrapped = GradSampleModuleFastGradientClipping(
        model,
        batch_first=True,
        loss_reduction="mean",
        max_grad_norm=1.0,
        use_ghost_clipping=True,
    )
    step, _ = _plain(workload, wrapped, x, y)

    def ghost():
        step()
        return wrapped.get_norm_sample()

    ghost()
    return ghost, tuple(
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and getattr(parameter, "_norm_sample", None) is None
    )


def _backpack(workload, model, x, y):
    """Its extension on the layers that it supports, each extended alone: it refuses a
    whole model with others.
    """
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    warnings.filterwarnings(
        "ignore", "Full backward hook is firing"
    )  # an input asks for no gradient: none is wanted
    extension = BatchL2Grad()
    for module in model.modules():
        if isinstance(module, _EXTENDED):
            extend(module)
    step, _ = _plain(workload, model, x, y)

    def squared():
        with backpack(extension):
            step()

    squared()
    return squared, tuple(
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not hasattr(parameter, "batch_l2")
    )


WAYS = (
    Way(PLAIN, "", _plain),
    Way(METERED, "n, d by layer", _metered),
    Way(READ, "n, d by layer; B_simple with interval; three tests", _read),
    Way(SCALED, "n, d by layer, also as Adam scales them", _scaled),
    Way(OPACUS, "√n of the whole, clamped", _opacus, needs="opacus"),
    Way(BACKPACK, "n by parameter", _backpack, needs="backpack"),
)


def run(device: str, seconds: float) -> int:
    """Print the costs on every workload, at its own batch and at several times that; 3
    where nothing could be timed.
    """
    guard = guard_of(device)
    rows = [
        row
        for workload in workloads.values()
        for factor in (1, _LARGER)
        for row in costs(workload, factor * workload.batch, seconds, device, guard)
    ]
    print(table(rows))
    return CLEAN if any(row.time for row in rows) else NOT_MEASURED


def costs(
    workload: Workload,
    batch: int,
    seconds: float,
    device: str = "cpu",
    guard: Guard | NoGuard = NoGuard(),
    ways: Sequence[Way] | None = None,
) -> list[Cost]:
    """A row for each way (of WAYS, if no others are given): about so many seconds in
    all are spent on samples, after every way has been warmed.
    """
    ways = WAYS if ways is None else ways
    x, y = workload.train.draw(batch, torch.Generator().manual_seed(_SEED), device)
    prepared = {way.name: _prepare(way, workload, device, x, y) for way in ways}
    ready = {name: one for name, one in prepared.items() if one}
    clocks = {name: _clock(one.step, device) for name, one in ready.items()}
    effort = Effort(0.0, seconds / max(1, len(clocks)), most=_MOST_SAMPLES)
    now_s = hardware_of(device).now_s
    samples, busy = guard.measured(
        lambda: sample(clocks, effort, state_of(device).why_throttled, now_s=now_s)
    )
    rows = []
    for way in ways:
        one = prepared[way.name]
        if one:
            time = Missing(busy) if busy else _time(samples[way.name], samples[PLAIN])
        else:
            time = one
        left_out = one.left_out if one else ()
        rows.append(
            Cost(workload.name, batch, device, way.name, way.gives, left_out, time)
        )
    return rows


@dataclass(frozen=True)
class _Prepared:
    """A step that has been warmed, and the parameters that it leaves out."""

    step: Step
    left_out: tuple[str, ...]


def _prepare(
    way: Way, workload: Workload, device: str, x: torch.Tensor, y: torch.Tensor
) -> _Prepared | Missing:
    if way.needs and (absent := backends.why_absent(way.needs)):
        return Missing(absent)
    try:
        step, left_out = way.make(workload, workload.model(_SEED, device), x, y)
        for _ in range(_WARM_STEPS):
            step()
    except Exception as error:  # whatever a peer raises is its row
        return Missing(texts.error_line(error))
    return _Prepared(step, left_out)


def _clock(step: Step, device: str) -> Host:
    """A clock on the step, whose samples are as many steps in a row as fill 2 ms."""
    machine = hardware_of(device)
    start_s = machine.now_s()
    for _ in range(_STEPS_TO_ESTIMATE):
        step()
    machine.synchronize()
    step_s = (machine.now_s() - start_s) / _STEPS_TO_ESTIMATE
    return Host(machine, [step], step_s, _SAMPLE_S)


def _time(
    taken: Samples | BaseException, plain: Samples | BaseException
) -> StepTime | Missing:
    for samples in (taken, plain):
        if isinstance(samples, NotMeasured):
            return Missing(samples.reason)
        if isinstance(samples, BaseException):
            return Missing(texts.error_line(samples))
    first, median, third = statistics.quantiles(
        taken.samples_s, n=4, method="inclusive"
    )
    ratio = intervals.median_ratio(plain.samples_s, taken.samples_s)
    return StepTime(
        samples=len(taken.samples_s),
        median_s=median,
        first_quartile_s=first,
        third_quartile_s=third,
        overhead=Estimate.of(ratio.value - 1, ratio.low - 1, ratio.high - 1),
    )


def table(rows: Sequence[Cost]) -> str:
    """The rows as people read them."""
    headers = (
        "workload",
        "batch",
        "way",
        "median",
        "quartiles",
        "over a plain step (95%)",
        "beside .grad",
        "",
    )
    return tabulate(map(_cells, rows), headers=headers, disable_numparse=True)


def _cells(row: Cost) -> tuple:
    name = row.workload, row.batch, row.way
    if isinstance(row.time, Missing):
        return *name, "", "", "", row.gives, row.time.reason
    time = row.time
    over = row.time.overhead
    return (
        *name,
        duration(time.median_s),
        f"{duration(time.first_quartile_s)} to {duration(time.third_quartile_s)}",
        "" if row.way == PLAIN else over.text("{:+.1%}"),
        row.gives,
        f"leaves out {', '.join(row.left_out)}" if row.left_out else "",
    )
