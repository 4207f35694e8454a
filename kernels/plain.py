"""Whether a kernel that reads memory by address would do what PyTorch does with these
tensors, here and now.

Both are lists of what is allowed: any other kind of tensor or mode goes to PyTorch.
"""

from __future__ import annotations

import functools

import torch
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

TYPES = (torch.Tensor, torch.nn.Parameter)
dispatch_modes = (
    torch._C._len_torch_dispatch_stack
)  # how many are on: FakeTensorMode, make_fx, counters of operations
function_modes = (
    torch._C._len_torch_function_stack
)  # how many are on: torch.device(…) and set_default_device too
any_autocast = torch._C._is_any_autocast_enabled


def why_watched() -> str | None:
    """Why PyTorch has to see every operation of this thread now, or None.

    A mode whose class has `ignores_kernels = True` gives up the operations that a
    kernel does instead.
    """
    if torch.jit.is_tracing():
        return "torch.jit is tracing"
    modes = *_get_current_dispatch_mode_stack(), *_get_current_function_mode_stack()
    if not all(getattr(mode, "ignores_kernels", False) for mode in modes):
        return "a mode of PyTorch's sees every operation"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is on"
    if any_autocast():
        return "autocast is on"
    return None


def why_not_plain(tensor: torch.Tensor) -> str | None:
    """Why the memory of a tensor on "cpu" or "cuda" does not hold its values as they
    are, or None.
    """
    if type(tensor) not in TYPES:
        return "a subclass of Tensor"
    keys = torch._C._dispatch_keys(tensor)
    if keys.raw_repr() not in _plain_keys(tensor.device.type):
        return f"its values are not what is in its memory ({keys})"
    if tensor.is_complex():
        return "complex numbers, which may be conjugated when they are read"
    if tensor.numel() and not tensor.untyped_storage().data_ptr():
        return "it has no memory"
    return None


@functools.cache
def _plain_keys(device: str) -> frozenset[int]:
    """The dispatch keys of an ordinary tensor, and of one that was made in inference
    mode.
    """
    made = []
    for inference in (False, True):
        with torch.inference_mode(inference):
            made.append(torch.empty(0, device=device))
    return frozenset(torch._C._dispatch_keys(tensor).raw_repr() for tensor in made)
