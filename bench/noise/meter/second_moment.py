"""What an adaptive optimizer divides each element of a gradient by: √v̂ + eps, as it is
before the step that a metered gradient is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from batchline.bench.errors import UsageError
from batchline.kernels.statistics import accumulator


def _of_adam(state: Mapping, group: Mapping) -> torch.Tensor:
    """√(v/(1 − β₂ᵗ)), v the largest so far of AMSGrad."""
    largest = group.get("amsgrad", False)
    v = state["max_exp_avg_sq" if largest else "exp_avg_sq"]
    v = v.to(accumulator(v.dtype))
    steps = torch.as_tensor(state["step"], dtype=torch.float64)
    return (v / (1 - group["betas"][1] ** steps)).sqrt()


def _of_rms_prop(state: Mapping, group: Mapping) -> torch.Tensor:
    """√v, or √(v − m²) where it is centred: its bias is not corrected."""
    v = state["square_avg"]
    v = v.to(accumulator(v.dtype))
    if group["centered"]:
        v = v - state["grad_avg"].to(v.dtype).square()
    return v.sqrt()


_KNOWN = (
    (torch.optim.Adam, _of_adam),  # AdamW is one of its classes
    (torch.optim.NAdam, _of_adam),
    (torch.optim.RMSprop, _of_rms_prop),
)


class Preconditioner:
    """1/(√v̂ + eps) of an optimizer's parameters.

    Raises:
        UsageError: of an optimizer that is none of Adam, AdamW, NAdam and RMSprop, or a
            wrapper of one (`.optimizer`).
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        inner = optimizer
        while not isinstance(inner, tuple(kind for kind, _ in _KNOWN)):
            inner = getattr(inner, "optimizer", None)
            if inner is None:
                raise UsageError(
                    f"optimizer= is one that divides by the root of a second moment: Adam, AdamW, NAdam or RMSprop of "
                    f"torch.optim, not {type(optimizer).__name__}"
                )
        self.optimizer: torch.optim.Optimizer = inner
        self._root = next(root for kind, root in _KNOWN if isinstance(inner, kind))
        self._groups = {
            parameter: group
            for group in inner.param_groups
            for parameter in group["params"]
        }

    @property
    def name(self) -> str:
        return type(self.optimizer).__name__

    def knows(self, parameter: nn.Parameter) -> bool:
        """Whether the optimizer updates it."""
        return parameter in self._groups

    def scale(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """[P], fp32 (fp64 of fp64); None of a parameter that is not the optimizer's, or
        that it has made no step with.
        """
        state = self.optimizer.state.get(parameter)
        if not state or parameter not in self._groups:
            return None
        group = self._groups[parameter]
        return (self._root(state, group) + group["eps"]).reciprocal_().flatten()

    def why_not(
        self, parameters: Iterable[nn.Parameter], names: Mapping[nn.Parameter, str]
    ) -> str | None:
        """Why the gradients of these parameters can't be preconditioned; None if they
        can.
        """
        own = [parameter for parameter in parameters if self.knows(parameter)]
        if not own:
            return f"{self.name} has none of the measured parameters"
        new = [one for one in own if not self.optimizer.state.get(one)]
        if new:
            return f"{self.name} has no second moment of {names[new[0]]} yet: it has one after its first step"
        return None
