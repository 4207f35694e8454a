"""NoiseMeter on several ranks says what one process says of all their samples, or
refuses in one line.
"""

import contextlib
import threading

import numpy as np
import pytest
import torch
from torch import nn

from batchline.bench.errors import UsageError
from batchline.bench.noise import GradientNorms, NoiseMeter
from batchline.bench.noise.meter import ranks
from batchline.bench.stats.noise_scale import two_batch_sizes
from tests import noise_ranks
from tests.metered_steps import assert_whole, single_samples

RIGHT = (
    "ddp",
    "ddp_within",
    "ddp_sum",
    "ddp_accumulated",
    "ddp_accumulated_within",
    "ddp_compiled",
    "compiled_ddp",
    "fsdp",
    "fsdp_within",
    "fsdp_root_alone",
    "fsdp_accumulated",
    "fsdp_compiled",
    "fsdp_lengths",
    "by_hand",
)
WITHIN = ("ddp_within", "ddp_accumulated_within", "fsdp_within", "hybrid")
LINEAR = (
    "ddp_linear",
    "ddp_given_the_inner_model",
    "ddp_clipped",
    "fsdp_clipped",
)
REFUSED = {
    "alone_and_reduced": "tell process_group=",
    "ddp_not_reduced": "not put together within the metered step",
    "ddp_clipped_by_value": "neither the mean nor the sum",
    "ddp_cleared": "neither the mean nor the sum",
    "ddp_gradient_before": "call zero_grad() before",
    "fsdp_replayed": "replayed by torch.func after the step",
    "ddp_in_ddp": "a DistributedDataParallel within the model",
    "fsdp1": "fully_shard",
    "tensor_parallel": "DTensor",
    "pipeline": "stages of a pipeline",
    "gradient_norms_twice": "has a communication hook already",
    "ddp_weights_of_one_rank": "one was told weights= and the other not",
    "fsdp_optimizer": "optimizer= is for whole parameters",
    "ddp_optimizer_of_one_rank": "one was told optimizer= and the other not",
}
WEIGHTED = {  # zeros at the front, and samples of all ranks
    "ddp_weights": (0, 16),
    "ddp_weights_over_calls": (0, 16),
    "fsdp_weights": (0, 16),
    "ddp_weights_of_zero": (8, 16),
    "ddp_weights_uneven": (0, 15),
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return noise_ranks.start(2, str(tmp_path_factory.mktemp("ranks")))


def of_one_process(model, inputs, y):
    """g[B,P] of single samples, in fp64."""
    return single_samples(
        model,
        lambda model: (
            noise_ranks.loss_of(model(x[None]), one[None].double())
            for x, one in zip(inputs, y)
        ),
    )


def of_block(world):
    ids, _, y = noise_ranks.data(noise_ranks.ROWS * world)
    return of_one_process(noise_ranks.block(), ids, y)


def of_linear(world):
    _, x, y = noise_ranks.data(noise_ranks.ROWS * world)
    return of_one_process(noise_ranks.all_linear(), x.double(), y)


def assert_right(found, g, name, rel=1e-5):
    mean = g.mean(0)
    square = mean.square().sum().item()
    n = g.square().sum(1)
    for rank in found:
        seen = rank[name]
        assert "error" not in seen, seen
        assert seen["batch"] == len(g)
        assert seen["mean_square"] == pytest.approx(square, rel=rel), name
        assert sorted(seen["squared_norms"]) == pytest.approx(
            sorted(n.tolist()), rel=rel
        )
    if name in WITHIN:
        slack = rel * (n * square).sqrt().max().item()
        d = sorted((g @ mean).tolist())
        assert sorted(seen["inner_products"]) == pytest.approx(d, rel=rel, abs=slack)
        assert "B_simple" in seen["text"] and seen["why_not"] is None
    else:
        assert "meter.history()" in seen["why_not"]


def assert_refused(found, name, words):
    for rank in found:
        error = rank[name]["error"]
        assert error.startswith("UsageError") and words in error, (name, error)
        assert "\n" not in error


@pytest.mark.commands
def test_two_ranks_say_what_one_process_says(two):
    g = of_block(2)
    for name in RIGHT:
        assert_right(two, g, name)


def of_weights(zeros, count):
    """What a meter of one process reads, in fp64."""
    ids, _, y = noise_ranks.data(2 * noise_ranks.ROWS)
    weights = noise_ranks.weights_of(len(ids), zeros)
    ids, y, weights = ids[:count], y[:count].double(), weights[:count]
    model = noise_ranks.block().double()
    meter = NoiseMeter(model, reduction="mean")
    with meter.step(weights=weights):
        loss = noise_ranks.weighted_sum(model(ids), y, weights)
        (loss / weights.sum()).backward()
    return meter.reading


@pytest.mark.commands
@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_of_all_ranks_are_those_of_one_process(two, name):
    zeros, count = WEIGHTED[name]
    expected = of_weights(zeros, count)
    whole = expected.whole
    slack = 1e-5 * np.sqrt(whole.squared_norms.max() * whole.mean_square)
    for rank in two:
        seen = rank[name]
        assert "error" not in seen, seen
        assert seen["batch"] == count and seen["why_not"] is None
        assert seen["mean_square"] == pytest.approx(whole.mean_square, rel=1e-5)
        assert seen["squared_norms"] == pytest.approx(whole.squared_norms, rel=1e-5)
        assert seen["inner_products"] == pytest.approx(
            whole.inner_products, rel=1e-5, abs=slack
        )
        assert "over the sum of all ranks' weights" in seen["text"]


def of_adam():
    """What a meter of one process reads of gradients over √v̂ + eps, in fp32."""
    ids, _, y = noise_ranks.data(2 * noise_ranks.ROWS)
    model = noise_ranks.block()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    meter = NoiseMeter(model, reduction="mean", optimizer=optimizer)
    noise_ranks.loss_of(model(ids), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    with meter:
        noise_ranks.loss_of(model(ids), y).backward()
    return meter.reading.preconditioned


@pytest.mark.commands
@pytest.mark.parametrize("name", ["ddp_optimizer", "ddp_optimizer_within"])
def test_gradients_as_adam_scales_them_are_those_of_one_process(two, name):
    whole = of_adam().whole
    slack = 1e-4 * np.sqrt(whole.squared_norms.max() * whole.mean_square)
    for rank in two:
        seen = rank[name]
        assert "error" not in seen, seen
        assert seen["mean_square"] == pytest.approx(whole.mean_square, rel=1e-3)
        assert seen["squared_norms"] == pytest.approx(whole.squared_norms, rel=1e-3)
        if name.endswith("within"):
            assert seen["why_not"] is None
            assert seen["inner_products"] == pytest.approx(
                whole.inner_products, rel=1e-3, abs=slack
            )
        else:
            assert "meter.history()" in seen["why_not"]


@pytest.mark.commands
def test_weights_that_are_none_of_a_rank_have_no_answer(two):
    assert "7 numbers of 0 or more" in two[1]["ddp_weights_too_few"]["why_not"]
    assert "rank 1 has no answer" in two[0]["ddp_weights_too_few"]["why_not"]


@pytest.mark.commands
def test_linear_layers_alone_are_not_a_ranks_own(two):
    g = of_linear(2)
    for name in LINEAR:
        assert_right(two, g, name)


@pytest.mark.commands
def test_both_ranks_say_the_same_in_narrow_dtypes_too(two):
    g = of_block(2)
    for name in ("ddp_autocast", "fsdp_autocast", "fsdp_bfloat16"):
        assert two[0][name] == two[1][name]
        assert_right(two, g, name, rel=0.03)
    assert two[0]["ddp_autocast"]["squared_norms"] == pytest.approx(
        two[0]["fsdp_autocast"]["squared_norms"], rel=1e-5
    )


@pytest.mark.commands
@pytest.mark.parametrize("name", ["ddp_autocast", "fsdp_autocast"])
def test_two_ranks_under_autocast_say_what_one_process_says(two, name):
    """M is that of .grad, in which autograd has rounded a normalisation's to bf16 on
    each rank.
    """
    ids, _, y = noise_ranks.data(2 * noise_ranks.ROWS)
    with torch.autocast("cpu", torch.bfloat16):
        one = noise_ranks.step(noise_ranks.block(), ids, y)
    for rank in two:
        assert sorted(rank[name]["squared_norms"]) == pytest.approx(
            sorted(one["squared_norms"]), rel=1e-5
        )
        assert rank[name]["mean_square"] == pytest.approx(one["mean_square"], rel=1e-3)


@pytest.mark.commands
def test_convolutions_are_sharded_too(two):
    for name in ("mean_square", "squared_norms"):
        assert two[0]["fsdp_convolution"][name] == pytest.approx(
            two[0]["ddp_convolution"][name], rel=1e-5
        )


@pytest.mark.commands
@pytest.mark.parametrize("name, words", REFUSED.items())
def test_what_is_refused(two, name, words):
    assert_refused(two, name, words)


@pytest.mark.commands
def test_a_rank_that_fails_tells_the_others(two):
    assert "no backward pass" in two[0]["one_rank_fails"]["error"]
    assert "rank 0 could not measure" in two[1]["one_rank_fails"]["error"]


@pytest.mark.commands
def test_uneven_ranks_have_no_answer(two):
    for rank in two:
        assert "8, 7 samples" in rank["ddp_uneven"]["why_not"]
        assert "not known" in rank["ddp_uneven"]["text"]


@pytest.mark.commands
def test_ranks_with_the_same_samples_have_no_answer(two):
    for rank in two:
        assert "DistributedSampler" in rank["ddp_same_samples"]["why_not"]
        assert "not known" in rank["ddp_same_samples"]["text"]


@pytest.mark.commands
def test_a_model_that_nothing_wraps_is_this_ranks_alone(two):
    for rank, g in zip(two, of_linear(2).chunk(2)):
        assert rank["alone"]["mean_square"] == pytest.approx(
            g.mean(0).square().sum().item(), rel=1e-5
        )
        assert any("this rank's 8 samples" in line for line in rank["alone"]["assumed"])


@pytest.mark.commands
def test_norms_before_and_after_the_reduction_are_two_batch_sizes(two):
    g = of_linear(2)
    own = np.mean([part.mean(0).square().sum().item() for part in g.chunk(2)])
    scale = two_batch_sizes(8, own, 16, g.mean(0).square().sum().item())
    for rank in two:
        found = rank["gradient_norms"]
        assert "error" not in found, found
        assert found["left_out"] == 1 and len(found["steps"]) == 2
        for trace, square, batch, *_ in found["steps"]:
            assert batch == 16
            assert trace == pytest.approx(scale.trace, rel=1e-5)
            assert square == pytest.approx(scale.square, rel=1e-5)
        assert found["gradient"] == pytest.approx(g.mean(0).tolist(), abs=1e-5)


def test_norms_need_ranks():
    with pytest.raises(UsageError, match="DistributedDataParallel reduces"):
        GradientNorms(noise_ranks.all_linear())


@pytest.mark.slow
def test_four_ranks_and_a_hybrid_mesh_say_so_too(tmp_path):
    found = noise_ranks.start(4, str(tmp_path))
    g = of_block(4)
    for name in (*RIGHT, "hybrid"):
        assert_right(found, g, name)
    for name, words in REFUSED.items():
        assert_refused(found, name, words)


@pytest.mark.slow
def test_one_rank_is_a_device_of_its_own(tmp_path):
    found = noise_ranks.start(1, str(tmp_path))
    g = of_block(1)
    mean = g.mean(0).square().sum().item()
    for name in RIGHT:
        seen = found[0][name]
        assert "error" not in seen, (name, seen)
        assert seen["batch"] == len(g)
        assert seen["mean_square"] == pytest.approx(mean, rel=1e-5)
        n = g.square().sum(1).tolist()
        assert seen["squared_norms"] == pytest.approx(n, rel=1e-5)


class Threads:
    """Ranks that are threads: what `ranks.Ranks` does, without a process group."""

    def __init__(self, count):
        self.count = count
        self.sharded = False
        self.slack = 1e-3
        self._here = threading.local()
        self._all = threading.Barrier(count)
        self._parts = [None] * count

    def gather(self, x):
        self._parts[self._here.rank] = x.clone()
        self._all.wait()
        stacked = torch.stack(self._parts)
        self._all.wait()
        return stacked[None]

    def run(self, work):
        found = [None] * self.count

        def start(rank):
            self._here.rank = rank
            found[rank] = work(rank)

        threads = [
            threading.Thread(target=start, args=(rank,)) for rank in range(self.count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return found


@pytest.mark.parametrize("divides", [True, False])
@pytest.mark.parametrize("within", [True, False])
def test_the_arithmetic_over_three_ranks(monkeypatch, divides, within):
    """Gradients that ranks average, or that they add up where each rank's loss is
    already divided by their number.
    """
    count = 3
    _, x, y = noise_ranks.data(4 * count)
    threads = Threads(count)
    monkeypatch.setattr(ranks, "is_initialised", lambda: True)
    monkeypatch.setattr(ranks, "find", lambda *_: threads)
    monkeypatch.setattr(  # which is of the process, not of a thread
        torch.compiler, "set_stance", lambda *_: contextlib.nullcontext()
    )
    models = [noise_ranks.all_linear() for _ in range(count)]

    def step(rank):
        model = models[rank]
        meter = NoiseMeter(model, reduction="mean", within=within)
        with meter:
            output = model(x.chunk(count)[rank])
            loss = noise_ranks.loss_of(output, y.chunk(count)[rank])
            (loss if divides else loss / count).backward()
            for parameter in model.parameters():
                together = threads.gather(parameter.grad).sum((0, 1))
                parameter.grad = together / count if divides else together
        return meter.reading

    for reading in threads.run(step):
        assert_whole(reading, of_one_process(models[0], x.double(), y), rel=1e-5)
        assert (reading.why_not is None) is within
        how = "mean" if divides else "sum"
        assert any(f"the gradient is the {how}" in line for line in reading.assumed)


def test_weights_over_three_ranks(monkeypatch):
    """Each rank has those of its own samples; the loss is over the sum of all."""
    count = 3
    _, x, y = noise_ranks.data(4 * count)
    weights = noise_ranks.weights_of(4 * count, zeros=4)
    threads = Threads(count)
    monkeypatch.setattr(ranks, "is_initialised", lambda: True)
    monkeypatch.setattr(ranks, "find", lambda *_: threads)
    monkeypatch.setattr(
        torch.compiler, "set_stance", lambda *_: contextlib.nullcontext()
    )
    models = [noise_ranks.all_linear().double() for _ in range(count)]

    def step(rank):
        own = [part.chunk(count)[rank] for part in (x.double(), y.double(), weights)]
        meter = NoiseMeter(models[rank], reduction="mean")
        with meter.step(weights=own[2]):
            loss = noise_ranks.weighted_sum(models[rank](own[0]), *own[1:])
            (loss * count / weights.sum()).backward()
            for parameter in models[rank].parameters():
                parameter.grad = threads.gather(parameter.grad).mean((0, 1))
        return meter.reading

    found = threads.run(step)
    monkeypatch.setattr(ranks, "is_initialised", lambda: False)
    model = noise_ranks.all_linear().double()
    alone = NoiseMeter(model, reduction="mean")
    with alone.step(weights=weights):
        loss = noise_ranks.weighted_sum(model(x.double()), y.double(), weights)
        (loss / weights.sum()).backward()
    expected = alone.reading
    for reading in found:
        assert reading.why_not is None and reading.batch == 12
        for name in ("mean_square", "squared_norms", "inner_products"):
            assert getattr(reading.whole, name) == pytest.approx(
                getattr(expected.whole, name), rel=1e-9, abs=1e-9
            )


def test_a_product_is_the_sum_of_its_parts():
    for shape in ((7, 3), (7,), (6, 2, 3), (5, 1)):
        g = torch.randn(*shape, dtype=torch.float64)
        cuts = [0, 1, len(g) // 2, len(g)]
        parts = sum(ranks.product_of(g[a:b], a) for a, b in zip(cuts, cuts[1:]))
        assert parts.item() == pytest.approx(ranks.product_of(g).item(), rel=1e-12)
    empty = ranks.product_of(torch.zeros(0, 3))
    assert empty.item() == 0
    assert ranks.product_of(torch.tensor(2.0)).item() != 0


def test_a_product_is_as_large_as_its_gradient():
    torch.manual_seed(0)
    products = [ranks.product_of(torch.randn(30, 20)).item() for _ in range(200)]
    assert np.std(products) == pytest.approx(np.sqrt(600), rel=0.2)


def test_wrappers_are_looked_through():
    model = nn.Linear(2, 1)
    inner, ddp = ranks.unwrapped(torch.compile(model))
    assert inner is model and ddp is None


def test_one_process_has_no_ranks():
    model = noise_ranks.all_linear()
    _, x, y = noise_ranks.data(4)
    read = noise_ranks.step(model, x, y)
    assert not any("rank" in line for line in read["assumed"])
    assert read["why_not"] is None
