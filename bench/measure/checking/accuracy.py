"""One output against its fp64 reference: element by element, and in root mean square
against what rounding makes.

What an output must be, whatever its values: a plain tensor that is done, in memory
that holds nothing else.

A subclass of Tensor, a lazy sign or a tensor whose memory is not there has left work
for later, when no clock runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from batchline.bench.statuses import WRONG, NotMeasured
from batchline.kernels.op import Tensors
from batchline.kernels.rounding import Typical


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


_BLOCKS = {"cpu": 2**17, "cuda": 2**24}  # elements at a time
LEAST_JUDGED = (
    32  # elements: of fewer, one that is off by chance makes a root mean square
)


@dataclass(frozen=True)
class Demand:
    """What an output must be: its values in fp64, how far off each may be, and what is
    typical (None: not asked).

    `regrouped`: where the values are infinite, NaN is right too. `may_be_nan`: and
    where this is true.
    """

    values: torch.Tensor
    tolerance: torch.Tensor
    typical: Typical | None
    regrouped: bool
    may_be_nan: torch.Tensor | None = None


@dataclass(frozen=True)
class Judged:
    """A right output: the norms of its error and of its reference, the worst element's
    share of the tolerance, and the root mean square of the errors' shares of what is
    typical (None where it is not judged).
    """

    off: float
    norm: float
    of_tolerance: float
    of_typical: float | None


def judge(output: torch.Tensor, demand: Demand, where: str) -> Judged:
    """Judge the values of one output, of the right shape, dtype and device.

    Raises:
        NotMeasured: WRONG if one element is, or all of them are off by more than
        rounding typically makes of them.
    """
    judged = _judge_blocks(output, demand) or _judge_whole(output, demand, where)
    if judged.of_typical is not None and not judged.of_typical <= 1:
        raise NotMeasured(
            WRONG,
            f"{where}: its errors are {judged.of_typical:.3g} times what rounding typically makes "
            "of such sums, in root mean square: inside the worst case, and computed in fewer "
            "digits, or in one long running sum",
        )
    return judged


def _judge_blocks(output: torch.Tensor, demand: Demand) -> Judged | None:
    """By blocks that stay in a cache; None if there is an element that is not finite,
    or over its tolerance.
    """
    flat = [
        tensor.reshape(-1).split(_BLOCKS[output.device.type])
        for tensor in (output, demand.values, demand.tolerance)
    ]
    off = norm = share = of_typical = 0.0
    for values, reference, tolerance in zip(*flat):
        difference = _difference(values, reference)
        block_share = _worst_share(difference, tolerance)
        if not block_share <= 1:  # or NaN, as a reference that is not finite makes it
            return None
        share = max(share, block_share)
        off = math.hypot(off, float(torch.linalg.vector_norm(difference)))
        norm = math.hypot(norm, float(torch.linalg.vector_norm(reference)))
        if demand.typical:
            shares = _shares_of_typical(
                difference, reference, tolerance, demand.typical, output.dtype
            )
            of_typical = math.hypot(of_typical, float(torch.linalg.vector_norm(shares)))
    return Judged(
        off,
        norm,
        share,
        _root_mean_square(of_typical, output.numel()) if demand.typical else None,
    )


def _judge_whole(output: torch.Tensor, demand: Demand, where: str) -> Judged:
    """All at once, to say which element is wrong; of what is right the finite ones are
    judged.
    """
    reference, tolerance = demand.values, demand.tolerance
    difference = _difference(output, reference)
    wrong = _wrong(output, difference, demand)
    if wrong.any():
        raise NotMeasured(WRONG, f"{where}: {_describe(output, demand, wrong)}")
    finite = reference.isfinite() & ~output.isnan()
    difference, reference, tolerance = (
        difference[finite],
        reference[finite],
        tolerance[finite],
    )
    share = _worst_share(difference, tolerance) if len(difference) else 0.0
    off, norm = (
        float(torch.linalg.vector_norm(one)) for one in (difference, reference)
    )
    if not demand.typical:
        return Judged(off, norm, share, None)
    shares = _shares_of_typical(
        difference, reference, tolerance, demand.typical, output.dtype
    )
    return Judged(
        off,
        norm,
        share,
        _root_mean_square(float(torch.linalg.vector_norm(shares)), len(shares)),
    )


def _difference(output: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return (
        output.double() - reference
    ).abs_()  # a new tensor: double() of an fp64 output is the output


def _worst_share(difference: torch.Tensor, tolerance: torch.Tensor) -> float:
    return float((difference / tolerance).max()) if difference.numel() else 0.0


def _root_mean_square(norm: float, count: int) -> float | None:
    """Of so many numbers with this norm; None where they are too few to say something."""
    return norm / count**0.5 if count >= LEAST_JUDGED else None


def _shares_of_typical(
    difference: torch.Tensor,
    reference: torch.Tensor,
    tolerance: torch.Tensor,
    typical: Typical,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Each error's share of what is typical of it. What underflows is off by up to the
    smallest normal number.
    """
    scale = (
        reference.abs()
        .mul_(typical.of_value)
        .add_(tolerance, alpha=typical.of_tolerance)
    )
    scale.add_(torch.finfo(dtype).smallest_normal)
    return torch.div(difference, scale, out=scale)


def _wrong(
    output: torch.Tensor, difference: torch.Tensor, demand: Demand
) -> torch.Tensor:
    """Which elements are."""
    reference = demand.values
    right = torch.where(
        reference.isfinite(),
        difference <= demand.tolerance,
        output.double() == reference,
    )
    nan_is_right = ~reference.isfinite() if demand.regrouped else reference.isnan()
    if demand.may_be_nan is not None:
        nan_is_right = nan_is_right | demand.may_be_nan
    return ~(right | (output.isnan() & nan_is_right))


def _describe(output: torch.Tensor, demand: Demand, wrong: torch.Tensor) -> str:
    reference, count = demand.values, wrong.numel()
    unwritten = wrong & output.isnan()
    if unwritten.any():
        return f"{int(unwritten.sum())} of {count} elements are NaN, as if they were never written"
    lost = wrong & ~reference.isfinite()
    if lost.any():
        worst, said = int(lost.flatten().int().argmax()), ""
    else:
        excess = torch.where(
            wrong, (output.double() - reference).abs() / demand.tolerance, 0
        ).flatten()
        worst = int(excess.argmax())
        said = f", {float(excess[worst]):.3g} times the tolerance"
    place = tuple(
        int(index) for index in torch.unravel_index(torch.tensor(worst), output.shape)
    )
    return (
        f"{int(wrong.sum())} of {count} elements are wrong, the worst at {place}: "
        f"{float(output.flatten()[worst]):.6g} against {float(reference.flatten()[worst]):.6g}{said}"
    )
