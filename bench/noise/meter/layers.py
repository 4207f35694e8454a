"""How each kind of module is measured: what stands in for its forward in a metered step.

- A linear layer's backward pass takes the weight's gradient from the statistics: B·ḡ,
  which has been paid for.
- Normalisations and embeddings run as they are, and autograd makes their gradients as
  always. Their inputs and output gradients are seen on the way: the samples' own
  gradients are a sum over tokens, or rows of a table.
- Any other module with parameters: its call is run again for each sample, by
  torch.func, and differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from batchline.bench.errors import UsageError
from batchline.bench.noise.meter.step import (
    Product,
    Rows,
    Step,
    of_layer,
    of_one_token,
    of_rows,
    takes_one_token,
    written_out,
)
from batchline.kernels.op import Tensors
from batchline.kernels.statistics import accumulator


def linear(layer: str, module: nn.Linear, forward: Callable, step: Step) -> Callable:
    """The forward of x[B,…,I] → y[B,…,O] that reports to `step`; autocast as F.linear
    has it.
    """
    weight = module.weight
    bias = module.bias
    trained = [
        parameter
        for parameter in (weight, bias)
        if parameter is not None and parameter.requires_grad
    ]

    def call(input: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return forward(input)
        step.calls(layer, input if input.dim() > 1 else input[None], trained)
        device = input.device.type
        if torch.is_autocast_enabled(device) and input.dtype != torch.float64:
            input = input.to(torch.get_autocast_dtype(device))
        return _Linear.apply(input, weight, bias, step)

    return call


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b. Where the pass is itself differentiated, its gradients are
    autograd's own.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, step):
        ctx.step, ctx.parameters = step, (
            weight,
            bias,
        )  # a checkpoint's saved weight is another tensor
        ctx.save_for_backward(x, weight)
        return functional.linear(
            x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        )

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        step = ctx.step
        parameter, bias = ctx.parameters
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        d_weight = d_bias = None
        d_x = torch.matmul(dy, weight.to(dy.dtype)) if needs_x else None
        listening = step.backpropagates()
        alone = listening and not torch.is_grad_enabled()
        if (
            alone
            and dy.dim() == 2
            and needs_weight
            and needs_bias
            and takes_one_token(dy)
            and step.once(parameter)
            and step.once(bias)
        ):
            of_weight, of_bias = of_one_token(x, dy)
            return (
                d_x,
                step.replaces(parameter, *of_weight),
                step.replaces(bias, *of_bias),
                None,
            )
        if needs_weight:
            tokens = _tokens(x)
            d_tokens = _tokens(dy)
            if alone and step.once(parameter):
                mean, n, d = of_layer(tokens, d_tokens)
                d_weight = step.replaces(parameter, mean.mul_(step.batch), n, d)
            else:
                d_weight = torch.matmul(
                    d_tokens.flatten(0, 1).T, tokens.flatten(0, 1)
                ).to(weight.dtype)
                if listening:
                    step.adds(parameter, Product(tokens.detach(), d_tokens.detach()))
        if needs_bias:
            rows = (
                dy if dy.dim() == 2 else _tokens(dy).sum(1, dtype=accumulator(dy.dtype))
            )
            if alone and step.once(bias):
                mean, n, d = of_rows(rows)
                d_bias = step.replaces(bias, mean.mul_(step.batch), n, d)
            else:
                d_bias = rows.sum(0, dtype=accumulator(dy.dtype)).to(weight.dtype)
                if listening:
                    step.adds(bias, Rows(rows.detach()))
        return d_x, d_weight, d_bias, None


def project(
    x: torch.Tensor, weight: nn.Parameter, bias: nn.Parameter | None, step: Step
) -> torch.Tensor:
    """x[B,…,I] Wᵀ + b, for a layer that has told `step` of its call."""
    return _Linear.apply(x, weight, bias, step)


def _tokens(x: torch.Tensor) -> torch.Tensor:
    """[B,…,I] as [B,T,I]; [I] is one sample."""
    if x.dim() == 2:
        return x.unsqueeze(1)
    return x.flatten(1, -2) if x.dim() > 1 else x.view(1, 1, -1)


def normalisation(
    layer: str, module: nn.LayerNorm | nn.RMSNorm, forward: Callable, step: Step
) -> Callable:
    """The forward of x[B,…,*shape] that reports Σ_t dy∘x̂ for the weight and Σ_t dy for
    the bias, of each sample.
    """
    weight = module.weight
    bias = getattr(module, "bias", None)
    trained = [
        parameter
        for parameter in (weight, bias)
        if parameter is not None and parameter.requires_grad
    ]
    features = len(module.normalized_shape)
    normalised = (
        functional.rms_norm if isinstance(module, nn.RMSNorm) else functional.layer_norm
    )

    def call(input: torch.Tensor) -> torch.Tensor:
        y = forward(input)
        if not y.requires_grad:
            return y
        step.calls(layer, input if input.dim() > features else input[None], trained)
        x = input.detach()

        def backward(dy: torch.Tensor) -> None:
            if not step.backpropagates():
                return
            dy = dy.detach().to(wide := accumulator(dy.dtype))
            if weight is not None and weight.requires_grad:
                x_hat = normalised(x.to(wide), module.normalized_shape, eps=module.eps)
                step.adds(weight, Rows(_over_tokens(dy * x_hat, features)))
            if bias is not None and bias.requires_grad:
                step.adds(bias, Rows(_over_tokens(dy, features)))

        y.register_hook(backward)
        return y

    return call


def _over_tokens(g: torch.Tensor, features: int) -> torch.Tensor:
    """[B,…,*shape] summed over all between → [B,P]."""
    g = g.flatten(-features)
    return g if g.dim() == 2 else g.flatten(1, -2).sum(1)


def embedding(
    layer: str, module: nn.Embedding, forward: Callable, step: Step
) -> Callable:
    """The forward of ids[B,…] → y[B,…,D] that reports the rows of the table that each
    sample adds to.
    """
    weight = module.weight

    def call(input: torch.Tensor) -> torch.Tensor:
        y = forward(input)
        if not y.requires_grad:
            return y
        step.calls(layer, input, (weight,))
        ids = input.detach().view(len(input), -1) if input.dim() else input[None, None]

        def backward(dy: torch.Tensor) -> None:
            if not step.backpropagates():
                return
            dy = dy.detach().reshape(*ids.shape, -1)
            if module.padding_idx is not None:
                dy = dy.masked_fill((ids == module.padding_idx)[..., None], 0)
            step.adds(weight, Lookup(ids, dy, module.num_embeddings))

        y.register_hook(backward)
        return y

    return call


@dataclass(frozen=True)
class Lookup:
    """An embedding's table[V,D]: sample b adds dy[b,t] to row ids[b,t], for ids[B,T]
    and dy[B,T,D].
    """

    ids: torch.Tensor
    dy: torch.Tensor
    vocabulary: int

    @property
    def dtype(self) -> torch.dtype:
        return self.dy.dtype

    def gradients(self, samples: slice) -> torch.Tensor:
        ids = self.ids[samples]
        dy = self.dy[samples].to(accumulator(self.dtype))
        keys = (
            ids + self.vocabulary * torch.arange(len(ids), device=ids.device)[:, None]
        )
        return _rows(dy.flatten(0, 1), keys.flatten(), self.vocabulary * len(ids)).view(
            len(ids), -1
        )

    def statistics(self) -> Tensors:
        """Rows of equal (sample, id) summed before they are squared: O(B·T·D), without
        a table per sample and without atomics.
        """
        batch, tokens = self.ids.shape
        dy = self.dy.to(accumulator(self.dtype))
        mean = _rows(dy.flatten(0, 1), self.ids.flatten(), self.vocabulary).div_(batch)
        d = (dy * mean[self.ids]).sum((1, 2))
        ids, order = self.ids.sort(1)
        first = torch.ones_like(ids, dtype=torch.bool)
        torch.ne(ids[:, 1:], ids[:, :-1], out=first[:, 1:])
        groups = first.flatten().cumsum(0) - 1
        ordered = dy.gather(1, order[..., None].expand_as(dy)).flatten(0, 1)
        squares = _rows(ordered, groups, batch * tokens).square().sum(1)
        return mean, (squares[groups].view(batch, tokens) * first).sum(1), d


def _rows(source: torch.Tensor, ids: torch.Tensor, rows: int) -> torch.Tensor:
    """[N,D] → [rows,D]: the rows of equal id summed, in one order from run to run."""
    return torch.ops.aten.embedding_dense_backward(source, ids, rows, -1, False)


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
        self.layer = layer
        self.module = module
        self.parameters = parameters
        self.step = step
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
                leaves = pytree.tree_leaves(
                    torch.func.functional_call(self.module, own, args, kwargs)
                )
                return [leaves[number] for number in outputs]

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
