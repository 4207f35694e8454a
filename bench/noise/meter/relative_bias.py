"""T5's relative position bias: a table whose rows an attention looks up for all samples at
once, and whose result later layers' attentions add too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from batchline.bench.noise.meter.layers import Lookup
from batchline.bench.noise.meter.step import Rows, Step
from batchline.kernels.statistics import accumulator

TABLE = "relative_attention_bias"
_QUERIES, _KEYS = 3, 5  # of a made-up bias


def is_relative_attention(module: nn.Module) -> bool:
    """Whether its `compute_bias` is that of transformers' T5 and of those made after it:
    bias[1,heads,q,k] = table[ids[q,k]], by what it makes of a made-up table.
    """
    table = module._modules.get(TABLE)
    if type(table) is not nn.Embedding or not hasattr(module, "compute_bias"):
        return False
    own = table._parameters["weight"]
    dtype = accumulator(own.dtype)
    numbers = torch.arange(own.numel(), device=own.device, dtype=dtype).view(own.shape)
    table._parameters["weight"] = nn.Parameter(numbers, requires_grad=False)
    try:
        ids, bias = _looked_up(module, module.compute_bias, _QUERIES, _KEYS)
    except Exception:  # whatever a stranger's method says to made-up sizes
        return False
    finally:
        table._parameters["weight"] = own
    return ids.dim() == 2 and torch.equal(bias, numbers[ids].permute(2, 0, 1)[None])


def _looked_up(
    module: nn.Module, compute_bias: Callable, *args, **kwargs
) -> tuple[torch.Tensor, torch.Tensor]:
    """ids[q,k] that the module's table is given, and bias[1,heads,q,k]."""
    given = []
    table = module._modules[TABLE]
    hook = table.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        bias = compute_bias(*args, **kwargs)
    finally:
        hook.remove()
    (ids,) = given
    return ids, bias


def relative_attention(
    layer: str, module: nn.Module, forward: Callable, step: Step
) -> Callable:
    """The forward of x[B,T,…] in which each sample has a bias of its own, of equal
    values: bias[B,heads,q,k], wherever it is added. The other layers in the module are
    measured as they are.
    """
    table = module._modules[TABLE]
    weight = table.weight
    compute_bias = module.compute_bias

    def of_each(*args, **kwargs) -> torch.Tensor:
        ids, bias = _looked_up(module, compute_bias, *args, **kwargs)
        if not bias.requires_grad:
            return bias
        bias = bias.expand(step.batch, *bias.shape[1:])

        def backward(dy: torch.Tensor) -> None:
            if not step.backpropagates():
                return
            # softmax's gradients of a query add up to 0: in fp32 rounding is what is left
            rows = dy.detach().double().permute(0, 2, 3, 1).flatten(1, 2)
            every = Lookup(ids.flatten().expand(len(dy), -1), rows, len(weight))
            step.adds(weight, Rows(every.gradients(slice(None))))

        bias.register_hook(backward)
        return bias

    def call(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        step.calls(layer, (*args, *kwargs.values())[0], [weight])
        module.compute_bias = of_each
        try:
            return forward(*args, **kwargs)
        finally:
            del module.compute_bias

    return call
