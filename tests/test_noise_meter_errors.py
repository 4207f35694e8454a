"""What NoiseMeter can't measure is refused in one line, and leaves the model as it was."""
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.errors import UsageError
from bench.noise import NoiseMeter

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def _model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 2))


def _loss(model, x=X):
    return model(x).square().sum(1).mean()


def _assert_untouched(model):
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def _refused(model, words, backward=lambda model: _loss(model).backward()):
    """A metered step that ends in a UsageError of one line with these words; the model is left as it was."""
    meter = NoiseMeter(model, reduction="mean")
    with pytest.raises(UsageError, match=words) as caught:
        with meter:
            backward(model)
        meter.reading
    assert "\n" not in str(caught.value)
    _assert_untouched(model)
    return meter


@pytest.mark.parametrize("reduction, words", [
    ({}, "not told"), ({"reduction": "average"}, "'average'"), ({"reduction": "none"}, "'none'")])
def test_the_reduction_must_be_told(reduction, words):
    with pytest.raises(UsageError, match=f'reduction="mean" or "sum": it was {words}'):
        NoiseMeter(_model(), **reduction)


def _lazy():
    return nn.Sequential(nn.LazyLinear(3))


def _frozen():
    return _model().requires_grad_(False)


def _compiled_in_place():
    model = _model()
    model.compile()
    return model


@pytest.mark.parametrize("make, words", [
    (lambda: [nn.Linear(2, 2)], "measures a torch.nn.Module, not list"),
    (lambda: nn.Sequential(nn.ReLU()), "Sequential has no parameters"),
    (_frozen, "all parameters of Sequential are frozen"),
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), r"1 \(BatchNorm1d\) mixes the samples"),
    (lambda: nn.BatchNorm1d(4, track_running_stats=False).eval(), "mixes the samples"),
    (lambda: nn.Embedding(4, 4, sparse=True), "sparse=True"),
    (lambda: nn.Embedding(4, 4, scale_grad_by_freq=True), "scale_grad_by_freq=True"),
    (lambda: torch.compile(_model()), "is compiled by torch.compile"),
    (_compiled_in_place, "is compiled by torch.compile"),
    (lambda: nn.DataParallel(_model()), "is a DataParallel"),
    (lambda: torch.jit.trace(_model(), X), "calls can't be seen"),
    (_lazy, "0 .LazyLinear. has no sizes yet"),
    (lambda: nn.Linear(2, 2, dtype=torch.complex64), "weight is torch.complex64"),
], ids=["a list", "no parameters", "all frozen", "batch norm", "batch norm without running statistics", "sparse",
        "scaled by frequency", "compiled", "compiled in place", "data parallel", "traced", "lazy", "complex"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_that_cannot_be_measured(make, words):
    with pytest.raises(UsageError, match=words) as caught:
        NoiseMeter(make(), reduction="mean")
    assert "\n" not in str(caught.value)


def test_a_model_turned_to_batch_statistics_later_is_refused_then():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    meter = NoiseMeter(model, reduction="mean")
    model.train()
    with pytest.raises(UsageError, match="mixes the samples"):
        with meter:
            pass
    _assert_untouched(model)


def test_a_batch_of_one():
    _refused(_model(), "0.weight: a noise scale needs two samples or more, and this batch has 1",
             lambda model: _loss(model, X[:1]).backward())


def test_an_empty_batch():
    _refused(_model(), "a batch of no samples", lambda model: _loss(model, X[:0]).backward())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite(value):
    x = X.clone()
    x[2, 1] = value
    _refused(_model(), "0.weight: .*NaN or infinite", lambda model: _loss(model, x).backward())


def test_no_reading_before_the_first_step():
    with pytest.raises(UsageError, match="nothing was measured yet"):
        NoiseMeter(_model(), reduction="mean").reading


def test_a_failed_step_leaves_no_older_reading():
    model = _model()
    meter = NoiseMeter(model, reduction="mean")
    with meter:
        _loss(model).backward()
    meter.reading
    with pytest.raises(UsageError, match="no backward pass"):
        with meter:
            _loss(model)
    with pytest.raises(UsageError, match="nothing was measured yet"):
        meter.reading


def _without_gradients(model):
    with torch.no_grad():
        model(X)


@pytest.mark.parametrize("backward", [_loss, _without_gradients, lambda model: None],
                         ids=["forward alone", "no_grad", "nothing"])
def test_no_backward_pass_in_the_step(backward):
    _refused(_model(), "no backward pass was seen", backward)


def _micro_batches(model):
    _loss(model).backward()
    _loss(model).backward()


def _twice_through(model):
    loss = _loss(model)
    loss.backward(retain_graph=True)
    loss.backward()


def _two_losses(model):
    one, other = _loss(model), _loss(model)
    one.backward()
    other.backward()


@pytest.mark.parametrize("backward", [_micro_batches, _twice_through, _two_losses])
def test_two_backward_passes_in_one_step(backward):
    _refused(_model(), "two backward passes in one metered step", backward)


@pytest.mark.parametrize("steps", [0, -1, 1.5, "2"])
def test_every_takes_a_whole_number(steps):
    with pytest.raises(UsageError, match="whole number of steps"):
        NoiseMeter(_model(), reduction="mean").every(steps)


def test_a_meter_inside_itself():
    model = _model()
    meter = NoiseMeter(model, reduction="mean")
    with meter:
        with pytest.raises(UsageError, match="measuring a step already"):
            meter.__enter__()
        _loss(model).backward()
    assert meter.reading.batch == len(X)
    _assert_untouched(model)


@pytest.mark.parametrize("where", ["forward", "backward", "body"])
def test_an_exception_in_the_step_passes_and_everything_is_put_back(where):
    model = _model()

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
    _assert_untouched(model)


def test_a_forward_of_the_users_own_is_put_back():
    model = _model()
    mine = model[0].forward
    model[0].forward = mine
    with NoiseMeter(model, reduction="mean"):
        _loss(model).backward()
    assert model[0].__dict__["forward"] is mine


class Outside(nn.Module):
    """Uses a layer's parameter beside the layer's call: before it, after it, or alone."""

    def __init__(self, how, layer):
        super().__init__()
        self.how, self.layer = how, layer

    def forward(self, x):
        outside = functional.linear(x, self.layer.weight) if x.is_floating_point() else self.layer.weight[x]
        if self.how == "alone":
            return outside
        return outside + self.layer(x) if self.how == "before" else self.layer(x) + outside


@pytest.mark.parametrize("how", ["before", "after", "alone"])
@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_a_gradient_from_outside_a_module(how, kind):
    linear = kind == "linear"
    layer = nn.Linear(4, 2) if linear else nn.Embedding(5, 3)
    x = X if linear else torch.arange(6) % 5
    _refused(Outside(how, layer), "layer.weight: .*used outside its",
             lambda model: model(x).square().sum(1).mean().backward())


def test_a_shared_weight_with_a_gradient_from_outside():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x)) + functional.linear(x, self.layer.weight)

    _refused(Model(), "layer.weight: its samples' gradients don't add up to its own")


def test_positions_without_a_batch():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.position = nn.Embedding(9, 4), nn.Embedding(3, 4)

        def forward(self, ids):
            return self.token(ids) + self.position(torch.arange(3))

    _refused(Model(), "position has first dimension 3, and the model's input 6",
             lambda model: model(torch.ones(6, 3, dtype=torch.int64)).square().mean().backward())


def test_a_layer_that_gets_samples_and_tokens_as_one_dimension():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            return self.layer(x.flatten(0, 1))

    _refused(Model(), "layer has first dimension 12, and the model's input 6",
             lambda model: model(X[:, None].expand(-1, 2, -1)).square().mean().backward())


@pytest.mark.parametrize("make, shape, words", [
    (lambda: nn.LSTM(4, 3), (3, 6, 4), "samples' gradients don't add up|can't be measured"),
    (lambda: nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2)).eval(), (6, 2, 4), None),
    (lambda: nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True), (6, 3, 4), "torch.func can't"),
    (lambda: nn.InstanceNorm1d(2, affine=True, track_running_stats=True), (6, 2, 4), "torch.func can't"),
], ids=["sequence first", "batch norm in eval", "dropout inside", "running statistics"])
def test_what_torch_func_cannot_take_apart(make, shape, words):
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)

    def backward(model):
        y = model(x, x, x) if isinstance(model, nn.MultiheadAttention) else model(x)
        (y[0] if isinstance(y, tuple) else y).square().sum().backward()

    if words:
        _refused(model, words, backward)
    else:
        with NoiseMeter(model, reduction="sum"):
            backward(model)


def test_gradients_survive_a_refused_reading():
    model = _model()
    plain = copy.deepcopy(model)
    _loss(plain, X[:1]).backward()
    _refused(model, "two samples", lambda model: _loss(model, X[:1]).backward())
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad)
