"""`batchline noise-cost`: what measuring the noise adds to a training step, beside Opacus
and BackPACK in the same run.

Every way takes the same step, forward and backward on the same model and batch, in
turns whose order is drawn anew each round, so that whatever the machine does it does to
all alike. A way that can't run is a row that says why.
"""

from __future__ import annotations

import random
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import quantile_test
from tabulate import tabulate
from torch import nn

from batchline.bench import texts
from batchline.bench.measure import threads
from batchline.bench.measure.busy import Guard, NoGuard, guard_of
from batchline.bench.measure.hardware import hardware as hardware_of
from batchline.bench.noise.meter import NoiseMeter
from batchline.bench.noise.workloads import workloads
from batchline.bench.noise.workloads.workload import Workload
from batchline.bench.units import duration
from batchline.bench.verdicts.medians import LEAST_SAMPLES
from batchline.kernels import backends

PLAIN, METERED, READ, OPACUS, BACKPACK = (
    "plain step",
    "NoiseMeter",
    "NoiseMeter, read",
    "Opacus ghost norms",
    "BackPACK batch_l2",
)
CLEAN, NOT_MEASURED = 0, 3
_WARM_STEPS, _SAMPLE_S, _SEED = 5, 2e-3, 0
_LARGER = 4
Step = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """One way's time for a step, seconds: the median and the quartiles of `rounds`
    samples.

    `overhead` is the median over the rounds of its time over the plain step's in the
    same round, less 1, and `overhead_low` to `overhead_high` the median's 95% interval.
    All are None where `reason` says why it did not run. `gives`: what is known
    afterwards, beside .grad. `left_out`: parameters that it can't see.
    """

    workload: str
    batch: int
    device: str
    way: str
    gives: str
    left_out: tuple[str, ...] = ()
    rounds: int = 0
    median_s: float | None = None
    first_quartile_s: float | None = None
    third_quartile_s: float | None = None
    overhead: float | None = None
    overhead_low: float | None = None
    overhead_high: float | None = None
    reason: str | None = None


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
    meter, (step, _) = NoiseMeter(model, reduction="mean"), _plain(
        workload, model, x, y
    )

    def metered():
        with meter:
            step()

    metered()
    return metered, meter.reading.without_gradient


def _read(workload, model, x, y):
    meter, (step, _) = NoiseMeter(model, reduction="mean"), _plain(
        workload, model, x, y
    )

    def read():
        with meter:
            step()
        return meter.reading.noise(), meter.reading.tests()

    return read, ()


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
        if getattr(parameter, "_norm_sample", None) is None
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
        if isinstance(module, (nn.Linear, nn.Embedding)):
            extend(module)
    step, _ = _plain(workload, model, x, y)

    def squared():
        with backpack(extension):
            step()

    squared()
    return squared, tuple(
        name
        for name, parameter in model.named_parameters()
        if not hasattr(parameter, "batch_l2")
    )


WAYS = (
    Way(PLAIN, "", _plain),
    Way(METERED, "n, d by layer", _metered),
    Way(READ, "n, d by layer; B_simple with interval; three tests", _read),
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
    return CLEAN if any(row.median_s for row in rows) else NOT_MEASURED


def costs(
    workload: Workload,
    batch: int,
    seconds: float,
    device: str = "cpu",
    guard: Guard | NoGuard = NoGuard(),
) -> list[Cost]:
    """A row for each way: about so many seconds in all are spent on rounds, after every
    way has been warmed.
    """
    hardware = hardware_of(device)
    x, y = workload.train.draw(batch, torch.Generator().manual_seed(_SEED), device)
    steps: dict[str, Step] = {}
    left_out: dict[str, tuple[str, ...]] = {}
    reasons: dict[str, str] = {}
    for way in WAYS:
        if way.needs and (absent := backends.why_absent(way.needs)):
            reasons[way.name] = absent
            continue
        try:
            steps[way.name], left_out[way.name] = way.make(
                workload, workload.model(_SEED, device), x, y
            )
            for _ in range(_WARM_STEPS):
                steps[way.name]()
        except Exception as error:  # whatever a peer raises is its row
            steps.pop(way.name, None)
            reasons[way.name] = texts.error_line(error)
    rounds, busy = guard.measured(lambda: _rounds(steps, seconds, hardware))
    if busy:
        reasons = dict.fromkeys(steps, busy) | reasons
    return [
        _cost(
            workload,
            batch,
            device,
            way,
            rounds,
            left_out.get(way.name, ()),
            reasons.get(way.name),
        )
        for way in WAYS
    ]


def _rounds(steps: dict[str, Step], seconds: float, hardware) -> list[dict[str, float]]:
    """Seconds a step of each way, round after round; a sample is as many steps in a row
    as fill 2 ms.

    It begins when the threads of the way before sleep, and short steps with one that is
    not timed.
    """

    def sample(step, count):
        threads.wait_until_asleep()
        if count > 1:
            step()
            hardware.synchronize()
        start_s = hardware.now_s()
        for _ in range(count):
            step()
        hardware.synchronize()
        return (hardware.now_s() - start_s) / count

    counts = {
        name: max(1, round(_SAMPLE_S / sample(step, 3))) for name, step in steps.items()
    }
    order, names, rounds = random.Random(_SEED), list(steps), []
    until_s = hardware.now_s() + seconds
    while hardware.now_s() < until_s or len(rounds) < LEAST_SAMPLES:
        order.shuffle(names)
        rounds.append({name: sample(steps[name], counts[name]) for name in names})
    return rounds


def _cost(workload, batch, device, way, rounds, left_out, reason) -> Cost:
    identity = dict(
        workload=workload.name,
        batch=batch,
        device=device,
        way=way.name,
        gives=way.gives,
    )
    if reason:
        return Cost(**identity, reason=reason)
    times = [one[way.name] for one in rounds]
    first, median, third = statistics.quantiles(times, n=4, method="inclusive")
    over = [one[way.name] / one[PLAIN] - 1 for one in rounds]
    low, high = quantile_test(over, p=0.5).confidence_interval(0.95)
    return Cost(
        **identity,
        left_out=left_out,
        rounds=len(rounds),
        median_s=median,
        first_quartile_s=first,
        third_quartile_s=third,
        overhead=statistics.median(over),
        overhead_low=low,
        overhead_high=high,
    )


def table(rows: Sequence[Cost]) -> str:
    """The rows as people read them."""

    def cells(row):
        if row.reason:
            return row.workload, row.batch, row.way, "", "", "", row.gives, row.reason
        over = (
            ""
            if row.way == PLAIN
            else f"{row.overhead:+.1%} ({row.overhead_low:+.1%} to {row.overhead_high:+.1%})"
        )
        quartiles = (
            f"{duration(row.first_quartile_s)} to {duration(row.third_quartile_s)}"
        )
        left_out = f"leaves out {', '.join(row.left_out)}" if row.left_out else ""
        return (
            row.workload,
            row.batch,
            row.way,
            duration(row.median_s),
            quartiles,
            over,
            row.gives,
            left_out,
        )

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
    return tabulate(
        [cells(row) for row in rows], headers=headers, disable_numparse=True
    )
