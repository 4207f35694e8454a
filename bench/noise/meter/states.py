"""What a forward pass of a model leaves behind, put back: random states, buffers and
attributes; and a pass whose dropout does nothing.
"""

from __future__ import annotations

import contextlib
import random
from collections import OrderedDict, defaultdict, deque

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


class WithoutDropout(TorchFunctionMode):
    """Dropout does nothing inside, wherever torch.nn.functional has it; and of what is
    drawn otherwise on a device, all numbers of a tensor are the same, whatever its size.
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self._device = device
        self._drawings = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is functional.scaled_dot_product_attention:
            args = args[:4] + (0.0,) * (len(args) > 4) + args[5:]
            kwargs.pop("dropout_p", None)
        if func is functional.multi_head_attention_forward:
            kwargs["training"] = False
        if func in _DRAWN_0_OR_1 or func in _DRAWN:
            value = 1.0 if func in _DRAWN_0_OR_1 else self._next()
            with as_drawn(random_state(self._device), self._device), torch.no_grad():
                return func(*args, **kwargs).fill_(value)
        return func(*args, **kwargs)

    def _next(self) -> float:
        """Between 0 and 1, another one each time: some draw until a number will do."""
        self._drawings += 1
        return self._drawings * _GOLDEN % 1


_GOLDEN = (5**0.5 - 1) / 2
_DROPOUTS = frozenset(
    [
        functional.dropout,
        functional.dropout1d,
        functional.dropout2d,
        functional.dropout3d,
        functional.alpha_dropout,
        functional.feature_alpha_dropout,
        torch.dropout,
    ]
)
_DRAWN_0_OR_1 = frozenset(
    [torch.bernoulli, torch.Tensor.bernoulli, torch.Tensor.bernoulli_]
)
_DRAWN = frozenset(
    [
        torch.rand,
        torch.rand_like,
        torch.randn,
        torch.randn_like,
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
        torch.Tensor.exponential_,
    ]
)


# Not what is made of them: it may refuse to be changed.
_CONTAINERS = frozenset([dict, OrderedDict, defaultdict, list, set, deque])


@contextlib.contextmanager
def without_fast_path():
    """Transformer layers compute without gradients as they do with them: nn.Transformer's
    shorter way puts 0 where there is padding.
    """
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


def hide_graphs_from_hooks(model: nn.Module) -> None:
    """Inside `unchanged`: hooks on modules are given tensors without their graphs, for
    what they keep must have no gradient; and again as they are, by those that change one.
    """

    def detached(hook):
        def call(module, *given):
            alone = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, given)
            return None if hook(module, *alone) is None else hook(module, *given)

        return call

    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            hooks.update({key: detached(hook) for key, hook in hooks.items()})


@contextlib.contextmanager
def unchanged(model: nn.Module):
    """Whatever runs inside leaves random states, buffers and the modules' attributes as
    they were; yields a function that says whether random numbers were drawn so far.

    An attribute that is a list, a dict, a set or a deque holds what it held. What a
    module changes inside another object stays changed.
    """
    attributes = [
        (there, there.copy())
        for module in model.modules()
        for there in (module.__dict__, *module.__dict__.values())
        if type(there) in _CONTAINERS
    ]
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    device = next(model.parameters()).device
    devices = [] if device.type == "cpu" else [device]
    of_python = random.getstate()
    of_numpy = np.random.get_state()
    before = random_state(device)
    fork = torch.random.fork_rng(
        devices, device_type=device.type if devices else "cuda"
    )
    with torch.no_grad(), fork:
        try:
            yield lambda: (
                not same_state(before, random_state(device))
                or random.getstate() != of_python
                or not _same_of_numpy(of_numpy, np.random.get_state())
            )
        finally:
            for there, values in attributes:
                there.clear()
                put_in = there.update if hasattr(there, "update") else there.extend
                put_in(values)
            for buffer, version, values in buffers:
                if buffer._version != version:
                    buffer.copy_(values)
            random.setstate(of_python)
            np.random.set_state(of_numpy)


def _same_of_numpy(one: tuple, other: tuple) -> bool:
    """Of the numbers drawn by np.random: their keys, and the place among these."""
    return one[2:] == other[2:] and np.array_equal(one[1], other[1])


def random_state(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Of torch's generators that a module on this device draws from."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device.type).get_rng_state(device))
    return tuple(states)


def same_state(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other))


@contextlib.contextmanager
def as_drawn(states: tuple[torch.Tensor, ...], device: torch.device):
    """Draw again from these states of `random_state`; afterwards the generators are as
    they were.
    """
    devices = [] if device.type == "cpu" else [device]
    fork = torch.random.fork_rng(
        devices, device_type=device.type if devices else "cuda"
    )
    with fork:
        torch.set_rng_state(states[0])
        for state in states[1:]:
            torch.get_device_module(device.type).set_rng_state(state, device)
        yield
