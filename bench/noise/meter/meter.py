"""NoiseMeter: a context around a training step's forward and backward pass.

How each module of a model is measured is planned before a step. A model that can't be
measured rightly is refused there. A step's reading has statistics by parameter, by
layer and of the whole model, and what follows from them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from batchline.bench.errors import UsageError
from batchline.bench.noise.meter import (
    attention,
    convolutions,
    foreign,
    layers,
    norms,
    recurrent,
)
from batchline.bench.noise.meter.layers import replayed
from batchline.bench.noise.meter.step import (
    ParameterStatistics,
    Step,
    autocast_off,
    forget_choices,
)
from batchline.bench.stats.noise_scale import (
    BatchStatistics,
    BatchTest,
    NoiseEstimate,
    inner_product_test,
    norm_test,
    orthogonality_test,
    within_batch,
)

TESTS = (norm_test, inner_product_test, orthogonality_test)
Metered = Callable[[str, nn.Module, Callable, Step], Callable]
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_MEASURED: Mapping[Callable, Metered] = {
    nn.Linear.forward: layers.linear,
    nn.LayerNorm.forward: layers.normalisation,
    nn.RMSNorm.forward: layers.normalisation,
    nn.Embedding.forward: layers.embedding,
    nn.Conv1d.forward: convolutions.convolution,
    nn.Conv2d.forward: convolutions.convolution,
    nn.Conv3d.forward: convolutions.convolution,
    nn.GroupNorm.forward: norms.by_channel,
    nn.InstanceNorm1d.forward: norms.by_channel,
    nn.BatchNorm1d.forward: norms.by_channel,
    nn.MultiheadAttention.forward: attention.attention,
    nn.RNN.forward: recurrent.recurrent,
    nn.GRU.forward: recurrent.recurrent,
    nn.LSTM.forward: recurrent.recurrent,
}
REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class Reading:
    """Of one batch, whose samples' gradients are those of their own losses: times B
    where the loss was their mean.

    `fallbacks`: layers that torch.func took apart, name → type. `frozen` and
    `without_gradient`: names of parameters that asked for no gradient, and that the
    loss does not depend on; both count as zeros.
    A loss scale multiplies gradients, so tr Σ and ‖G‖² have its square in them;
    B_simple and the tests do not.
    """

    batch: int
    parameters: Mapping[str, BatchStatistics]
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    without_gradient: tuple[str, ...] = ()

    @functools.cached_property
    def layers(self) -> dict[str, BatchStatistics]:
        """By module; a shared parameter is the first one's that has it."""
        by_layer: dict[str, BatchStatistics] = {}
        for name, statistics in self.parameters.items():
            layer = name.rpartition(".")[0] or "the model"
            by_layer[layer] = (
                by_layer[layer] + statistics if layer in by_layer else statistics
            )
        return by_layer

    @functools.cached_property
    def whole(self) -> BatchStatistics:
        """Of all parameters as one vector."""
        first, *others = self.parameters.values()
        return sum(others, first)

    def noise(
        self, layer: str | None = None, confidence: float = 0.95
    ) -> NoiseEstimate:
        """The noise scale of a layer, or of the whole model, with its interval."""
        return within_batch(self._of(layer), confidence)

    def tests(self, layer: str | None = None) -> tuple[BatchTest, ...]:
        """The norm, inner-product and orthogonality test of a layer, or of the whole
        model.
        """
        return tuple(test(self._of(layer)) for test in TESTS)

    def _of(self, layer: str | None) -> BatchStatistics:
        if layer is not None and layer not in self.layers:
            raise UsageError(
                f"no layer {layer!r} was measured: there are {', '.join(self.layers)}"
            )
        return self.whole if layer is None else self.layers[layer]

    def __str__(self) -> str:
        lines = [
            f"gradient noise of a batch of {self.batch}: B_simple {self.noise().text()}"
        ]
        lines += [f"  {test.name} test {test.value:.3g}" for test in self.tests()]
        lines += [
            f"  {layer}: B_simple {self.noise(layer).text()}" for layer in self.layers
        ]
        lines += [
            f"  {layer} ({kind}) went through torch.func"
            for layer, kind in self.fallbacks.items()
        ]
        for what, names in (
            ("frozen", self.frozen),
            ("without gradient", self.without_gradient),
        ):
            lines += [f"  {what}: {', '.join(names)}"] if names else []
        return "\n".join(lines)


def read(
    statistics: Mapping[str, ParameterStatistics], batch: int, factor: float, **named
) -> Reading:
    """The reading of a step: one transfer from the device.

    Args:
        statistics: of each parameter, what its samples contributed to the gradient.
        factor: the square of what a contribution times makes the sample's own gradient.

    Raises:
        UsageError: for a gradient that is NaN or infinite, a batch of one, or a ḡ that
        is not autograd's.
    """
    rows = torch.stack([_as_row(one) for one in statistics.values()]).cpu().numpy()
    parameters = {}
    for (name, one), row in zip(statistics.items(), rows):
        norm, gap = row[:2] / batch
        n = row[2 : 2 + batch]
        d = row[2 + batch :]
        try:
            parameters[name] = BatchStatistics(factor * norm**2, factor * n, factor * d)
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from error
        if one.gap is not None and gap > one.eps**0.5 * n.mean() ** 0.5:
            raise UsageError(
                f"{name}: its samples' gradients don't add up to its own (off by {gap / norm:.2g} of it): "
                "it is used outside its module's call, or the layer mixes samples or draws random numbers"
            )
    return Reading(batch, parameters, **named)


def _as_row(one: ParameterStatistics) -> torch.Tensor:
    """[2 + 2B] in fp64: the norm, the gap (the norm where there is none), n and d."""
    gap = one.norm if one.gap is None else one.gap
    norms = torch.stack([one.norm, gap]).double()
    return torch.cat([norms, one.squared_norms.double(), one.inner_products.double()])


@dataclass(frozen=True)
class Layer:
    """A module with trainable parameters of its own; `metered` is None where its call
    is replayed by torch.func.
    """

    name: str
    module: nn.Module
    parameters: Mapping[str, nn.Parameter]
    metered: Metered | None

    def forward_for(self, step: Step) -> Callable:
        """What stands in for the module's forward in a metered step."""
        if self.metered is None:
            return replayed(
                self.name, self.module, self.module.forward, step, self.parameters
            )
        return self.metered(self.name, self.module, self.module.forward, step)


@dataclass(frozen=True)
class Plan:
    """The layers to measure, every parameter's name (of a shared one the first), and
    those that are frozen.

    `modules` were in `state` when it was made.
    """

    layers: tuple[Layer, ...]
    names: Mapping[nn.Parameter, str]
    frozen: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    state: tuple

    def holds(self) -> bool:
        """Whether the modules are still in the state that was planned for: far cheaper
        than to plan anew each step.
        """
        return self.state == _state(self.modules)

    @property
    def device(self) -> str:
        return next(iter(self.names)).device.type

    @functools.cached_property
    def fallbacks(self) -> dict[str, str]:
        """Of the layers that torch.func takes apart, name → type."""
        return {
            layer.name: type(layer.module).__name__
            for layer in self.layers
            if layer.metered is None
        }


def plan(model: nn.Module) -> Plan:
    """How to measure the model as it is now.

    Raises:
        UsageError: if it has no trainable parameters, is compiled, or has a module
            whose samples' gradients aren't apart or can't be seen.
    """
    forget_choices()
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"a NoiseMeter measures a torch.nn.Module, not {type(model).__name__}"
        )
    layers = []
    whole = ()
    for name, module in model.named_modules():
        _refuse(name or "the model", module)
        if whole and module in whole:
            continue
        own = module._parameters
        if _uses_its_childrens(module):
            whole = set(module.modules())
            own = dict(module.named_parameters())
        trained = {
            key: parameter
            for key, parameter in own.items()
            if parameter is not None and parameter.requires_grad
        }
        if trained:
            layers.append(
                Layer(name or "the model", module, trained, _measured_as(module))
            )
    named = dict(model.named_parameters())
    if not named:
        raise UsageError(
            f"{type(model).__name__} has no parameters: there is no gradient to measure"
        )
    names = {
        parameter: name for name, parameter in named.items() if parameter.requires_grad
    }
    if not names:
        raise UsageError(
            f"all parameters of {type(model).__name__} are frozen: there is no gradient to measure"
        )
    odd = next(
        (name for parameter, name in names.items() if parameter.dtype not in _FLOATS),
        None,
    )
    if odd:
        raise UsageError(
            f"{odd} is {named[odd].dtype}: gradients are measured in float64, float32, bfloat16, float16"
        )
    frozen = tuple(
        name for name, parameter in named.items() if not parameter.requires_grad
    )
    modules = tuple(model.modules())
    return Plan(tuple(layers), names, frozen, modules, _state(modules))


def _state(modules: Iterable[nn.Module]) -> tuple:
    """Whatever a plan depends on."""
    return tuple(
        (
            module.training,
            "forward" in module.__dict__,
            module._compiled_call_impl,
            *map(id, module._modules.values()),
            *(
                (id(parameter), parameter is not None and parameter.requires_grad)
                for parameter in module._parameters.values()
            ),
        )
        for module in modules
    )


def _uses_its_childrens(module: nn.Module) -> bool:
    """Whether it reads its children's parameters without calling them."""
    return isinstance(module, nn.MultiheadAttention) or parametrize.is_parametrized(
        module
    )


def _measured_as(module: nn.Module) -> Metered | None:
    if "forward" in module.__dict__ or not _holds_its_weights(module):
        return None
    return _MEASURED.get(type(module).forward) or foreign.recognised(module)


def _holds_its_weights(module: nn.Module) -> bool:
    """Whether what its forward reads are parameters of its own."""
    if isinstance(module, nn.MultiheadAttention):
        return attention.is_supported(module)
    if isinstance(module, nn.RNNBase):
        return recurrent.is_supported(module)
    return isinstance(module._parameters.get("weight"), nn.Parameter)


def _refuse(name: str, module: nn.Module) -> None:
    kind = type(module).__name__
    if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
        raise UsageError(
            f"{name} is compiled by torch.compile, which does not see the meter: measure the model that "
            "it was made of (they share their parameters)"
        )
    if isinstance(module, (torch.jit.ScriptModule, nn.DataParallel)):
        raise UsageError(
            f"{name} is a {kind}, whose calls can't be seen: measure the model that it was made of"
        )
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
        module.training or not module.track_running_stats
    ):
        raise UsageError(
            f"{name} ({kind}) mixes the samples of a batch, so they have no gradients of their own: use "
            "LayerNorm or GroupNorm, or put it into eval()"
        )
    if isinstance(module, nn.Embedding) and (
        module.sparse or module.scale_grad_by_freq
    ):
        option = "sparse" if module.sparse else "scale_grad_by_freq"
        raise UsageError(
            f"{name} ({kind}) has {option}=True, whose gradient is not a sum over samples that the meter "
            "can take apart: build it without"
        )
    if any(
        nn.parameter.is_lazy(parameter) for parameter in module._parameters.values()
    ):
        raise UsageError(
            f"{name} ({kind}) has no sizes yet: run the model once before it is measured"
        )


class NoiseMeter:
    """Measures the gradient noise of a model's training steps.

        meter = NoiseMeter(model, reduction="mean")
        for x, y in loader:
            with meter:
                criterion(model(x), y).backward()
            print(meter.reading)

    Samples are dimension 0 of every layer's input, and must not mix. Linear layers,
    normalisations and embeddings go through Batchline's kernels (on a CPU, one token of
    a layer with a bias by the same closed form as its variant torch_rank_one); any
    other module with parameters through torch.func, and is named in `fallbacks`.
    Gradients arrive in .grad as without the meter, to rounding.

    Args:
        model: of float64, float32, bfloat16 or float16, on any device; autocast is
        followed.
        reduction: "mean" or "sum", how the loss puts its samples together. Both give
            the same .grad up to a factor, so it can't be seen from the gradients.

    Raises (here, or where the step shows it):
        UsageError: for whatever would make the answer wrong, in one line that says what
        to do.
    """

    def __init__(self, model: nn.Module, *, reduction: str | None = None):
        if reduction not in REDUCTIONS:
            raise UsageError(
                f'say how the loss puts its samples together, reduction="mean" or "sum": it was '
                f"{'not told' if reduction is None else repr(reduction)}, and gradients don't show it"
            )
        self._model = model
        self._mean = reduction == "mean"
        self._plan = plan(model)
        self._step: Step | None = None
        self._put_back: list[Callable[[], object]] = []
        self._reading: Reading | None = None
        self._unread = None
        self._seen = 0

    @property
    def fallbacks(self) -> Mapping[str, str]:
        """The layers that torch.func takes apart, as slow as that is: name → type."""
        return self._plan.fallbacks

    @property
    def reading(self) -> Reading:
        """Of the last metered step. On a GPU, the first look waits for it.

        Raises:
            UsageError: before the first step, for a batch of one, and for NaN or
            infinite gradients.
        """
        if self._unread:
            self._reading = self._unread()
            self._unread = None
        if self._reading is None:
            raise UsageError(
                "nothing was measured yet: run a forward and a backward pass inside `with meter`"
            )
        return self._reading

    def every(self, steps: int) -> contextlib.AbstractContextManager[bool]:
        """A context that measures the first of each so many steps and leaves the others
        alone; says which, by `as`.

        Raises:
            UsageError: if `steps` is not a whole number of 1 or more.
        """
        if not isinstance(steps, int) or steps < 1:
            raise UsageError(
                f"meter.every takes a whole number of steps, 1 or more, not {steps!r}"
            )
        self._seen += 1
        return self if (self._seen - 1) % steps == 0 else contextlib.nullcontext(False)

    def __enter__(self) -> bool:
        if self._step:
            raise UsageError(
                "the meter is measuring a step already: leave that `with` first"
            )
        self._reading = self._unread = None
        if not self._plan.holds():
            self._plan = plan(self._model)
        step = Step(self._plan.names)
        try:
            for parameter in self._plan.names:
                self._put_back.append(
                    parameter.register_hook(
                        functools.partial(step.receives, parameter)
                    ).remove
                )
            for layer in self._plan.layers:
                self._put_back.append(
                    _replace_forward(layer.module.__dict__, layer.forward_for(step))
                )
            self._put_back.append(
                _replace_forward(
                    self._model.__dict__, _report_batch(step, self._model.forward)
                )
            )
        except BaseException:
            self._restore()
            raise
        self._step = step
        return True

    def __exit__(self, kind, error, trace) -> None:
        step = self._step
        self._step = None
        self._restore()
        step.end()
        if kind is None:
            with torch.no_grad(), autocast_off(self._plan.device):
                statistics = step.finish()
            absent = tuple(
                name for name in self._plan.names.values() if name not in statistics
            )
            self._unread = functools.partial(
                read,
                statistics,
                step.batch,
                step.batch**2 if self._mean else 1,
                fallbacks=self._plan.fallbacks,
                frozen=self._plan.frozen,
                without_gradient=absent,
            )

    def _restore(self) -> None:
        while self._put_back:
            self._put_back.pop()()


def _report_batch(step: Step, forward: Callable) -> Callable:
    """The model's forward, which reports the batch of its input to the step: an inner
    layer's input may be folded, or have none.
    """

    def call(*args, **kwargs):
        if torch.is_grad_enabled():
            leaves = (
                args
                if args and isinstance(args[0], torch.Tensor)
                else pytree.tree_leaves((args, kwargs))
            )
            tensor = next(
                (leaf for leaf in leaves if isinstance(leaf, torch.Tensor)), None
            )
            if tensor is not None and tensor.dim():
                step.sees_batch("the model's input", len(tensor))
        return forward(*args, **kwargs)

    return call


def _replace_forward(
    attributes: dict[str, object], forward: Callable
) -> Callable[[], object]:
    """Put `forward` in the place of the forward of the module that has these
    attributes; returns what undoes it.
    """
    before = attributes.get("forward")
    attributes["forward"] = (
        forward  # past nn.Module's own bookkeeping, which takes longer than the rest of it
    )
    if before is None:
        return functools.partial(attributes.pop, "forward")
    return functools.partial(attributes.__setitem__, "forward", before)
