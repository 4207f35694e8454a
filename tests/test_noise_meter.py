"""NoiseMeter on the real workloads: its statistics are those of single-sample passes,
and .grad is as without it.
"""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from batchline.bench.noise import NoiseMeter
from batchline.bench.noise.workloads import workloads

BATCH = 9
EXACT = {torch.float64: 1e-10, torch.float32: 1e-5}


pytestmark = pytest.mark.usefixtures("one_thread")


@functools.cache
def _trained(name, steps):
    """A workload's fp32 model after so many steps of SGD."""
    workload = workloads[name]
    model, generator = workload.model(seed=1), torch.Generator().manual_seed(2)
    for _ in range(steps):
        model.zero_grad()
        workload.losses(
            model, *workload.train.draw(workload.batch, generator, "cpu")
        ).mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= workload.learning_rate * parameter.grad
    return model


def _problem(name, steps, dtype):
    workload = workloads[name]
    x, y = workload.train.draw(BATCH, torch.Generator().manual_seed(3), "cpu")
    return (
        workload,
        copy.deepcopy(_trained(name, steps)).to(dtype),
        x if x.dtype == torch.int64 else x.to(dtype),
        y,
    )


def _one_by_one(losses, model, x, y):
    """name → g[B,P] in fp64, from a backward pass for each sample."""
    model = copy.deepcopy(model).double()
    names, parameters = zip(*model.named_parameters())
    x = x if x.dtype == torch.int64 else x.double()
    rows = [
        torch.autograd.grad(losses(model, x[b : b + 1], y[b : b + 1]).sum(), parameters)
        for b in range(len(x))
    ]
    return {
        name: torch.stack([row[index].flatten() for row in rows])
        for index, name in enumerate(names)
    }


def _assert_exact(reading, model, gradients, rel):
    """n to `rel` of itself; ‖ḡ‖ of itself; d of ‖g_b‖·‖ḡ‖, for it may be any small
    difference; ḡ of ‖ḡ‖.
    """
    assert list(reading.parameters) == list(gradients)
    for name, g in gradients.items():
        found, mean = reading.parameters[name], g.mean(0)
        n, m = g.square().sum(1), mean.square().sum()
        assert ((torch.tensor(found.squared_norms) - n).abs() <= rel * n).all(), name
        assert abs(found.mean_square - m) <= 2 * rel * m, name
        assert (
            (torch.tensor(found.inner_products) - g @ mean).abs()
            <= rel * (n * m).sqrt()
        ).all(), name
        gradient = model.get_parameter(name).grad.double().flatten()
        assert (gradient - mean).norm() <= rel * mean.norm(), name


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32], ids=["float64", "float32"]
)
@pytest.mark.parametrize("steps", [0, 12], ids=["untrained", "trained"])
@pytest.mark.parametrize("name", ["digits", "characters"])
def test_every_layer_agrees_with_single_sample_passes_in_fp64(name, steps, dtype):
    workload, model, x, y = _problem(name, steps, dtype)
    meter = NoiseMeter(model, reduction="mean")
    with meter:
        workload.losses(model, x, y).mean().backward()
    assert not meter.fallbacks
    _assert_exact(
        meter.reading, model, _one_by_one(workload.losses, model, x, y), EXACT[dtype]
    )


@pytest.mark.parametrize("name", ["digits", "characters"])
def test_the_gradient_is_as_without_the_meter_and_adds_to_what_is_there(name):
    workload, model, x, y = _problem(name, 12, torch.float32)
    plain = copy.deepcopy(model)
    meter = NoiseMeter(model, reduction="mean")
    for _ in range(2):
        workload.losses(plain, x, y).mean().backward()
        with meter:
            workload.losses(model, x, y).mean().backward()
    for (key, ours), theirs in zip(model.named_parameters(), plain.parameters()):
        assert ours.grad.dtype == theirs.grad.dtype and ours.grad.is_contiguous()
        assert (ours.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm(), key


def test_a_summed_loss_told_so_reads_as_a_mean_does():
    workload, model, x, y = _problem("digits", 12, torch.float64)
    readings = []
    for reduction in ("mean", "sum"):
        meter = NoiseMeter(model, reduction=reduction)
        with meter:
            getattr(workload.losses(model, x, y), reduction)().backward()
        readings.append(meter.reading)
    mean, summed = readings
    for name, statistics in mean.parameters.items():
        assert summed.parameters[name].mean_square == pytest.approx(
            statistics.mean_square, rel=1e-10
        )
        assert summed.parameters[name].squared_norms == pytest.approx(
            statistics.squared_norms, rel=1e-10
        )
    assert summed.noise().scale.simple == pytest.approx(
        mean.noise().scale.simple, rel=1e-8
    )


def test_layers_add_up_to_the_whole_and_the_reading_prints_all_of_it():
    workload, model, x, y = _problem("digits", 12, torch.float64)
    meter = NoiseMeter(model, reduction="mean")
    with meter:
        workload.losses(model, x, y).mean().backward()
    reading = meter.reading
    assert (
        list(reading.layers) == ["0", "2"]
        and reading.batch == BATCH
        and reading is meter.reading
    )
    gradients = torch.cat(list(_one_by_one(workload.losses, model, x, y).values()), 1)
    assert reading.whole.squared_norms == pytest.approx(
        gradients.square().sum(1).numpy(), rel=1e-9
    )
    assert reading.layers["2"].mean_square + reading.layers[
        "0"
    ].mean_square == pytest.approx(gradients.mean(0).square().sum().item(), rel=1e-9)
    text = str(reading)
    assert reading.noise().text() in text and reading.noise("2").text() in text
    assert all(f"{test.name} test" in text for test in reading.tests())
    assert reading.warnings == reading.noise().warnings
    assert f"  warning: {reading.warnings[-1]}" in text.splitlines()
    assert replace(reading, why_not="no interval").warnings == ()
    with pytest.raises(ValueError, match="no layer '1' was measured: there are 0, 2"):
        reading.noise("1")


def test_every_third_step_is_measured_and_the_others_are_left_alone():
    workload, model, x, y = _problem("digits", 0, torch.float32)
    meter, measured = NoiseMeter(model, reduction="mean"), []
    for _ in range(7):
        with meter.every(3) as now:
            assert ("forward" in model[0].__dict__) == now
            workload.losses(model, x, y).mean().backward()
        measured.append(now)
    assert measured == [True, False, False, True, False, False, True]


def test_the_gradient_can_be_differentiated_in_a_metered_step():
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Embedding(9, 6),
        nn.LayerNorm(6),
        nn.Linear(6, 5),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(20, 3),
    ).double()
    plain, x = copy.deepcopy(model), torch.randint(9, (BATCH, 4))
    meter = NoiseMeter(model, reduction="mean")
    penalties = []
    for net in (model, plain):
        with meter if net is model else torch.enable_grad():
            gradients = torch.autograd.grad(
                net(x).square().sum(1).mean(), net.parameters(), create_graph=True
            )
        penalty = sum(gradient.square().sum() for gradient in gradients)
        penalties.append(torch.autograd.grad(penalty, net.parameters()))
    for ours, theirs in zip(*penalties):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)
    gradients = _one_by_one(lambda net, x, y: net(x).square().sum(1), model, x, x)
    assert meter.reading.whole.squared_norms == pytest.approx(
        torch.cat(list(gradients.values()), 1).square().sum(1).numpy(), rel=1e-9
    )


@pytest.mark.parametrize(
    "dtype, rel",
    [(torch.bfloat16, 0.05), (torch.float16, 0.01)],
    ids=["bfloat16", "float16"],
)
@pytest.mark.parametrize("name", ["digits", "characters"])
def test_narrow_models_read_what_their_own_roundings_leave(name, dtype, rel):
    workload, model, x, y = _problem(name, 12, dtype)
    meter = NoiseMeter(model, reduction="mean")
    with meter:
        (workload.losses(model, x, y).float().mean()).backward()
    gradients = torch.cat(list(_one_by_one(workload.losses, model, x, y).values()), 1)
    assert all(parameter.grad.dtype == dtype for parameter in model.parameters())
    assert meter.reading.whole.squared_norms == pytest.approx(
        gradients.square().sum(1).numpy(), rel=rel
    )


@pytest.mark.parametrize("backward", ["outside", "inside"])
@pytest.mark.parametrize("name", ["digits", "characters"])
def test_autocast_is_followed(name, backward):
    workload, model, x, y = _problem(name, 12, torch.float32)
    plain, readings = copy.deepcopy(model), {}
    meter = NoiseMeter(model, reduction="mean")
    for net, context in ((plain, torch.enable_grad()), (model, meter)):
        with context:
            with torch.autocast("cpu", torch.bfloat16):
                losses = workload.losses(net, x, y)
                if backward == "inside":
                    losses.mean().backward()
            if backward == "outside":
                losses.mean().backward()
        readings[net] = losses
    assert torch.equal(readings[plain], readings[model])
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        assert (
            ours.grad.dtype == torch.float32
            and (ours.grad - theirs.grad).norm() <= 0.02 * theirs.grad.norm()
        )
    gradients = torch.cat(list(_one_by_one(workload.losses, model, x, y).values()), 1)
    assert meter.reading.whole.squared_norms == pytest.approx(
        gradients.square().sum(1).numpy(), rel=0.05
    )


def test_checkpointed_layers_are_seen_once():
    from torch.utils.checkpoint import checkpoint

    workload, model, x, y = _problem("digits", 12, torch.float64)
    meter = NoiseMeter(model, reduction="mean")
    with meter:
        logits = checkpoint(model, x, use_reentrant=False)
        functional.cross_entropy(logits, y).backward()
    _assert_exact(
        meter.reading, model, _one_by_one(workload.losses, model, x, y), 1e-10
    )


def test_importing_the_estimators_needs_no_torch():
    import subprocess
    import sys
    from pathlib import Path

    program = "import sys; sys.modules['torch'] = None; import batchline.bench.noise, batchline.bench.stats.noise_scale"
    assert (
        subprocess.run(
            [sys.executable, "-c", program], cwd=Path(__file__).parents[1]
        ).returncode
        == 0
    )
