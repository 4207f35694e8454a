"""What an output must be, whatever its values: a plain tensor that is done, in memory
that holds nothing else.

A subclass of Tensor, a lazy sign or a tensor whose memory is not there has left work
for later, when no clock runs.
"""

from __future__ import annotations

import torch

from batchline.bench.statuses import WRONG, NotMeasured
from batchline.kernels.op import Tensors


def plain_outputs(returned, inputs: Tensors, count: int, where: str) -> Tensors:
    """The `count` tensors that a variant returned for `inputs`, each as a new tensor
    object on the same memory.

    So nothing that the variant has put on its objects, and no method of a tuple of its
    own, is asked afterwards.

    Raises:
        NotMeasured: WRONG if there are more or fewer, or one is no plain tensor.
    """
    outputs = (
        tuple(tuple.__iter__(returned)) if isinstance(returned, tuple) else (returned,)
    )
    if len(outputs) != count or not all(
        isinstance(output, torch.Tensor) for output in outputs
    ):
        raise NotMeasured(
            WRONG,
            f"{where}: it returned {type(returned).__name__}, not {count} tensor(s)",
        )
    for output in outputs:
        if why_not := _why_not_plain(output):
            raise NotMeasured(
                WRONG, f"{where}: the result is no plain tensor: {why_not}"
            )
        if output.requires_grad and not any(tensor.requires_grad for tensor in inputs):
            raise NotMeasured(
                WRONG, f"{where}: the result requires a gradient, and no input does"
            )
    return tuple(torch.Tensor.detach(output) for output in outputs)


def require_own_memory(outputs: Tensors, inputs: Tensors, where: str) -> None:
    """Raise unless each output's elements lie in memory that is theirs alone: no
    input's, no other output's.

    Outputs of one dtype may be windows of one larger buffer, as long as they don't
    overlap.

    Raises:
        NotMeasured: WRONG.
    """
    filled = [output for output in outputs if output.numel()]
    taken = [_memory(tensor) for tensor in inputs if tensor.numel()]
    for place, output in enumerate(filled):
        if any(_intersect(_memory(output), memory) for memory in taken):
            raise NotMeasured(WRONG, f"{where}: the result lies in an input's memory")
        if _overlaps_itself(output):
            raise NotMeasured(
                WRONG, f"{where}: several elements of the result lie in the same memory"
            )
        if any(_overlap(output, other) for other in filled[:place]):
            raise NotMeasured(WRONG, f"{where}: two results lie in the same memory")


def _why_not_plain(output: torch.Tensor) -> str | None:
    if type(output) is not torch.Tensor:
        return f"it is a {type(output).__name__}"
    if torch._C._functorch.is_functorch_wrapped_tensor(
        output
    ) or torch._is_functional_tensor(output):
        return "it stands for a tensor inside a transformation"
    if output.layout is not torch.strided:
        return f"its layout is {output.layout}"
    lazy = {
        "negative": output.is_neg(),
        "conjugate": output.is_conj(),
        "zero": output._is_zerotensor(),
    }
    for bit, is_set in lazy.items():
        if is_set:
            return f"its {bit} bit is set, and what that stands for is still to be computed"
    held = output.untyped_storage().nbytes()
    needed = (
        (output.storage_offset() + _extent(output)) * output.element_size()
        if output.numel()
        else 0
    )
    if held < needed and output.device.type != "meta":
        return f"its memory has {held} bytes, and its elements need {needed}"
    return None


def _extent(tensor: torch.Tensor) -> int:
    """From the first of its elements to the last, both counted, in elements of its
    memory; it has one at least.
    """
    return 1 + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())
    )


def _memory(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses of the whole memory that it lies in: the first, and the one behind
    the last.
    """
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses of its own first element, and behind its last."""
    return (
        tensor.data_ptr(),
        tensor.data_ptr() + _extent(tensor) * tensor.element_size(),
    )


def _intersect(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


def _overlaps_itself(tensor: torch.Tensor) -> bool:
    reach = 0  # of the dimensions so far, from the smallest stride up: a larger stride must step over all of it
    for stride, size in sorted(
        (stride, size)
        for size, stride in zip(tensor.shape, tensor.stride())
        if size > 1
    ):
        if stride <= reach:
            return len(_addresses(tensor).unique()) < tensor.numel()
        reach += (size - 1) * stride
    return False


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    return _intersect(_span(one), _span(other)) and bool(
        torch.isin(_addresses(one), _addresses(other)).any()
    )


def _addresses(tensor: torch.Tensor) -> torch.Tensor:
    """Where in memory each of its elements is."""
    places = (
        torch.arange(_extent(tensor))
        .as_strided(tensor.shape, tensor.stride())
        .flatten()
    )
    return tensor.data_ptr() + tensor.element_size() * places
