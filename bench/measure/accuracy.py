"""One output against its fp64 reference: element by element, and in root mean square against what rounding makes."""
from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.records import WRONG, NotMeasured
from kernels.rounding import Typical

LEAST_JUDGED = 32  # elements: of fewer, one that is off by chance makes a root mean square


@dataclass(frozen=True)
class Demand:
    """What an output must be: its values in fp64, how far off each may be, and what is typical (None: not asked).

    `regrouped`: where the values are infinite, NaN is right too.
    """

    values: torch.Tensor
    tolerance: torch.Tensor
    typical: Typical | None
    regrouped: bool


@dataclass(frozen=True)
class Judged:
    """A right output: the norms of its error and of its reference, the worst element's share of the tolerance, and the
    root mean square of the errors' shares of what is typical (None where it is not judged)."""

    off: float
    norm: float
    of_tolerance: float
    of_typical: float | None


def judge(output: torch.Tensor, demand: Demand, where: str) -> Judged:
    """Judge the values of one output, of the right shape, dtype and device.

    Raises:
        NotMeasured: WRONG if one element is, or all of them are off by more than rounding typically makes of them.
    """
    reference, tolerance = demand.values, demand.tolerance
    difference = (output.double() - reference).abs_()  # a new tensor: double() of an fp64 output is the output
    share = float((difference / tolerance).max()) if output.numel() else 0.0
    if not share <= 1:  # or NaN, as a reference that is not finite makes it
        wrong = _wrong(output, difference, demand)
        if wrong.any():
            raise NotMeasured(WRONG, f"{where}: {_describe(output, demand, wrong)}")
        finite = reference.isfinite()
        difference, reference, tolerance = difference[finite], reference[finite], tolerance[finite]
        share = float((difference / tolerance).max()) if len(difference) else 0.0
    of_typical = None
    if demand.typical and difference.numel() >= LEAST_JUDGED:
        of_typical = _share_of_typical(difference, reference, tolerance, demand.typical, output.dtype)
        if not of_typical <= 1:
            raise NotMeasured(WRONG, f"{where}: the errors of {difference.numel()} elements are {of_typical:.3g} times "
                                     "what rounding typically makes of such sums, in root mean square: inside the "
                                     "worst case, and computed in fewer digits, or in one long running sum")
    return Judged(float(torch.linalg.vector_norm(difference)), float(torch.linalg.vector_norm(reference)), share,
                  of_typical)


def _share_of_typical(difference: torch.Tensor, reference: torch.Tensor, tolerance: torch.Tensor, typical: Typical,
                      dtype: torch.dtype) -> float:
    """√mean((error / typical error)²). What underflows is off by up to the smallest normal number of the dtype."""
    scale = reference.abs().mul_(typical.of_value).add_(tolerance, alpha=typical.of_tolerance)
    scale.add_(torch.finfo(dtype).smallest_normal)
    shares = torch.div(difference, scale, out=scale)
    return float(torch.linalg.vector_norm(shares)) / shares.numel() ** 0.5


def _wrong(output: torch.Tensor, difference: torch.Tensor, demand: Demand) -> torch.Tensor:
    """Which elements are."""
    reference = demand.values
    right = torch.where(reference.isfinite(), difference <= demand.tolerance, output.double() == reference)
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
        excess = torch.where(wrong, (output.double() - reference).abs() / demand.tolerance, 0).flatten()
        worst = int(excess.argmax())
        said = f", {float(excess[worst]):.3g} times the tolerance"
    place = tuple(int(index) for index in torch.unravel_index(torch.tensor(worst), output.shape))
    return (f"{int(wrong.sum())} of {count} elements are wrong, the worst at {place}: "
            f"{float(output.flatten()[worst]):.6g} against {float(reference.flatten()[worst]):.6g}{said}")
