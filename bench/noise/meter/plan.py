"""How each module of a model is measured, planned before a step. A model that can't be
measured rightly is refused here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from batchline.bench.errors import UsageError
from batchline.bench.noise.meter import kernel, layers
from batchline.bench.noise.meter.layers import replayed
from batchline.bench.noise.meter.step import Step

Metered = Callable[[str, nn.Module, Callable, Step], Callable]
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_MEASURED: Mapping[Callable, Metered] = {
    nn.Linear.forward: layers.linear,
    nn.LayerNorm.forward: layers.normalisation,
    nn.RMSNorm.forward: layers.normalisation,
    nn.Embedding.forward: layers.embedding,
}


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
    kernel.forget_choices()
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
    own_forward = "forward" in module.__dict__ or not isinstance(
        module._parameters.get("weight"), nn.Parameter
    )
    return None if own_forward else _MEASURED.get(type(module).forward)


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
