"""The share of the ceiling that a variant can reach at most on each GPU of the
datasheets, from what its compiled code did in emulation.
"""

from __future__ import annotations

from collections.abc import Sequence

from batchline.bench.stats.datasheets import DATASHEETS, Datasheet
from batchline.bench.stats.prediction import CountedCall, Prediction, predict


def predictions(
    calls: Sequence[CountedCall], dtype: str, device_name: str | None = None
) -> list[Prediction]:
    """One for each GPU that the calls say something about; for `device_name`'s alone,
    where the name is of one in the datasheets ("NVIDIA H200" is).
    """
    own = [chip for chip in DATASHEETS if device_name and chip.name in device_name]
    made = []
    for chip in own or DATASHEETS:
        call = _call_for(chip, calls)
        if call and has_ceiling(dtype, chip):
            made.append(predict(call, dtype, chip))
    return made


def has_ceiling(dtype: str, chip: Datasheet) -> bool:
    """Whether the chip has a ceiling in the dtype: an A100 has none in fp8."""
    return dtype != "float8_e4m3fn" or "e4m3" in chip.matrix_flops_per_s


def _call_for(chip: Datasheet, calls: Sequence[CountedCall]) -> CountedCall | None:
    """The call in the chip's own code; or in that of the newest older architecture, if it
    has no product of matrices: those have other instructions on each.
    """
    older = [one for one in calls if one.architecture <= chip.architecture]
    newest = max(older, key=lambda one: one.architecture, default=None)
    if newest is None or newest.architecture == chip.architecture:
        return newest
    has_products = any(launch.matrix_flops for launch in newest.launches)
    return None if has_products else newest


def format_predictions(made: Sequence[Prediction]) -> str:
    """ "at most 96% on H200 (memory), 94% on H100 (L2)"; "" where there is none."""
    told = [f"{one.share:.0%} on {one.chip} ({one.bound_by})" for one in made]
    return f"at most {', '.join(told)}" if told else ""
