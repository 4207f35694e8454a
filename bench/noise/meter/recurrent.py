"""RNN, GRU and LSTM: torch's own forward, and a backward pass that goes back in time by
itself.

So it has the gradient of the gates at each time: dG[B,T,G·H], of which the weights'
gradients are products over time with what went in, as those of a linear layer. In the
gates' formulas (those of torch.nn.LSTM and GRU) all but the gradient of the state is
known for all times at once, so a step back is few operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from batchline.bench.noise.meter.gradients import (
    returned,
    returned_bias,
    tell_call,
    trained,
)
from batchline.bench.noise.meter.layers import replayed
from batchline.bench.noise.meter.step import Product, Step

_WIDE = (torch.float32, torch.float64)


def is_supported(module: nn.RNNBase) -> bool:
    """Whether its weights are parameters of its own, and its state is not projected."""
    return not module.proj_size and all(
        isinstance(module._parameters.get(name), nn.Parameter)
        and module._parameters[name].dtype in _WIDE
        for name in module._flat_weights_names
    )


class Weights(NamedTuple):
    """Of one layer in one direction: w_ih[G·H, I], w_hh[G·H, H] and their biases."""

    of_input: nn.Parameter
    of_state: nn.Parameter
    input_bias: nn.Parameter | None
    state_bias: nn.Parameter | None


def recurrent(
    layer: str, module: nn.RNNBase, forward: Callable, step: Step
) -> Callable:
    """The forward of x[B,T,I] (or [T,B,I], as the module has it) that reports to
    `step`.
    """
    parameters = {key: one for key, one in module._parameters.items()}
    own = trained(parameters.values())
    named = {key: one for key, one in parameters.items() if one.requires_grad}
    replay = replayed(layer, module, forward, step, named)

    def call(input, hx=None):
        if not torch.is_grad_enabled():
            return forward(input, hx)
        if not _is_plain(input):
            return replay(input, hx)
        tell_call(step, layer, input, own, 0 if module.batch_first else 1)
        x = input if module.batch_first else input.transpose(0, 1)
        states = _initial(module, x, hx)
        y, last = _through_layers(module, x, states, step)
        if not module.batch_first:
            y = y.transpose(0, 1)
        return y, (last if isinstance(module, nn.LSTM) else last[0])

    return call


def _is_plain(input) -> bool:
    """Whether all samples of a batch are as long, and products are in its own dtype."""
    return (
        isinstance(input, torch.Tensor)
        and input.dim() == 3
        and input.dtype in _WIDE
        and not torch.is_autocast_enabled(input.device.type)
    )


def _initial(module: nn.RNNBase, x: torch.Tensor, hx) -> tuple[torch.Tensor, ...]:
    """The states before the first time, each [layers·directions, B, H]: one, of an LSTM
    two.
    """
    count = 2 if isinstance(module, nn.LSTM) else 1
    if hx is not None:
        return tuple(hx) if count == 2 else (hx,)
    layers = module.num_layers * (2 if module.bidirectional else 1)
    return (x.new_zeros(layers, len(x), module.hidden_size),) * count


def _through_layers(
    module: nn.RNNBase, x: torch.Tensor, states: tuple[torch.Tensor, ...], step: Step
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Output y[B,T,H·directions] and the last states."""
    last = []
    for number in range(module.num_layers):
        if number and module.dropout:
            x = functional.dropout(x, module.dropout, module.training)
        directions = []
        for suffix in ("", "_reverse") if module.bidirectional else ("",):
            weights = _weights(module, f"l{number}{suffix}")
            before = [state[len(last)] for state in states]
            towards = x.flip(1) if suffix else x
            y, *after = _Layer.apply(towards, *_padded(before), *weights, module, step)
            directions.append(y.flip(1) if suffix else y)
            last.append(after[: len(states)])
        x = torch.cat(directions, -1) if module.bidirectional else directions[0]
    return x, tuple(torch.stack(states) for states in zip(*last))


def _padded(states: list[torch.Tensor]) -> list[torch.Tensor | None]:
    return [*states, None][:2]


def _weights(module: nn.RNNBase, suffix: str) -> Weights:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return Weights(*(module._parameters.get(f"{name}_{suffix}") for name in names))


class _Layer(torch.autograd.Function):
    """One layer in one direction: x[B,T,I] and the state [B,H] before (of an LSTM also
    the cell) → y[B,T,H] and the state after.
    """

    @staticmethod
    def forward(ctx, x, state, cell, w_input, w_state, b_input, b_state, module, step):
        weights = Weights(w_input, w_state, b_input, b_state)
        ctx.step, ctx.module = step, module
        ctx.parameters = weights
        y, *last = _run(module, x, state, cell, weights)
        ctx.save_for_backward(x, y, state, cell, *weights)
        return y, *_padded(last)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y, d_state, d_cell):
        x, y, state, cell, *weights = ctx.saved_tensors
        weights = Weights(*weights)
        x, y, d_y = (one.transpose(0, 1) for one in (x, y, d_y))
        before = torch.cat([state[None], y[:-1]])
        gates = functional.linear(x, weights.of_input, weights.input_bias)
        from_state = functional.linear(before, weights.of_state, weights.state_bias)
        back = _BACK[type(ctx.module).forward]
        d_gates = back(
            Times(gates, from_state, before, y, cell),
            Gradients(d_y, d_state, d_cell),
            weights.of_state,
            ctx.module,
        )
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = torch.matmul(d_gates.of_input, weights.of_input).transpose(0, 1)
        inputs = x, before
        d_weights = _of_weights(ctx, inputs, d_gates)
        return d_x, d_gates.state, d_gates.cell, *d_weights, None, None


def _run(module: nn.RNNBase, x, state, cell, weights: Weights):
    """torch's own forward of one layer: y[B,T,H] and the last states [B,H]."""
    flat = [one for one in weights if one is not None]
    kind = (
        f"{module.mode.lower()}"
        if isinstance(module, nn.RNN)
        else type(module).__name__.lower()
    )
    states = state[None] if cell is None else (state[None], cell[None])
    function = getattr(torch, kind)
    y, *last = function(
        x, states, flat, module.bias, 1, 0.0, module.training, False, True
    )
    return y, *(one[0] for one in last)


def _of_weights(ctx, inputs, d_gates: Backward):
    """What the layer returns for w_ih, w_hh and their biases."""
    needed = ctx.needs_input_grad[3:7]
    both = d_gates.of_input, d_gates.of_state
    results = []
    for parameter, wanted, x, dg in zip(ctx.parameters[:2], needed[:2], inputs, both):
        use = Product(_samples_first(x), _samples_first(dg))
        results.append(
            returned(
                ctx.step,
                parameter,
                use,
                lambda x=x, dg=dg: dg.flatten(0, 1).T @ x.flatten(0, 1),
            )
            if wanted
            else None
        )
    for bias, wanted, dg in zip(ctx.parameters[2:], needed[2:], both):
        results.append(returned_bias(ctx.step, bias, dg.sum(0)) if wanted else None)
    return results


def _samples_first(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(0, 1).contiguous()


class Times(NamedTuple):
    """Of all times, [T,B,…]: what the gates have from the input and from the state
    before, that state, and the state. `cell` [B,H] is the one before the first time.
    """

    from_input: torch.Tensor
    from_state: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    cell: torch.Tensor | None


class Gradients(NamedTuple):
    """Of the states of all times [T,B,H], and once more of the last state and cell
    [B,H].
    """

    states: torch.Tensor
    last: torch.Tensor
    cell: torch.Tensor | None


class Backward(NamedTuple):
    """Gradients of what the gates have from the input and from the state, [T,B,G·H],
    and of the first state and cell.
    """

    of_input: torch.Tensor
    of_state: torch.Tensor
    state: torch.Tensor
    cell: torch.Tensor | None


def _back_in_rnn(times: Times, dy: Gradients, w_state, module) -> Backward:
    """h = tanh(a), or max(a, 0)."""
    slope = (
        1 - times.after.square()
        if module.nonlinearity == "tanh"
        else (times.after > 0).to(times.after.dtype)
    )
    dg = torch.empty_like(times.from_input)
    dh = dy.last
    for slope_t, dy_t, dg_t in _backwards(slope, dy.states, dg):
        torch.mul(dh + dy_t, slope_t, out=dg_t)
        dh = torch.mm(dg_t, w_state)
    return Backward(dg, dg, dh, None)


def _back_in_gru(times: Times, dy: Gradients, w_state, module) -> Backward:
    """r, z = σ(a); n = tanh(a_in + r·a_hn); h = (1 − z)·n + z·h_before."""
    reset, update, _ = (times.from_input + times.from_state).sigmoid_().chunk(3, -1)
    new_of_state = times.from_state.chunk(3, -1)[2]
    new = torch.addcmul(times.from_input.chunk(3, -1)[2], reset, new_of_state).tanh_()
    of_new = (1 - update) * (1 - new.square())
    of_reset = of_new * new_of_state * reset * (1 - reset)
    of_update = (times.before - new) * update * (1 - update)
    slopes = torch.stack([of_reset, of_update, of_new * reset], 2)
    dg = torch.empty_like(slopes)
    states = torch.empty_like(times.before)
    dh = dy.last
    for dy_t, slopes_t, update_t, state_t, dg_t in _backwards(
        dy.states, slopes, update, states, dg
    ):
        torch.add(dh, dy_t, out=state_t)
        torch.mul(state_t[:, None], slopes_t, out=dg_t)
        dh = torch.addmm(state_t * update_t, dg_t.flatten(1), w_state)
    of_state = dg.flatten(2)
    of_input = torch.cat(
        [of_state.chunk(3, -1)[0], of_state.chunk(3, -1)[1], states * of_new], -1
    )
    return Backward(of_input, of_state, dh, None)


def _back_in_lstm(times: Times, dy: Gradients, w_state, module) -> Backward:
    """i, f, o = σ(a); g = tanh(a); c = f·c_before + i·g; h = o·tanh(c)."""
    admit, keep, new, show = (times.from_input + times.from_state).chunk(4, -1)
    admit, keep, show = admit.sigmoid(), keep.sigmoid(), show.sigmoid()
    new = new.tanh()
    cells = torch.empty(
        len(new) + 1, *new.shape[1:], dtype=new.dtype, device=new.device
    )
    cells[0] = times.cell
    added = admit * new
    for added_t, keep_t, before, after in zip(added, keep, cells[:-1], cells[1:]):
        torch.addcmul(added_t, keep_t, before, out=after)
    shown = cells[1:].tanh()
    of_cell = show * (1 - shown.square())
    of_show = shown * show * (1 - show)
    slopes = torch.stack(
        [
            added * (1 - admit),
            cells[:-1] * keep * (1 - keep),
            admit * (1 - new.square()),
        ],
        2,
    )
    dg = slopes.new_empty(*new.shape[:2], 4, new.shape[2])
    dh, dc = dy.last, dy.cell
    for dy_t, of_cell_t, of_show_t, slopes_t, keep_t, dg_t in _backwards(
        dy.states, of_cell, of_show, slopes, keep, dg
    ):
        dh = dh + dy_t
        dc = torch.addcmul(dc, dh, of_cell_t)
        torch.mul(dc[:, None], slopes_t, out=dg_t[:, :3])
        torch.mul(dh, of_show_t, out=dg_t[:, 3])
        dh = torch.mm(dg_t.flatten(1), w_state)
        dc = dc * keep_t
    dg = dg.flatten(2)
    return Backward(dg, dg, dh, dc)


def _backwards(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Their parts at each time, from the last to the first."""
    return zip(*(reversed(tensor.unbind()) for tensor in tensors))


_BACK = {
    nn.RNN.forward: _back_in_rnn,
    nn.GRU.forward: _back_in_gru,
    nn.LSTM.forward: _back_in_lstm,
}
