"""Metered steps on several gloo ranks: `start(world)` runs every scenario in one group
and returns what each rank read.

As a program it is one rank, and does without numba, whose compiling takes longer than
all the rest.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.modules["numba"] = None

import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from batchline.bench.errors import UsageError
from batchline.bench.noise import GradientNorms, NoiseMeter

ROOT = Path(__file__).resolve().parents[1]
ROWS = 8  # of each rank


class Block(nn.Module):
    """Tokens, a linear layer over them, a normalisation, a head of one token."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, ids):
        x = torch.tanh(self.mix(self.tokens(ids)))
        return self.head(self.norm(x).mean(1))


def all_linear():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def block():
    torch.manual_seed(3)
    return Block()


def data(count, seed=1):
    """ids[count,5], x[count,8] and y[count,3]."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(11, (count, 5), generator=draw)
    return (
        ids,
        torch.randn(count, 8, generator=draw),
        torch.randn(count, 3, generator=draw),
    )


def loss_of(output, y, reduction="mean"):
    losses = functional.mse_loss(output, y, reduction="none").sum(1)
    return getattr(losses, reduction)()


def weights_of(count, zeros=0):
    """[count], fp64: of which the first ones are 0."""
    draw = torch.Generator().manual_seed(9)
    weights = torch.randint(1, 8, (count,), generator=draw).double()
    weights[:zeros] = 0
    return weights


def weighted_sum(output, y, weights):
    losses = functional.mse_loss(output, y, reduction="none").sum(1)
    return (losses * weights).sum()


def own(x, rank, world):
    return x.chunk(world)[rank]


def read(meter):
    reading = meter.reading
    whole = reading.whole
    return {
        "batch": reading.batch,
        "mean_square": whole.mean_square,
        "squared_norms": whole.squared_norms.tolist(),
        "inner_products": getattr(whole, "inner_products", torch.zeros(0)).tolist(),
        "simple": reading.scale().simple,
        "assumed": list(reading.assumed),
        "why_not": reading.why_not,
        "text": str(reading),
    }


def sharded(model, **options):
    from torch.distributed.fsdp import fully_shard

    for module in model.children():
        if list(module.parameters()):
            fully_shard(module, **options)
    return fully_shard(model, **options)


def step(model, inputs, y, given=None, reduction="mean", **options):
    """One metered step of `model` on this rank's samples, `given` to the meter."""
    meter = NoiseMeter(
        given if given is not None else model, reduction=reduction, **options
    )
    with meter:
        loss_of(model(inputs), y, reduction).backward()
    return read(meter)


class Rank:
    """The scenarios, each a method that returns what is compared."""

    def __init__(self, rank, world):
        self.rank = rank
        self.world = world
        self.ids, self.x, self.y = (
            own(part, rank, world) for part in data(ROWS * world)
        )

    def ddp(self):
        return step(DistributedDataParallel(block()), self.ids, self.y)

    def ddp_linear(self):
        return step(DistributedDataParallel(all_linear()), self.x, self.y)

    def ddp_given_the_inner_model(self):
        ddp = DistributedDataParallel(all_linear())
        return step(ddp, self.x, self.y, given=ddp.module)

    def ddp_within(self):
        return step(DistributedDataParallel(block()), self.ids, self.y, within=True)

    def ddp_sum(self):
        model = DistributedDataParallel(block())
        return step(model, self.ids, self.y, reduction="sum")

    def ddp_autocast(self):
        with torch.autocast("cpu", torch.bfloat16):
            return step(DistributedDataParallel(block()), self.ids, self.y)

    def _accumulated(self, model, quiet, **options):
        meter = NoiseMeter(model, reduction="mean", **options)
        parts = list(zip(self.ids.chunk(4), self.y.chunk(4)))
        with meter.step(accumulate=4):
            for number, (ids, y) in enumerate(parts):
                with quiet(number == 3):
                    (loss_of(model(ids), y) / 4).backward()
        return read(meter)

    def ddp_accumulated(self):
        model = DistributedDataParallel(block())
        return self._accumulated(
            model, lambda last: contextlib.nullcontext() if last else model.no_sync()
        )

    def ddp_accumulated_within(self):
        model = DistributedDataParallel(block())
        return self._accumulated(
            model,
            lambda last: contextlib.nullcontext() if last else model.no_sync(),
            within=True,
        )

    def _weighted(self, model, weights, rows=ROWS, calls=1, told=True):
        """Each rank's loss is over the mean of all ranks' sums of weights."""
        mine = weights[self.rank * ROWS :][:rows]
        whole = mine.sum()
        distributed.all_reduce(whole)
        meter = NoiseMeter(model, reduction="mean")
        with meter.step(accumulate=calls, weights=mine if told else None):
            for part in torch.arange(rows).chunk(calls):
                output = model(self.ids[part])
                loss = weighted_sum(output, self.y[part], mine[part])
                (loss * self.world / whole).backward()
        return read(meter)

    def ddp_weights(self):
        model = DistributedDataParallel(block())
        return self._weighted(model, weights_of(ROWS * self.world))

    def ddp_weights_over_calls(self):
        """The gradient of each call is reduced: static graphs add up."""
        model = DistributedDataParallel(block())
        return self._weighted(model, weights_of(ROWS * self.world), calls=2)

    def fsdp_weights(self):
        return self._weighted(sharded(block()), weights_of(ROWS * self.world))

    def ddp_weights_of_zero(self):
        model = DistributedDataParallel(block())
        return self._weighted(model, weights_of(ROWS * self.world, ROWS))

    def ddp_weights_uneven(self):
        model = DistributedDataParallel(block())
        rows = ROWS - self.rank
        return self._weighted(model, weights_of(ROWS * self.world), rows)

    def ddp_weights_of_one_rank(self):
        model = DistributedDataParallel(block())
        told = self.rank == 0
        return self._weighted(model, weights_of(ROWS * self.world), told=told)

    def ddp_weights_too_few(self):
        model = DistributedDataParallel(block())
        meter = NoiseMeter(model, reduction="mean")
        with meter.step(weights=torch.ones(ROWS - self.rank)):
            loss_of(model(self.ids), self.y).backward()
        return {"why_not": meter.reading.why_not}

    def _preconditioned(self, model, within=False, told=True):
        """After a step of Adam on the same samples."""
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        meter = NoiseMeter(
            model,
            reduction="mean",
            within=within,
            optimizer=optimizer if told else None,
        )
        loss_of(model(self.ids), self.y).backward()
        optimizer.step()
        optimizer.zero_grad()
        with meter:
            loss_of(model(self.ids), self.y).backward()
        reading = meter.reading.preconditioned
        whole = {} if not reading.parameters else vars(reading.whole)
        return {
            "why_not": reading.why_not,
            "mean_square": whole.get("mean_square"),
            "squared_norms": [*map(float, whole.get("squared_norms", ()))],
            "inner_products": [*map(float, whole.get("inner_products", ()))],
        }

    def ddp_optimizer(self):
        return self._preconditioned(DistributedDataParallel(block()))

    def ddp_optimizer_within(self):
        return self._preconditioned(DistributedDataParallel(block()), within=True)

    def ddp_optimizer_of_one_rank(self):
        model = DistributedDataParallel(block())
        return self._preconditioned(model, told=self.rank == 0)

    def fsdp_optimizer(self):
        return self._preconditioned(sharded(block()))

    def fsdp(self):
        model = sharded(block())
        meter = NoiseMeter(model, reduction="mean")
        with torch.no_grad():  # leaves the root's weights together
            model(self.ids)
        for _ in range(2):
            model.zero_grad()
            with meter:
                loss_of(model(self.ids), self.y).backward()
        return read(meter)

    def fsdp_within(self):
        return step(sharded(block()), self.ids, self.y, within=True)

    def fsdp_root_alone(self):
        from torch.distributed.fsdp import fully_shard

        return step(fully_shard(block()), self.ids, self.y)

    def fsdp_accumulated(self):
        model = sharded(block())

        def quiet(last):
            model.set_requires_gradient_sync(last)
            return contextlib.nullcontext()

        return self._accumulated(model, quiet)

    def fsdp_autocast(self):
        with torch.autocast("cpu", torch.bfloat16):
            return step(sharded(block()), self.ids, self.y)

    def fsdp_bfloat16(self):
        from torch.distributed.fsdp import MixedPrecisionPolicy

        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        return step(sharded(block(), mp_policy=policy), self.ids, self.y.bfloat16())

    def by_hand(self):
        model = block()
        group = distributed.group.WORLD
        meter = NoiseMeter(model, reduction="mean", process_group=group)
        with meter:
            loss_of(model(self.ids), self.y).backward()
            for parameter in model.parameters():
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.world
        return read(meter)

    def alone(self):
        return step(all_linear(), self.x, self.y)

    def alone_and_reduced(self):
        model = all_linear()
        meter = NoiseMeter(model, reduction="mean")
        with meter:
            loss_of(model(self.x), self.y).backward()
            for parameter in model.parameters():
                distributed.all_reduce(parameter.grad)
        return read(meter)

    def ddp_not_reduced(self):
        model = DistributedDataParallel(all_linear())
        with model.no_sync():
            return step(model, self.x, self.y)

    def ddp_clipped(self):
        model = DistributedDataParallel(all_linear())
        meter = NoiseMeter(model, reduction="mean")
        with meter:
            loss_of(model(self.x), self.y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        return read(meter)

    def ddp_clipped_by_value(self):
        model = DistributedDataParallel(all_linear())
        meter = NoiseMeter(model, reduction="mean")
        with meter:
            loss_of(model(self.x), self.y).backward()
            nn.utils.clip_grad_value_(model.parameters(), 1e-3)
        return read(meter)

    def fsdp_clipped(self):
        model = sharded(all_linear())
        meter = NoiseMeter(model, reduction="mean")
        with meter:
            loss_of(model(self.x), self.y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        return read(meter)

    def ddp_cleared(self):
        model = DistributedDataParallel(all_linear())
        meter = NoiseMeter(model, reduction="mean")
        with meter:
            loss_of(model(self.x), self.y).backward()
            model.zero_grad()
        return read(meter)

    def ddp_gradient_before(self):
        model = DistributedDataParallel(all_linear())
        loss_of(model(self.x), self.y).backward()
        return step(model, self.x, self.y)

    def ddp_uneven(self):
        model = DistributedDataParallel(all_linear())
        keep = ROWS - self.rank
        meter = NoiseMeter(model, reduction="mean")
        with meter:
            loss_of(model(self.x[:keep]), self.y[:keep]).backward()
        return {"why_not": meter.reading.why_not, "text": str(meter.reading)}

    def ddp_same_samples(self):
        model = DistributedDataParallel(all_linear())
        meter = NoiseMeter(model, reduction="mean")
        _, x, y = data(ROWS)
        with meter:
            loss_of(model(x), y).backward()
        return {"why_not": meter.reading.why_not, "text": str(meter.reading)}

    def one_rank_fails(self):
        model = all_linear()
        group = distributed.group.WORLD
        meter = NoiseMeter(model, reduction="mean", process_group=group)
        with meter:
            if self.rank:
                loss_of(model(self.x), self.y).backward()
        return read(meter)

    def ddp_compiled(self):
        ddp = DistributedDataParallel(torch.compile(block(), backend="eager"))
        return step(ddp, self.ids, self.y)

    def compiled_ddp(self):
        model = torch.compile(DistributedDataParallel(block()), backend="eager")
        return step(model, self.ids, self.y)

    def fsdp_compiled(self):
        model = torch.compile(sharded(block()), backend="eager")
        return step(model, self.ids, self.y)

    def ddp_convolution(self):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(24, 3))
        return step(DistributedDataParallel(model), self.x[:, None], self.y)

    def fsdp_convolution(self):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(24, 3))
        return step(sharded(model), self.x[:, None], self.y)

    def fsdp_replayed(self):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Bilinear(8, 8, 6), nn.Linear(6, 3))
        return step(sharded(model), self.x, self.y)

    def fsdp_lengths(self):
        """Ranks meet new shapes at different steps."""
        model = sharded(block())
        meter = NoiseMeter(model, reduction="mean")
        for length in (3, 5 if self.rank else 3, 5):
            model.zero_grad()
            with meter:
                loss_of(model(self.ids[:, :length]), self.y).backward()
        return read(meter)

    def hybrid(self):
        from torch.distributed.device_mesh import init_device_mesh

        shape = (self.world // 2, 2)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "shards"))
        return step(sharded(block(), mesh=mesh), self.ids, self.y, within=True)

    def gradient_norms(self):
        """Three steps: plain, of two micro-batches, and one that overflows."""
        model = DistributedDataParallel(all_linear(), bucket_cap_mb=1e-4)
        norms = GradientNorms(model)
        loss_of(model(self.x), self.y).backward()
        model.zero_grad()
        with model.no_sync():
            (loss_of(model(self.x[:4]), self.y[:4]) / 2).backward()
        (loss_of(model(self.x[4:]), self.y[4:]) / 2).backward()
        gradient = torch.cat([one.grad.flatten() for one in model.parameters()])
        (loss_of(model(self.x), self.y) * float("inf")).backward()
        history = norms.history()
        return {
            "steps": [list(past) for past in history.steps],
            "left_out": history.left_out,
            "text": str(history),
            "gradient": gradient.tolist(),
        }

    def gradient_norms_twice(self):
        model = DistributedDataParallel(all_linear())
        GradientNorms(model)
        GradientNorms(model)

    def ddp_in_ddp(self):
        inner = DistributedDataParallel(all_linear())
        return step(nn.Sequential(inner), self.x, self.y)

    def fsdp1(self):
        from torch.distributed.fsdp import FullyShardedDataParallel

        model = FullyShardedDataParallel(all_linear(), device_id=torch.device("cpu"))
        return step(model, self.x, self.y)

    def tensor_parallel(self):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor.parallel import (
            ColwiseParallel,
            RowwiseParallel,
            parallelize_module,
        )

        mesh = init_device_mesh("cpu", (self.world,))
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        model = parallelize_module(all_linear(), mesh, plan)
        return step(model, self.x, self.y)

    def pipeline(self):
        model = nn.Linear(8, 3, bias=self.rank > 0)
        return step(model, self.x, self.y, process_group=distributed.group.WORLD)


def scenarios(world):
    names = [name for name in vars(Rank) if not name.startswith("_")]
    return [name for name in names if name != "hybrid" or world > 2]


def run(rank, world):
    """Every scenario: what it returns, or the error."""
    here = Rank(rank, world)
    found = {}
    for name in scenarios(world):
        try:
            found[name] = getattr(here, name)()
        except (UsageError, RuntimeError) as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    return found


def start(world, folder):
    """What each rank found, as [rank][scenario]."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.noise_ranks", str(rank), str(world), folder],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, error in zip(ranks, errors):
        assert rank.returncode == 0, error[-3000:]
    return [
        json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world)
    ]


def main(rank, world, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
    )
    found = run(rank, world)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
