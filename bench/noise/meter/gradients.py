"""What a layer's backward pass does for each parameter: return its gradient to autograd,
and report what the samples contributed to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from batchline.bench.errors import UsageError
from batchline.bench.noise.meter.step import Contribution, Rows, Step
from batchline.kernels.statistics import accumulator


def trained(parameters: Iterable[nn.Parameter | None]) -> list[nn.Parameter]:
    """Those that are there and ask for a gradient."""
    return [
        parameter
        for parameter in parameters
        if parameter is not None and parameter.requires_grad
    ]


def as_autocast(x: torch.Tensor) -> torch.Tensor:
    """x in the dtype that autocast gives to a product with it."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device))
    return x


def tell_call(
    step: Step,
    layer: str,
    x: torch.Tensor,
    parameters: Iterable[nn.Parameter],
    dim: int,
) -> None:
    """Tell `step` of the call of a module that takes samples from dimension `dim` of x.

    Raises:
        UsageError: if they are in another one.
    """
    where = step.locates(layer, x)
    if step.located is not None and where != dim:
        if where == 0:
            raise UsageError(
                f"{layer} takes its samples from dimension {dim} of {list(x.shape)}, and is given them in "
                "dimension 0, so it mixes them: transpose before it, or build it with batch_first=True"
            )
        step.calls(layer, x, parameters)
    step.calls(layer, x.movedim(dim, 0), parameters, moved=True)


def returned(
    step: Step,
    parameter: nn.Parameter,
    use: Contribution,
    product: Callable[[], torch.Tensor],
) -> torch.Tensor:
    """The gradient that a call's backward pass returns to autograd, in the parameter's
    shape and dtype.

    It is B·ḡ of the use where the parameter has no other one in this step and the pass
    is not itself differentiated. Otherwise it is `product()`, and the use is kept until
    the step is over.
    """
    listening = step.backpropagates()
    if listening and not torch.is_grad_enabled() and step.once(parameter):
        mean, n, d = use.statistics()
        gradient = mean.reshape(parameter.shape).mul_(step.batch)
        return step.replaces(parameter, gradient, n, d)
    if listening:
        step.adds(parameter, use)
    return product().reshape(parameter.shape).to(parameter.dtype)


def returned_bias(step: Step, bias: nn.Parameter, rows: torch.Tensor) -> torch.Tensor:
    """As `returned`, for a bias whose samples' gradients are rows[B,P]."""
    return returned(
        step,
        bias,
        Rows(rows.detach()),
        lambda: rows.sum(0, dtype=accumulator(rows.dtype)),
    )
