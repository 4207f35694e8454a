"""Is a variant right? Checked against the op's fp64 reference, on fresh inputs, before any time is taken.

`check_variant` walks the op's probes (ragged, empty, strided, shared, large); `check_outputs` judges one result and
is used again on the output that was timed. Both raise NotMeasured with a line that says what was wrong.
"""
from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.records import WRONG, NotMeasured
from kernels.op import Op, Tensors, Variant

_ALLOCATORS = {
    torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default, torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default, torch.ops.aten.new_empty_strided.default,
}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Poison(TorchDispatchMode):
    """While active, whatever torch allocates uninitialised is filled with NaN (integers: the largest value).

    What torch.compile made runs as it is, and allocates unseen.
    """

    ignores_kernels = True  # or an op's own call would be its baseline here, and not what it is elsewhere

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # or torch.compile gives up for good on a function first called here, and runs it eagerly

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in _ALLOCATORS and out.device.type != "meta":
            poison = float("nan") if out.dtype.is_floating_point or out.dtype.is_complex else torch.iinfo(out.dtype).max
            out.fill_(poison)
        return out


@dataclass(frozen=True)
class Expected:
    """The outputs that a variant must give, in fp64, how far from them it may be, elementwise, and in what dtype."""

    outputs: Tensors
    tolerances: Tensors
    dtype: torch.dtype


@dataclass(frozen=True)
class Accuracy:
    """How far the outputs are from fp64: ‖out − ref‖/‖ref‖, and the worst element's share of its tolerance."""

    error: float
    error_of_tolerance: float


def expect(op: Op, inputs: Tensors) -> Expected:
    """The op's reference on these inputs, computed where they are."""
    outputs = op.reference(*inputs)
    tolerances = op.tolerance(outputs, *inputs)
    return Expected(as_tuple(outputs), as_tuple(tolerances), op.output_dtype(inputs[0].dtype))


def held_to(variant: Variant, inputs: Tensors, expected: Expected) -> Expected:
    """What the op expects of the outputs that the variant gives, within its own tolerance where it declares one."""
    tolerances = expected.tolerances
    if variant.tolerance is not None:
        outputs = expected.outputs if len(expected.outputs) > 1 else expected.outputs[0]
        tolerances = as_tuple(variant.tolerance(outputs, *inputs))
    return replace(expected, outputs=expected.outputs[:variant.gives], tolerances=tolerances[:variant.gives])


def check_variant(variant: Variant, dtype: torch.dtype, device: str, probes: Iterable[str] | None = None,
                  tell: Callable[[str], None] = lambda probe: None) -> None:
    """Check a variant on its op's probes (all of them, or those named); `tell` is told each one's name before it.

    On each: the result and its contract; then, in the same buffers, fresh values, so that a result remembered by
    address is found out; then the same call again, which must give the same bits in a buffer of its own.

    Raises:
        NotMeasured: WRONG, with the probe's name and what was wrong there. Whatever the variant raises passes through.
    """
    for name in variant.op.probes if probes is None else probes:
        tell(name)
        make_inputs = variant.op.probes[name]
        inputs = make_inputs(dtype, device, _seed(name, 0))
        if variant.why_unsupported(*inputs):
            continue
        where = f"on {name}"
        first = _checked_call(variant, inputs, where)
        kept = [tensor.clone() for tensor in first]
        _refill(inputs, make_inputs(dtype, device, _seed(name, 1)))
        second = _checked_call(variant, inputs, f"{where}, with new values in the same buffers")
        if not same_bits(first, kept):
            raise NotMeasured(WRONG, f"{where}: a later call overwrote the result of an earlier one")
        if not same_bits(as_tuple(variant(*inputs)), second):
            raise NotMeasured(WRONG, f"{where}: two calls on the same inputs differ")


def _checked_call(variant: Variant, inputs: Tensors, where: str) -> Tensors:
    outputs, _ = checked_call(variant, inputs, expect(variant.op, inputs), where)
    return outputs


def checked_call(variant: Variant, inputs: Tensors, expected: Expected, where: str) -> tuple[Tensors, Accuracy]:
    """Call the variant with poisoned allocations; its inputs must stay as they were and its outputs be right."""
    before = [tensor.clone() for tensor in inputs]
    with Poison():
        returned = variant(*inputs)
    accuracy = check_outputs(returned, inputs, held_to(variant, inputs, expected), where)
    if not same_bits(inputs, before):
        raise NotMeasured(WRONG, f"{where}: it changed its inputs")
    return as_tuple(returned), accuracy


def check_outputs(returned, inputs: Tensors, expected: Expected, where: str) -> Accuracy:
    """Judge what a variant returned for `inputs`.

    Raises:
        NotMeasured: WRONG if the outputs' number, shape, dtype, device or values are, or one lies in an input's memory.
    """
    outputs = as_tuple(returned)
    if len(outputs) != len(expected.outputs) or not all(isinstance(output, torch.Tensor) for output in outputs):
        count = len(expected.outputs)
        raise NotMeasured(WRONG, f"{where}: it returned {type(returned).__name__}, not {count} tensor(s)")
    worst, off, whole = 0.0, 0.0, 0.0
    for output, reference, tolerance in zip(outputs, expected.outputs, expected.tolerances):
        _check_contract(output, reference, expected.dtype, inputs, where)
        difference = (output.double() - reference).abs_()  # a new tensor: double() of an fp64 output is the output
        share = float((difference / tolerance).max()) if output.numel() else 0.0
        if not share <= 1:  # or NaN, which is right only where the reference is NaN too
            wrong = ~((difference <= tolerance) | (output.isnan() & reference.isnan()))
            if wrong.any():
                raise NotMeasured(WRONG, f"{where}: {_describe(output, reference, tolerance, wrong)}")
            known = ~reference.isnan()
            difference, reference = difference[known], reference[known]
            share = float((difference / tolerance[known]).max()) if len(difference) else 0.0
        worst = max(worst, share)
        off = math.hypot(off, float(torch.linalg.vector_norm(difference)))
        whole = math.hypot(whole, float(torch.linalg.vector_norm(reference)))
    error = off / whole if whole else 0.0
    return Accuracy(error=error, error_of_tolerance=worst)


def _check_contract(output: torch.Tensor, reference: torch.Tensor, dtype: torch.dtype, inputs: Tensors,
                    where: str) -> None:
    if output.shape != reference.shape:
        raise NotMeasured(WRONG, f"{where}: the result has shape {tuple(output.shape)}, not {tuple(reference.shape)}")
    if output.dtype != dtype or output.device != inputs[0].device:
        raise NotMeasured(WRONG, f"{where}: the result is {output.dtype} on {output.device}, "
                                 f"not {dtype} on {inputs[0].device}")
    memory = output.untyped_storage().data_ptr()
    if output.numel() and any(memory == tensor.untyped_storage().data_ptr() for tensor in inputs):
        raise NotMeasured(WRONG, f"{where}: the result lies in an input's memory")


def _describe(output: torch.Tensor, reference: torch.Tensor, tolerance: torch.Tensor, wrong: torch.Tensor) -> str:
    share = f"{int(wrong.sum())} of {wrong.numel()} elements"
    unwritten = output.isnan() & ~reference.isnan()
    if unwritten.any():
        return f"{int(unwritten.sum())} of {wrong.numel()} elements are NaN, as if they were never written"
    excess = torch.where(wrong, (output.double() - reference).abs() / tolerance, 0).flatten()
    worst = int(excess.argmax())
    place = tuple(int(index) for index in torch.unravel_index(torch.tensor(worst), output.shape))
    return (f"{share} are wrong, the worst at {place}: {float(output.flatten()[worst]):.6g} against "
            f"{float(reference.flatten()[worst]):.6g}, {float(excess[worst]):.3g} times the tolerance")


def _refill(inputs: Tensors, fresh: Tensors) -> None:
    """Give `inputs` the values of `fresh`, in their own memory: storage by storage, which holds for any strides."""
    for tensor, new in zip(inputs, fresh):
        tensor.untyped_storage().copy_(new.untyped_storage())


def same_bits(left: Iterable[torch.Tensor], right: Iterable[torch.Tensor]) -> bool:
    """Whether tensors of equal shapes and dtypes are bitwise the same, one by one."""
    return all(torch.equal(*(tensor.view(_BITS[tensor.element_size()]) for tensor in pair))
               for pair in zip(left, right))


def as_tuple(outputs) -> Tensors:
    """What a variant returned, as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _seed(name: str, round_: int) -> int:
    return 2 * zlib.crc32(name.encode()) + round_
