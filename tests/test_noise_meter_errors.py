"""Steps that NoiseMeter can't measure are refused in one line, and leave the model as
it was.
"""

import copy

import pytest
import torch

from batchline.bench.errors import UsageError
from batchline.bench.noise import NoiseMeter
from tests.metered_steps import X, assert_untouched, loss_of, refused, small_model


@pytest.mark.parametrize(
    "reduction, words",
    [
        ({}, "not told"),
        ({"reduction": "average"}, "'average'"),
        ({"reduction": "none"}, "'none'"),
    ],
)
def test_the_reduction_must_be_told(reduction, words):
    with pytest.raises(UsageError, match=f'reduction="mean" or "sum": it was {words}'):
        NoiseMeter(small_model(), **reduction)


def test_an_empty_batch():
    refused(
        small_model(),
        "a batch of no samples",
        lambda model: loss_of(model, X[:0]).backward(),
    )


def test_no_reading_before_the_first_step():
    with pytest.raises(UsageError, match="nothing was measured yet"):
        NoiseMeter(small_model(), reduction="mean").reading


def test_a_failed_step_leaves_no_older_reading():
    model = small_model()
    meter = NoiseMeter(model, reduction="mean")
    with meter:
        loss_of(model).backward()
    meter.reading
    with pytest.raises(UsageError, match="no backward pass"):
        with meter:
            loss_of(model)
    with pytest.raises(UsageError, match="nothing was measured yet"):
        meter.reading


def _without_gradients(model):
    with torch.no_grad():
        model(X)


@pytest.mark.parametrize(
    "backward",
    [loss_of, _without_gradients, lambda model: None],
    ids=["forward alone", "no_grad", "nothing"],
)
def test_no_backward_pass_in_the_step(backward):
    refused(small_model(), "no backward pass was seen", backward)


def _twice_through(model):
    loss = loss_of(model)
    loss.backward(retain_graph=True)
    loss.backward()


def test_two_backward_passes_through_one_call():
    refused(
        small_model(),
        "two backward passes through one call .*accumulate",
        _twice_through,
    )


def _micro_batches(model):
    loss_of(model).backward()
    loss_of(model).backward()


def _two_losses(model):
    one, other = loss_of(model), loss_of(model)
    one.backward()
    other.backward()


def _added(model):
    (loss_of(model) + loss_of(model)).backward()


@pytest.mark.parametrize("backward", [_micro_batches, _two_losses, _added])
def test_two_calls_of_the_model_in_one_step(backward):
    refused(
        small_model(),
        r"called twice in one metered step: .*accumulate.*samples=",
        backward,
    )


@pytest.mark.parametrize("steps", [0, -1, 1.5, "2"])
def test_every_takes_a_whole_number(steps):
    with pytest.raises(UsageError, match="whole number of steps"):
        NoiseMeter(small_model(), reduction="mean").every(steps)


def test_a_meter_inside_itself():
    model = small_model()
    meter = NoiseMeter(model, reduction="mean")
    with meter:
        with pytest.raises(UsageError, match="measuring a step already"):
            meter.__enter__()
        loss_of(model).backward()
    assert meter.reading.batch == len(X)
    assert_untouched(model)


@pytest.mark.parametrize("where", ["forward", "backward", "body"])
def test_an_exception_in_the_step_passes_and_everything_is_put_back(where):
    model = small_model()

    def fail(*ignored):
        raise KeyError(where)

    def forward(x):
        y = model(x)
        if where == "backward":
            y.register_hook(fail)
        if where == "body":
            fail()
        return y

    failing = model[3].register_forward_pre_hook(fail) if where == "forward" else None
    with pytest.raises(KeyError, match=where):
        with NoiseMeter(model, reduction="mean"):
            forward(X).sum().backward()
    if failing:
        failing.remove()
    assert_untouched(model)


def test_a_forward_of_the_users_own_is_put_back():
    model = small_model()
    mine = model[0].forward
    model[0].forward = mine
    with NoiseMeter(model, reduction="mean"):
        loss_of(model).backward()
    assert model[0].__dict__["forward"] is mine


def test_a_sample_without_a_batch():
    refused(
        small_model(),
        "0 has first dimension 1, and the model's input 4",
        lambda model: model(X[0]).sum().backward(),
    )


def test_gradients_survive_a_refused_reading():
    model = small_model()
    plain = copy.deepcopy(model)
    plain(X[:1]).square().sum().backward()
    meter = NoiseMeter(model, reduction="mean")
    with meter:
        model(X[:1]).square().sum().backward()
    assert "two samples" in meter.reading.why_not
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad)
