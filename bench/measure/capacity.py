"""The largest batch that fits: what a memory law predicts, tried out on the machine
without ever running away.
"""

from __future__ import annotations

import torch

from batchline.bench.measure import memory
from batchline.bench.stats.fits import MemoryLaw
from batchline.kernels.op import Tensors, Variant

MARGIN = (
    0.05  # a prediction is confirmed when it fits 5% below and does not fit 5% above
)


def confirm(
    variant: Variant,
    scenario: str,
    dtype: str,
    law: MemoryLaw,
    device: str,
    room_bytes: int | None = None,
) -> dict:
    """Call `variant` at 95% and at 105% of the largest batch that the law (inputs and
    peak together) predicts.

    The room is what this process may still allocate: an allocation beyond it fails as
    an error (on a CPU through the limit of bench.measure.memory), so nothing is swapped
    and nothing is killed. Inputs are allocated and never written: the system gives a
    page of them memory only when it is written to.

    Args:
        room_bytes: take so much as the room; by default all that there is.

    Returns:
        room_bytes, predicted (the batch) and fits: {"95%": True or False, "105%": ...};
        or why_not.
    """
    if variant.slow_start:
        return {"why_not": "what it compiles for each batch takes memory of its own"}
    memory.return_freed_memory()
    _fits(
        variant, scenario, dtype, 1, device
    )  # what it imports and compiles is not to be taken out of the room
    if room_bytes is not None and device == "cpu":
        memory.limit_to(room_bytes)
    room = memory.room(device)
    if room is None:
        return {"why_not": "this process's memory is not limited here"}
    predicted = law.largest_batch(room)
    if not predicted:
        return {
            "why_not": (
                "it does not grow" if predicted is None else "not even one sample fits"
            )
        }
    below, above = int(predicted * (1 - MARGIN)), int(predicted * (1 + MARGIN)) + 1
    return {
        "room_bytes": room,
        "predicted": predicted,
        "fits": {
            "95%": _fits(variant, scenario, dtype, below, device),
            "105%": _fits(variant, scenario, dtype, above, device),
        },
    }


def _fits(variant: Variant, scenario: str, dtype: str, batch: int, device: str) -> bool:
    try:
        variant(
            *_unwritten(variant.op.make_inputs(scenario, batch, dtype, "meta"), device)
        )
        if device == "cuda":
            torch.cuda.synchronize()
        return True
    except Exception as error:
        if not memory.is_out_of_memory(error):
            raise
        return False
    finally:
        memory.room(device)


def _unwritten(shapes: Tensors, device: str) -> Tensors:
    """Tensors of these shapes and strides whose memory is allocated and not written."""
    storages: dict[int, torch.UntypedStorage] = {}
    tensors = []
    for meta in shapes:
        key = meta.untyped_storage()._cdata
        if key not in storages:
            storages[key] = torch.UntypedStorage(
                meta.untyped_storage().nbytes(), device=device
            )
        tensors.append(
            torch.empty(0, dtype=meta.dtype, device=device).set_(
                storages[key], meta.storage_offset(), meta.shape, meta.stride()
            )
        )
    return tuple(tensors)


def storage_bytes(tensors: Tensors) -> int:
    """Bytes of the distinct storages behind the tensors: what holding them takes."""
    return sum(
        {
            tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
            for tensor in tensors
        }.values()
    )
