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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from batchline.bench.errors import UsageError
from batchline.bench.noise.meter.probe import UNTOLD, samples_first
from batchline.bench.noise.meter.states import as_drawn, random_state, same_state
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
        dim = step.locates(layer, input)
        step.calls(layer, _samples_first(input, dim, 1), trained, bool(dim))
        device = input.device.type
        if torch.is_autocast_enabled(device) and input.dtype != torch.float64:
            input = input.to(torch.get_autocast_dtype(device))
        return _Linear.apply(input, weight, bias, step, dim or 0)

    return call


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b. Where the pass is itself differentiated, its gradients are
    autograd's own.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, step, dim):
        ctx.step, ctx.dim = step, dim
        ctx.parameters = weight, bias  # a checkpoint's saved weight is another tensor
        ctx.save_for_backward(x, weight)
        return functional.linear(
            x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        )

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        step = ctx.step
        parameter, bias = ctx.parameters
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        d_weight = d_bias = None
        d_x = torch.matmul(dy, weight.to(dy.dtype)) if needs_x else None
        listening = step.backpropagates()
        alone = listening and not torch.is_grad_enabled()
        if (
            alone
            and dy.dim() == 2
            and not ctx.dim
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
                None,
            )
        if ctx.dim:
            x, dy = samples_first(x, ctx.dim), samples_first(dy, ctx.dim)
        if needs_weight:
            tokens = _tokens(x)
            d_tokens = _tokens(dy)
            if alone and step.once(parameter):
                mean, n, d = of_layer(tokens, d_tokens)
                d_weight = step.replaces(parameter, mean.mul_(step.batch), n, d)
            elif alone and step.once_beside_lookups(parameter):
                known = of_layer(tokens, d_tokens)
                d_weight = (known[0] * step.batch).to(weight.dtype)
                step.adds(parameter, Product(tokens, d_tokens, known))
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
        return d_x, d_weight, d_bias, None, None


def _samples_first(x: torch.Tensor, dim: int | None, features: int) -> torch.Tensor:
    """x[…,B,…] of a layer over its last dimensions, so many; x[*features] is one sample."""
    if dim:
        return samples_first(x, dim)
    return x if x.dim() > features else x[None]


def project(
    x: torch.Tensor,
    weight: nn.Parameter,
    bias: nn.Parameter | None,
    step: Step,
    dim: int = 0,
) -> torch.Tensor:
    """x[…,I] Wᵀ + b, for a layer that has told `step` of its call; the samples are in
    dimension `dim` of x.
    """
    return _Linear.apply(x, weight, bias, step, dim)


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
        dim = step.locates(layer, input)
        step.calls(layer, _samples_first(input, dim, features), trained, bool(dim))
        x = _samples_first(input.detach(), dim, 0)

        def backward(dy: torch.Tensor) -> None:
            if not step.backpropagates():
                return
            dy = _samples_first(dy.detach(), dim, 0).to(wide := accumulator(dy.dtype))
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
        dim = 0
        if torch.is_grad_enabled():
            dim = step.locates(layer, input)
            if dim is None:
                input = step.expanded(layer, input)
        y = forward(input)
        if not y.requires_grad:
            return y
        seen = _samples_first(input.detach(), dim, 0)
        step.calls(layer, seen, (weight,), moved=True)
        step.looks_up(weight)
        ids = seen.reshape(len(seen), -1) if seen.dim() else seen[None, None]

        def backward(dy: torch.Tensor) -> None:
            if not step.backpropagates():
                return
            dy = _samples_first(dy.detach(), dim, 0).reshape(*ids.shape, -1)
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
        batch = len(self.ids)
        dy = self.dy.to(accumulator(self.dtype))
        mean = _rows(dy.flatten(0, 1), self.ids.flatten(), self.vocabulary).div_(batch)
        return mean, self._norms(), self.along(mean)

    def along(self, direction: torch.Tensor) -> torch.Tensor:
        """[B]: each sample's table times direction[V,D]."""
        return (self.dy.to(direction.dtype) * direction[self.ids]).sum((1, 2))

    def scaled_norms(self, scale: torch.Tensor) -> torch.Tensor:
        """[B]: the squared norm of each sample's gradient times scale[V·D]."""
        return self._norms(scale.view(self.vocabulary, -1)).double()

    def _norms(self, scale: torch.Tensor | None = None) -> torch.Tensor:
        """[B]: each sample's ‖·‖² of its table, times scale[V,D]."""
        batch, tokens = self.ids.shape
        dy = self.dy.to(accumulator(self.dtype))
        ids, order = self.ids.sort(1)
        first = torch.ones_like(ids, dtype=torch.bool)
        torch.ne(ids[:, 1:], ids[:, :-1], out=first[:, 1:])
        groups = first.flatten().cumsum(0) - 1
        of_tokens = torch.empty_like(order).scatter_(1, order, groups.view_as(order))
        rows = _rows(dy.flatten(0, 1), of_tokens.flatten(), batch * tokens)
        if scale is None:
            squares = torch.linalg.vector_norm(rows, dim=1).square()[groups]
        else:
            squares = (rows[groups] * scale[ids.flatten()]).square().sum(1)
        return (squares.view(batch, tokens) * first).sum(1)

    def joined(self, others: Sequence[Lookup]) -> Lookup:
        """Their tokens after each other, as if they were one call's."""
        if not others:
            return self
        wide = accumulator(
            max((one.dtype for one in (self, *others)), key=lambda one: one.itemsize)
        )
        ids = torch.cat([one.ids for one in (self, *others)], 1)
        dy = torch.cat([one.dy.to(wide) for one in (self, *others)], 1)
        return Lookup(ids, dy, self.vocabulary)

    def beside(self, product: Product | None) -> Tensors:
        """{ḡ, n, d} of the table that is also an output layer's weight[V,D], with that
        layer's dY[B,S,V]: ‖L + P‖² = ‖L‖² + 2⟨L, P⟩ + ‖P‖², and ⟨L_b, P_b⟩ is
        Σ_st dY[b,s,id_t]·⟨x_s, dy_t⟩. No table is written for each sample.
        """
        mean, n, d = self.statistics()
        if product is None:
            return mean, n, d
        mean_p, n_p, d_p = product.statistics()
        wide = mean.dtype
        x, out, dy = product.x.to(wide), product.dy.to(wide), self.dy.to(wide)
        at_ids = self.ids[:, None].expand(-1, x.shape[1], -1)
        both = out.gather(2, at_ids) * torch.bmm(x, dy.mT)
        both = both.sum((1, 2), dtype=torch.float64)
        used = self.ids.unique()
        of_used = out.index_select(2, used)
        along_l = (of_used * torch.matmul(x, mean[used].T)).sum((1, 2))
        mean_p = mean_p.view_as(mean)
        along_p = self.along(mean_p)
        return mean + mean_p, n + 2 * both + n_p, d + along_l + along_p + d_p


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
    """The forward that keeps its inputs and output gradients for when the step is over.

    Raises:
        UsageError: if the parameters are sharded again by then.
    """
    if not step.keeps_parameters:
        raise UsageError(
            f"{layer} ({type(module).__name__}) is replayed by torch.func after the step, when its weights are "
            "sharded again: leave it out by layers=, or measure under DistributedDataParallel"
        )

    def call(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        replay = _Replay(layer, module, parameters, step, (args, kwargs))
        result = forward(*args, **kwargs)
        leaves, form = pytree.tree_flatten(result)
        if not any(map(_is_differentiable, leaves)):
            return result
        # an output may be made from another, or be an input: a view has only the
        # gradient from outside
        leaves = [
            leaf.view_as(leaf) if _is_differentiable(leaf) else leaf for leaf in leaves
        ]
        replay.is_called(leaves)
        for number, leaf in enumerate(leaves):
            if _is_differentiable(leaf):
                leaf.register_hook(
                    lambda dy, number=number: replay.backward(number, dy)
                )
        return pytree.tree_unflatten(leaves, form)

    return call


def _is_differentiable(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.requires_grad


class _Replay:
    """One call of a module: what went in, the gradients of what came out, and its
    samples' gradients from both.

    Made before the call: it keeps the state that the call begins with.
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
        leaves, self.form = pytree.tree_flatten(
            inputs, is_leaf=lambda leaf: isinstance(leaf, nn.utils.rnn.PackedSequence)
        )
        self.leaves = [
            leaf.detach() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves
        ]
        self.versions = _versions(self.leaves)
        self.d_outputs: dict[int, torch.Tensor] = {}
        self.device = next(iter(parameters.values())).device
        self.autocast = torch.is_autocast_enabled(
            self.device.type
        ), torch.get_autocast_dtype(self.device.type)
        self.buffers = {
            key: (buffer, buffer._version, buffer.clone() if module.training else None)
            for key, buffer in module.named_buffers()
        }
        self.random_state = random_state(self.device)
        self.is_random = False
        self.dims: tuple[list, list] = [], []
        self.last: tuple[object, Mapping[str, torch.Tensor]] | None = None

    def is_called(self, outputs: list) -> None:
        """Told the leaves of what came out: which is the dimension of samples in each,
        and whether random numbers were drawn.
        """
        first = self._first_input()
        dims = self.step.dims(
            self.layer,
            [leaf.shape for leaf in self.leaves if isinstance(leaf, torch.Tensor)],
            [leaf.shape for leaf in outputs if isinstance(leaf, torch.Tensor)],
        )
        self.dims = tuple(
            self._dims(leaves, seen)
            for leaves, seen in zip((self.leaves, outputs), dims)
        )
        self.is_random = not same_state(self.random_state, random_state(self.device))
        where = self.step.locates(self.layer, first)
        if any(
            dim is not None and dim < 0 and dim != where for dim in sum(self.dims, [])
        ):
            raise UsageError(
                f"{self._name} is given or gives samples and tokens as one dimension, whose order can't be seen: "
                "reshape to [batch, …], or leave it out by layers="
            )
        samples = (
            (samples_first(leaf, dim), True)
            for leaf, dim in zip(self.leaves, self.dims[0])
            if dim is not None
        )
        seen, moved = next(samples, (first, False))
        self.step.calls(self.layer, seen, self.parameters.values(), moved)

    def _first_input(self) -> torch.Tensor:
        if any(isinstance(leaf, nn.utils.rnn.PackedSequence) for leaf in self.leaves):
            raise UsageError(
                f"{self._name} is given a PackedSequence, which has no dimension of samples: give it the padded "
                "sequences (pad_packed_sequence), and leave the padding out of the loss"
            )
        tensors = [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]
        if not tensors:
            raise UsageError(
                f"{self._name} is called without a tensor, so its samples can't be told apart: freeze its "
                "parameters, or give it the batch"
            )
        return tensors[0]

    def _dims(self, leaves: list, seen: list | None) -> list[int | None]:
        """Of each leaf: as the probe saw it, else by its size."""
        tensors = iter(seen or ())
        dims = []
        for number, leaf in enumerate(leaves):
            dim = None
            if isinstance(leaf, torch.Tensor):
                dim = next(tensors, UNTOLD)
                dim = self._by_size(number, leaf) if dim == UNTOLD else dim
            dims.append(dim)
        return dims

    def _by_size(self, number: int, leaf: torch.Tensor) -> int | None:
        """1 in the states of a recurrent net, else 0; None if in neither."""
        dim = 1 if isinstance(self.module, nn.RNNBase) and number else 0
        batch = self.step.batch or len(self._first_input())
        return dim if leaf.dim() > dim and leaf.shape[dim] == batch else None

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

    def gradients(self, samples: slice | torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Each parameter's [b, P]; the last samples asked for are remembered, for
        parameters are asked in turn.
        """
        if self.last is None or not _same(self.last[0], samples):
            if self.versions != _versions(self.leaves):
                raise UsageError(
                    f"{self._name} can't be measured: its input was changed in place after its call"
                )
            with torch.enable_grad(), torch.autocast(
                self.device.type, self.autocast[1], enabled=self.autocast[0]
            ):
                self.last = samples, self._differentiated(samples)
        return self.last[1]

    def _differentiated(self, samples) -> Mapping[str, torch.Tensor]:
        """By vmap over samples run alone; where that can't be, the whole batch as it
        was run, once for each sample.
        """
        why = "it draws random numbers"
        if self.step.is_overruled:
            why = "values may depend on a sample's row"
        elif not self.is_random:
            try:
                return self._each_alone(samples)
            except Exception as error:  # whatever a module does
                why = str(error).strip().partition("\n")[0]
        try:
            return self._all_together(samples)
        except Exception as error:  # whatever a module does
            again = str(error).strip().partition("\n")[0]
            raise UsageError(
                f"{self._name} can't be measured: torch.func can't take its samples apart ({why}), and they "
                f"can't be told apart in the whole batch ({again}); freeze its parameters, or leave it out by "
                "layers="
            ) from error

    def _outputs(self) -> tuple[list[int], list[int]]:
        """The numbers of the outputs that have gradients, and where their samples are."""
        numbers = sorted(self.d_outputs)
        dims = [self.dims[1][number] for number in numbers]
        if None in dims:
            raise ValueError(
                f"its output's first dimension is not the batch of {self.step.batch}"
            )
        return numbers, dims

    def _state(self) -> dict[str, torch.Tensor]:
        """Its buffers as they were before the call, to be changed at will."""
        return {
            key: (
                before if buffer._version != version and before is not None else buffer
            )
            .detach()
            .clone()
            for key, (buffer, version, before) in self.buffers.items()
        }

    def _each_alone(self, samples) -> Mapping[str, torch.Tensor]:
        dims = self.dims[0]
        outputs, out_dims = self._outputs()
        own = {key: parameter.detach() for key, parameter in self.parameters.items()}
        state = self._state()

        def of_one(leaves, d_outputs):
            leaves = iter(leaves)
            whole = [
                leaf if dim is None else _of_one(next(leaves), dim)
                for leaf, dim in zip(self.leaves, dims)
            ]
            args, kwargs = pytree.tree_unflatten(whole, self.form)

            def forward(own):
                leaves = pytree.tree_leaves(
                    torch.func.functional_call(
                        self.module, state | own, args, kwargs, tie_weights=False
                    )
                )
                return [leaves[number] for number in outputs]

            _, pull = torch.func.vjp(forward, own)
            return pull([_of_one(dy, dim) for dy, dim in zip(d_outputs, out_dims)])[0]

        over_samples = (
            _one_by_one if isinstance(self.module, nn.RNNBase) else torch.func.vmap
        )
        gradients = over_samples(of_one)(
            [
                samples_first(leaf, dim)[samples]
                for leaf, dim in zip(self.leaves, dims)
                if dim is not None
            ],
            [
                samples_first(self.d_outputs[number], dim)[samples]
                for number, dim in zip(outputs, out_dims)
            ],
        )
        return {key: g.detach().reshape(len(g), -1) for key, g in gradients.items()}

    def _all_together(self, samples) -> Mapping[str, torch.Tensor]:
        """As the batch was run, with its random numbers, and one backward pass for each
        sample, of its own outputs.

        Raises:
            ValueError: if a sample's outputs depend on another's inputs.
        """
        outputs, out_dims = self._outputs()
        own = {
            key: parameter.detach().requires_grad_()
            for key, parameter in self.parameters.items()
        }
        leaves = [
            (
                leaf.detach().requires_grad_(leaf.is_floating_point())
                if isinstance(leaf, torch.Tensor) and dim is not None
                else leaf
            )
            for leaf, dim in zip(self.leaves, self.dims[0])
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self.form)
        with as_drawn(self.random_state, self.device):
            result = pytree.tree_leaves(
                torch.func.functional_call(
                    self.module, self._state() | own, args, kwargs, tie_weights=False
                )
            )
        results = [result[number] for number in outputs]
        inputs = [
            (leaf, dim)
            for leaf, dim in zip(leaves, self.dims[0])
            if _is_differentiable(leaf)
        ]
        numbers = (
            range(self.step.batch)[samples]
            if isinstance(samples, slice)
            else samples.tolist()
        )
        rows = []
        for sample in numbers:
            d_results = []
            for number, dim in zip(outputs, out_dims):
                dy = torch.zeros_like(self.d_outputs[number])
                given = self.d_outputs[number]
                samples_first(dy, dim)[sample].copy_(samples_first(given, dim)[sample])
                d_results.append(dy)
            wanted = [*own.values(), *(leaf for leaf, _ in inputs if not rows)]
            gradients = torch.autograd.grad(
                results, wanted, d_results, retain_graph=True, allow_unused=True
            )
            for (_, dim), d_input in zip(inputs, gradients[len(own) :]):
                _check_others(d_input, dim, sample)
            rows.append(gradients[: len(own)])
        return {
            key: torch.stack(
                [
                    (
                        torch.zeros_like(parameter).flatten()
                        if row[place] is None
                        else row[place].flatten()
                    )
                    for row in rows
                ]
            )
            for place, (key, parameter) in enumerate(own.items())
        }


def _check_others(d_input: torch.Tensor | None, dim: int, sample: int) -> None:
    if d_input is None:
        return
    rows = samples_first(d_input, dim)
    rows = rows.flatten(1) if rows.dim() > 1 else rows[:, None]
    others = torch.arange(len(rows), device=rows.device) != sample
    if rows[others].any():
        raise ValueError("a sample's output depends on other samples")


def _of_one(leaf: torch.Tensor, dim: int) -> torch.Tensor:
    """One sample's part of a batch, as a batch of one."""
    return leaf.unsqueeze(dim) if dim >= 0 else leaf


def _versions(leaves: list) -> list[int]:
    return [leaf._version if isinstance(leaf, torch.Tensor) else 0 for leaf in leaves]


def _same(one: slice | torch.Tensor, other: slice | torch.Tensor) -> bool:
    if isinstance(one, slice) and isinstance(other, slice):
        return one == other
    return one is other


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
