"""Any other module with parameters: its call is run again for each sample, by
torch.func, and differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils import _pytree as pytree

from batchline.bench.errors import UsageError
from batchline.bench.noise.meter.contributions import written_out
from batchline.bench.noise.meter.step import Step
from batchline.kernels.op import Tensors


def replayed(
    layer: str,
    module: nn.Module,
    forward: Callable,
    step: Step,
    parameters: Mapping[str, nn.Parameter],
) -> Callable:
    """The forward that keeps its inputs and output gradients for when the step is over."""

    def call(*args, **kwargs):
        result = forward(*args, **kwargs)
        outputs = [
            leaf
            for leaf in pytree.tree_leaves(result)
            if isinstance(leaf, torch.Tensor) and leaf.requires_grad
        ]
        if outputs:
            replay = _Replay(layer, module, parameters, step, (args, kwargs))
            step.calls(layer, replay.first_input(), parameters.values())
            for number, leaf in enumerate(pytree.tree_leaves(result)):
                if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
                    leaf.register_hook(
                        lambda dy, number=number: replay.backward(number, dy)
                    )
        return result

    return call


class _Replay:
    """One call of a module: what went in, the gradients of what came out, and its
    samples' gradients from both.
    """

    def __init__(
        self,
        layer: str,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        step: Step,
        inputs,
    ):
        self.layer, self.module, self.parameters, self.step = (
            layer,
            module,
            parameters,
            step,
        )
        leaves, self.form = pytree.tree_flatten(inputs)
        self.leaves = [
            leaf.detach() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves
        ]
        self.versions = [
            leaf._version if isinstance(leaf, torch.Tensor) else 0 for leaf in leaves
        ]
        self.d_outputs: dict[int, torch.Tensor] = {}
        self.device = next(iter(parameters.values())).device.type
        self.autocast = torch.is_autocast_enabled(
            self.device
        ), torch.get_autocast_dtype(self.device)
        self.last: tuple[slice, Mapping[str, torch.Tensor]] | None = None

    def first_input(self) -> torch.Tensor:
        tensors = [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]
        if not tensors:
            raise UsageError(
                f"{self._name} is called without a tensor, so its samples can't be told apart: freeze its "
                "parameters, or give it the batch"
            )
        return tensors[0]

    def backward(self, output: int, dy: torch.Tensor) -> None:
        if not self.step.backpropagates():
            return
        if not self.d_outputs:
            for key, parameter in self.parameters.items():
                self.step.adds(parameter, Replayed(self, key))
        self.d_outputs[output] = dy.detach()

    @property
    def _name(self) -> str:
        return f"{self.layer} ({type(self.module).__name__})"

    def gradients(self, samples: slice) -> Mapping[str, torch.Tensor]:
        """Each parameter's [b, P]; the last samples asked for are remembered, for
        parameters are asked in turn.
        """
        if self.last is None or self.last[0] != samples:
            if self.versions != [
                leaf._version if isinstance(leaf, torch.Tensor) else 0
                for leaf in self.leaves
            ]:
                raise UsageError(
                    f"{self._name} can't be measured: its input was changed in place after its call"
                )
            try:
                with torch.enable_grad(), torch.autocast(
                    self.device, self.autocast[1], enabled=self.autocast[0]
                ):
                    self.last = samples, self._differentiated(samples)
            except (
                RuntimeError,
                ValueError,
                TypeError,
                IndexError,
            ) as error:  # whatever torch.func can't do
                why = str(error).strip().partition("\n")[0]
                raise UsageError(
                    f"{self._name} can't be measured: torch.func can't take its samples apart ({why}); "
                    "freeze its parameters, or measure without it"
                ) from error
        return self.last[1]

    def _differentiated(self, samples: slice) -> Mapping[str, torch.Tensor]:
        dims = [
            self._batch_dim(number, leaf) for number, leaf in enumerate(self.leaves)
        ]
        outputs = sorted(self.d_outputs)
        out_dims = [
            self._batch_dim(number, self.d_outputs[number]) for number in outputs
        ]
        if None in out_dims:
            raise ValueError(
                f"its output's first dimension is not the batch of {self.step.batch}"
            )
        own = {key: parameter.detach() for key, parameter in self.parameters.items()}

        def of_one(leaves, d_outputs):
            leaves = iter(leaves)
            whole = [
                leaf if dim is None else next(leaves).unsqueeze(dim)
                for leaf, dim in zip(self.leaves, dims)
            ]
            args, kwargs = pytree.tree_unflatten(whole, self.form)

            def forward(own):
                found = pytree.tree_leaves(
                    torch.func.functional_call(self.module, own, args, kwargs)
                )
                return [found[number] for number in outputs]

            _, pull = torch.func.vjp(forward, own)
            return pull([dy.unsqueeze(dim) for dy, dim in zip(d_outputs, out_dims)])[0]

        over_samples = (
            _one_by_one if isinstance(self.module, nn.RNNBase) else torch.func.vmap
        )
        gradients = over_samples(of_one)(
            [
                leaf.movedim(dim, 0)[samples]
                for leaf, dim in zip(self.leaves, dims)
                if dim is not None
            ],
            [
                self.d_outputs[number].movedim(dim, 0)[samples]
                for number, dim in zip(outputs, out_dims)
            ],
        )
        return {key: g.detach().flatten(1) for key, g in gradients.items()}

    def _batch_dim(self, number: int, leaf) -> int | None:
        """Where an input or output has its samples: 1 in the states of a recurrent net,
        else 0; None if in neither.
        """
        dim = 1 if isinstance(self.module, nn.RNNBase) and number else 0
        has_samples = (
            isinstance(leaf, torch.Tensor)
            and leaf.dim() > dim
            and leaf.shape[dim] == self.step.batch
        )
        return dim if has_samples else None


def _one_by_one(function: Callable) -> Callable:
    """As vmap over the first dimension, where that knows no rule for an operation:
    recurrent nets.
    """

    def mapped(*inputs):
        results = [
            function(*([tensor[b] for tensor in group] for group in inputs))
            for b in range(len(inputs[-1][0]))
        ]
        return {
            key: torch.stack([result[key] for result in results]) for key in results[0]
        }

    return mapped


@dataclass(frozen=True)
class Replayed:
    """One parameter's part of a replayed call."""

    replay: _Replay
    key: str

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.replay.d_outputs.values())).dtype

    def gradients(self, samples: slice) -> torch.Tensor:
        return self.replay.gradients(samples)[self.key]

    def statistics(self) -> Tensors:
        all_of_them = sum(
            parameter.numel() for parameter in self.replay.parameters.values()
        )
        return written_out(self.gradients, self.replay.step.batch, all_of_them)
