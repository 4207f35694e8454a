"""One output against its fp64 reference: element by element, and in root mean square
against what rounding makes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from batchline.bench.statuses import WRONG, NotMeasured
from batchline.kernels.rounding import Typical

_BLOCKS = {"cpu": 2**17, "cuda": 2**24}  # elements at a time
LEAST_JUDGED = (
    32  # elements: of fewer, one that is off by chance makes a root mean square
)


@dataclass(frozen=True)
class Demand:
    """What an output must be: its values in fp64, how far off each may be, and what is
    typical (None: not asked).

    `regrouped`: where the values are infinite, NaN is right too.
    """

    values: torch.Tensor
    tolerance: torch.Tensor
    typical: Typical | None
    regrouped: bool


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
    finite = reference.isfinite()
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
