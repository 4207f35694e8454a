"""Is a variant right every time, and on sizes that its author can't have foreseen?
Beside its op's probes.

Batch invariance: is a sample's result bitwise the same whatever batch it is in, and
in every call?

A kernel that splits its sums by the batch size, as libraries do to fill the chip, gives
a sample other last bits in another batch: then what a server answers depends on who
else asked (Horace He and Thinking Machines Lab, "Defeating Nondeterminism in LLM
Inference", 2025).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from time import perf_counter as now_s

import torch

from batchline.bench import texts
from batchline.bench.measure import stand_in
from batchline.bench.measure.checking import check
from batchline.bench.measure.checking.check import SECRET, as_tuple, same_bits
from batchline.bench.statuses import WRONG, NotMeasured
from batchline.kernels.op import Op, Scenario, Tensors, Variant

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


def compare_batches(
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
        return row(*names, scenario, dtype, batches, failed=texts.error_line(error))


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


_MOST_CALLS, _LONGEST_S = 2500, 0.1
_MOST_KEPT, _MARK = (
    32,
    96.0,
)  # outputs, and what is written into them: a number that every dtype has
_NEAR = 7  # a size differs by so much at most
_MOST_BATCH = 5
_MOST_BYTES, _MOST_FLOPS = 2**20, 1e7
_DRAWS = 3  # of sizes, until the variant takes one


def require_same_bits(variant: Variant, dtype: str, device: str) -> None:
    """Call the variant up to 2,500 times, for 0.1 s at most, on its op's smallest probe
    that it takes.

    What the first calls returned is written over, and must stay so: it is the caller's.

    Raises:
        NotMeasured: WRONG if an output has other bits than the first, or a later call
            wrote into an earlier one's. What the variant raises passes through.
    """
    name, inputs = _smallest_probe(variant, dtype, device)
    if inputs is None:
        return
    first = tuple(output.clone() for output in check.as_tuple(variant(*inputs)))
    kept: list[Tensors] = []
    until_s = now_s() + _LONGEST_S
    for number in range(2, _MOST_CALLS + 1):
        outputs = check.as_tuple(variant(*inputs))
        if not check.same_bits(outputs, first):
            raise NotMeasured(
                WRONG,
                f"on {name}: call {number} differs from the first, on the same inputs",
            )
        if len(kept) < _MOST_KEPT:
            kept.append(outputs)
            for output in outputs:
                output.fill_(_MARK)
        if now_s() > until_s:
            break
    if not all((output == _MARK).all() for outputs in kept for output in outputs):
        raise NotMeasured(
            WRONG,
            f"on {name}: a later call wrote into what an earlier one had returned",
        )


def require_right_nearby(
    variant: Variant, scenario: str, dtype: str, device: str, seed: int | None = None
) -> None:
    """Check the variant on sizes drawn near a scenario's, made smaller where they are
    large; `seed` as in `sizes_near`.

    Raises:
        NotMeasured: WRONG, with the sizes. What the variant raises passes through.
    """
    op = variant.op
    for near, batch in sizes_near(variant, scenario, dtype, seed):
        inputs = op.inputs(
            near, batch, getattr(torch, dtype), device, SECRET.getrandbits(62)
        )
        if variant.why_unsupported(*inputs) is None:
            sizes = ", ".join(
                f"{name}={size}" for name, size in list(near.sizes.items())[:6]
            )
            check.checked_call(
                variant,
                inputs,
                check.expect(op, inputs),
                f"on {scenario} with {sizes} at B={batch}",
            )
            return


def sizes_near(
    variant: Variant, scenario: str, dtype: str, seed: int | None = None
) -> Iterator[tuple[Scenario, int]]:
    """Some scenarios of sizes near the scenario's and small enough, each with a batch;
    none for real data.

    The same ones for the same `seed`, so that what a compiler makes for them can be
    made before; without one, sizes that nobody can foresee.
    """
    draws = (
        SECRET
        if seed is None
        else random.Random(f"{seed} {variant.id} {scenario} {dtype}")
    )
    for near in _near(variant.op, variant.op.scenarios[scenario], draws):
        yield near, draws.randint(1, _MOST_BATCH)


def _smallest_probe(
    variant: Variant, dtype: str, device: str
) -> tuple[str, Tensors | None]:
    """The name and inputs of the probe with the fewest bytes of those that are not
    empty; ("", None) if it takes none.
    """
    sizes = {}
    for name, make_inputs in variant.op.probes.items():
        shapes = make_inputs(getattr(torch, dtype), "meta", 0)
        if (
            all(tensor.numel() for tensor in shapes)
            and variant.why_unsupported(*shapes) is None
        ):
            sizes[name] = variant.op.least_bytes(*shapes)
    if not sizes:
        return "", None
    name = min(sizes, key=sizes.__getitem__)
    return name, variant.op.probes[name](
        getattr(torch, dtype), device, SECRET.getrandbits(62)
    )


def _near(op: Op, scenario: Scenario, draws: random.Random) -> Iterator[Scenario]:
    """Some scenarios of sizes near the scenario's and small enough; none for real data,
    whose sizes are what they are.
    """
    if _is_real(scenario):
        return
    sizes = dict(scenario.sizes)
    while _is_large(op, replace(scenario, sizes=sizes)):
        largest = max(sizes, key=sizes.__getitem__)
        sizes[largest] = (sizes[largest] + 1) // 2
    for draw in range(_DRAWS):
        step = 16 if draw == 1 else 1  # some variants take multiples only
        yield replace(
            scenario,
            sizes={
                name: max(1, size - size % step + step * draws.randint(-_NEAR, _NEAR))
                for name, size in sizes.items()
            },
        )


def _is_real(scenario: Scenario) -> bool:
    return bool(getattr(scenario, "data", None) or getattr(scenario, "real", False))


def _is_large(op: Op, scenario: Scenario) -> bool:
    shapes = op.inputs(scenario, _MOST_BATCH, torch.float32, "meta", 0)
    most_flops = stand_in.MOST_FLOPS if stand_in.is_on() else _MOST_FLOPS
    return op.least_bytes(*shapes) > _MOST_BYTES or op.flops(*shapes) > most_flops
