"""Batch invariance: is a sample's result bitwise the same whatever batch it is in, and
in every call?

A kernel that splits its sums by the batch size, as libraries do to fill the chip, gives
a sample other last bits in another batch: then what a server answers depends on who
else asked (Horace He and Thinking Machines Lab, "Defeating Nondeterminism in LLM
Inference", 2025).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

from batchline.bench.measure import outcome
from batchline.bench.measure.check import as_tuple, same_bits
from batchline.kernels.op import Tensors, Variant

_RAISED = (Exception, SystemExit)
_SEED = 11
MOST_FLOPS = 2e8  # of a problem that is looked at: a call is milliseconds


def row(
    op: str, variant: str, scenario: str, dtype: str, batches: Sequence[int], **facts
) -> dict:
    """What every row has: the variant and problem; `rows` False where a sample's bits
    differ between batches, None where no output has a row for each sample (or one batch
    alone was looked at); `differs_at` the batches at which they differ from those in
    the largest; `repeats` whether all outputs are the same in every call; `digest` of
    the bits in the largest batch; `failed` what was raised, or None.
    """
    return {
        "op": op,
        "variant": variant,
        "scenario": scenario,
        "dtype": dtype,
        "batches": list(batches),
        "rows": None,
        "differs_at": [],
        "repeats": None,
        "digest": None,
        "failed": None,
        **facts,
    }


def found(
    variant: Variant,
    scenario: str,
    dtype: str,
    batches: Sequence[int],
    device: str,
    require_device: Callable[[BaseException], None] = lambda error: None,
) -> dict:
    """The row of a variant on a scenario: each smaller batch is the first samples of
    the largest.

    Args:
        batches: ascending.
        require_device: called with what the variant raised, to raise if the device is
        lost.
    """
    names = variant.op.name, variant.name
    try:
        return row(
            *names,
            scenario,
            dtype,
            batches,
            **_compared(variant, scenario, dtype, batches, device),
        )
    except _RAISED as error:
        require_device(error)
        return row(*names, scenario, dtype, batches, failed=outcome.one_line(error))


def _compared(
    variant: Variant, scenario: str, dtype: str, batches: Sequence[int], device: str
) -> dict:
    op, largest = variant.op, batches[-1]
    inputs = op.make_inputs(scenario, largest, dtype, device, _SEED)
    whole = as_tuple(variant(*inputs))
    facts = {
        "digest": _digest(whole),
        "repeats": all(
            same_bits(as_tuple(variant(*again)), whole)
            for again in (inputs, _elsewhere(inputs))
        ),
    }
    outputs = [number for number in op.rows if number < len(whole)]
    if not outputs or len(batches) < 2:
        return facts
    differs_at = []
    for batch in batches[:-1]:
        some = op.first_samples(batch, *inputs)
        if variant.why_unsupported(*some) is None:
            part = as_tuple(variant(*some))
            if not same_bits(
                [part[number] for number in outputs],
                [whole[number][:batch] for number in outputs],
            ):
                differs_at.append(batch)
    return facts | {"rows": not differs_at, "differs_at": differs_at}


def _elsewhere(inputs: Tensors) -> Tensors:
    """The same values, shapes and strides in other memory, as the next process has
    them.
    """
    return tuple(
        (
            torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
            ).copy_(tensor)
            if 0 not in tensor.stride()
            else tensor
        )
        for tensor in inputs
    )


def _digest(outputs: Tensors) -> str:
    digest = hashlib.sha256()
    for tensor in outputs:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
