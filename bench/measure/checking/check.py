"""Is a variant right? Checked against the op's fp64 reference, on fresh inputs, before
any time is taken.

`check_variant` walks the op's probes (ragged, empty, strided, shared, large, with NaN
and infinities); `check_outputs` judges one result and is used again on the output that
was timed. Both raise NotMeasured with a line that says what was wrong.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from batchline.bench import texts
from batchline.bench.measure.checking import accuracy
from batchline.bench.measure.checking.accuracy import Demand
from batchline.bench.measure.machine import memory
from batchline.bench.statuses import FAILED, OUT_OF_MEMORY, WRONG, NotMeasured
from batchline.kernels import backends
from batchline.kernels.op import Op, Tensors, Variant
from batchline.kernels.rounding import Typical

_ALLOCATORS = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
}
_CALL_THE_LIBRARY = ("torch", backends.DISPATCH)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
SECRET = (
    random.SystemRandom()
)  # asks the system each time, so that there is no state to read ahead


class Poison(TorchDispatchMode):
    """While active, whatever torch allocates uninitialised is filled with NaN
    (integers: the largest value).

    What torch.compile made runs as it is, and allocates unseen.
    """

    ignores_kernels = True  # or an op's own call would be its baseline here, and not what it is elsewhere

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # or torch.compile gives up for good on a function first called here, and runs it eagerly

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in _ALLOCATORS and out.device.type != "meta":
            poison = (
                float("nan")
                if out.dtype.is_floating_point or out.dtype.is_complex
                else torch.iinfo(out.dtype).max
            )
            out.fill_(poison)
        return out


@dataclass(frozen=True)
class Expected:
    """What a variant must give: the outputs in fp64, how far from them it may be,
    elementwise, and the dtype of each.

    `typical` says of each output what its errors may be in root mean square; () where
    the op does not say. In those of the outputs that are `regrouped` (by number) NaN is
    right where an infinity is expected, too. `may_be_nan` has the elements of each
    output where NaN is right; None where the reference alone says so.
    """

    outputs: Tensors
    tolerances: Tensors
    dtypes: tuple[torch.dtype, ...]
    typical: tuple[Typical, ...] = ()
    regrouped: frozenset[int] = frozenset()
    may_be_nan: Tensors | None = None

    @property
    def output_bytes(self) -> int:
        """Bytes of all the outputs."""
        return sum(
            output.numel() * dtype.itemsize
            for output, dtype in zip(self.outputs, self.dtypes)
        )

    def demand(self, number: int) -> Demand:
        """What is asked of one output."""
        return Demand(
            self.outputs[number],
            self.tolerances[number],
            self.typical[number] if self.typical else None,
            number in self.regrouped,
            self.may_be_nan[number] if self.may_be_nan else None,
        )


@dataclass(frozen=True)
class Accuracy:
    """How far the outputs are from fp64: ‖out − ref‖/‖ref‖, and the worst element's
    share of its tolerance.

    `error_of_typical` is the root mean square of the errors' shares of what is typical,
    of the worst output; None where no output is held to that.
    """

    error: float
    error_of_tolerance: float
    error_of_typical: float | None = None


def expect(op: Op, inputs: Tensors) -> Expected:
    """The op's reference on these inputs, computed where they are."""
    outputs = op.reference(*inputs)
    tolerances = op.tolerance(outputs, *inputs)
    typical = tuple(op.typical(*inputs)) if op.typical else ()
    return Expected(
        as_tuple(outputs),
        as_tuple(tolerances),
        op.output_dtypes(len(as_tuple(outputs)), *inputs),
        typical,
        frozenset(op.regrouped),
    )


def held_to(variant: Variant, inputs: Tensors, expected: Expected) -> Expected:
    """What the op expects of the outputs that the variant gives, within its own
    tolerance where it declares one.

    With a tolerance of its own it is not held to what is typical of the op's sums, and
    it may give NaN for an infinity: products of parts meet ∞ − ∞. Where PyTorch's
    library spreads a NaN on this machine, a variant that calls it may, too.

    Raises:
        NotMeasured: WRONG if what the variant declares is no demand: no outputs, or a
        tolerance that bounds nothing.
    """
    if variant.gives is not None and not 0 < variant.gives <= len(expected.outputs):
        raise NotMeasured(
            WRONG,
            f"gives={variant.gives} is no number of outputs: there are {len(expected.outputs)}",
        )
    if variant.tolerance is not None:
        outputs = expected.outputs if len(expected.outputs) > 1 else expected.outputs[0]
        tolerances = as_tuple(variant.tolerance(outputs, *inputs))
        _require_bounds(tolerances, expected.outputs[: variant.gives])
        expected = replace(
            expected,
            tolerances=tolerances,
            typical=(),
            regrouped=frozenset(range(len(expected.outputs))),
        )
    if variant.backend in _CALL_THE_LIBRARY:
        expected = replace(expected, may_be_nan=variant.op.nan_by_torch(*inputs))
    return replace(
        expected,
        outputs=expected.outputs[: variant.gives],
        tolerances=expected.tolerances[: variant.gives],
        dtypes=expected.dtypes[: variant.gives],
        typical=expected.typical[: variant.gives],
    )


def _require_bounds(tolerances: Tensors, outputs: Tensors) -> None:
    """Raise unless a declared tolerance is a finite number, 0 or more, for each finite
    element of the outputs.
    """
    for number, output in enumerate(outputs):
        shape = tuple(tolerances[number].shape) if number < len(tolerances) else None
        if shape != tuple(output.shape):
            raise NotMeasured(
                WRONG,
                f"the tolerance that it declares has shape {shape} for a result of shape "
                f"{tuple(output.shape)}",
            )
        tolerance = tolerances[number]
        bad = output.isfinite() & ~(tolerance.isfinite() & (tolerance >= 0))
        if bad.any():
            raise NotMeasured(
                WRONG,
                f"the tolerance that it declares bounds nothing: it is "
                f"{float(tolerance[bad][0]):g} for {int(bad.sum())} of {bad.numel()} elements",
            )


def tolerance_multiple(held: Expected, expected: Expected) -> float:
    """How many times as far off as the op allows a variant may be, at most, by the
    tolerance that it is `held` to.
    """
    multiple = 1.0
    for own, ops, output in zip(held.tolerances, expected.tolerances, held.outputs):
        if own is not ops and (finite := output.isfinite()).any():
            multiple = max(
                multiple,
                float((own[finite] / ops[finite]).nan_to_num(1.0, float("inf")).max()),
            )
    return multiple


def check_variant(
    variant: Variant,
    dtype: torch.dtype,
    device: str,
    probes: Iterable[str] | None = None,
    tell: Callable[[str], None] = lambda probe: None,
) -> int:
    """Check a variant on its op's probes (all of them, or those named); `tell` is told
    each one's name before it.

    On each: the result and its contract; then, in the same buffers, fresh values, so
    that a result remembered by address is found out; then the same call again, which
    must give the same bits in a buffer of its own.

    Returns on how many probes it computed something: those that it declines, and those
    of no elements, prove nothing.

    Raises:
        NotMeasured: WRONG, with the probe's name and what was wrong there. Whatever the
        variant raises passes through.
    """
    computed = 0
    for name in variant.op.probes if probes is None else probes:
        tell(name)
        make_inputs = variant.op.probes[name]
        inputs = make_inputs(dtype, device, _seed(name, 0))
        where = f"on {name}"
        if variant.why_unsupported(*inputs):
            _require_declined_for_shape(variant, inputs, where)
            continue
        first = _checked_call(variant, inputs, where)
        kept = [tensor.clone() for tensor in first]
        _refill(inputs, make_inputs(dtype, device, _seed(name, 1)))
        second = _checked_call(
            variant, inputs, f"{where}, with new values in the same buffers"
        )
        if not same_bits(first, kept):
            raise NotMeasured(
                WRONG, f"{where}: a later call overwrote the result of an earlier one"
            )
        if not same_bits(as_tuple(variant(*inputs)), second):
            raise NotMeasured(WRONG, f"{where}: two calls on the same inputs differ")
        computed += any(output.numel() for output in second)
    return computed


def _require_declined_for_shape(variant: Variant, inputs: Tensors, where: str) -> None:
    """Raise NotMeasured if the variant takes inputs of the same layout with other
    values: a caller can't know that.
    """
    ordinary = twins(inputs)
    for tensor in ordinary:
        tensor.untyped_storage().fill_(0)
    if variant.why_unsupported(*ordinary) is None:
        raise NotMeasured(
            WRONG,
            f"{where}: it declines these values, and takes zeros in the same layout",
        )


def _checked_call(variant: Variant, inputs: Tensors, where: str) -> Tensors:
    outputs, _ = checked_call(variant, inputs, expect(variant.op, inputs), where)
    return outputs


def checked_call(
    variant: Variant, inputs: Tensors, expected: Expected, where: str
) -> tuple[Tensors, Accuracy]:
    """Call the variant with poisoned allocations; its inputs must stay as they were and
    its outputs be right.
    """
    before = [tensor.clone() for tensor in inputs]
    with Poison():
        returned = variant(*inputs)
    errors = check_outputs(returned, inputs, held_to(variant, inputs, expected), where)
    if not same_bits(inputs, before):
        raise NotMeasured(WRONG, f"{where}: it changed its inputs")
    return as_tuple(returned), errors


def check_outputs(
    returned, inputs: Tensors, expected: Expected, where: str
) -> Accuracy:
    """Judge what a variant returned for `inputs`.

    NaN is right where the reference has NaN, an infinity where it has the same one, a
    finite number where it has one.

    Raises:
        NotMeasured: WRONG if the outputs' number, kind, shape, dtype, device, memory or
        values are.
    """
    outputs = accuracy.plain_outputs(returned, inputs, len(expected.outputs), where)
    for output, reference, dtype in zip(outputs, expected.outputs, expected.dtypes):
        _require_form(output, reference, dtype, inputs, where)
    accuracy.require_own_memory(outputs, inputs, where)
    judged = [
        accuracy.judge(output, expected.demand(number), where)
        for number, output in enumerate(outputs)
    ]
    whole = math.hypot(*(one.norm for one in judged))
    typical = [one.of_typical for one in judged if one.of_typical is not None]
    return Accuracy(
        error=math.hypot(*(one.off for one in judged)) / whole if whole else 0.0,
        error_of_tolerance=max((one.of_tolerance for one in judged), default=0.0),
        error_of_typical=max(typical, default=None),
    )


def _require_form(
    output: torch.Tensor,
    reference: torch.Tensor,
    dtype: torch.dtype,
    inputs: Tensors,
    where: str,
) -> None:
    if output.shape != reference.shape:
        raise NotMeasured(
            WRONG,
            f"{where}: the result has shape {tuple(output.shape)}, not {tuple(reference.shape)}",
        )
    if output.dtype != dtype or output.device != inputs[0].device:
        raise NotMeasured(
            WRONG,
            f"{where}: the result is {output.dtype} on {output.device}, "
            f"not {dtype} on {inputs[0].device}",
        )


def _refill(inputs: Tensors, fresh: Tensors) -> None:
    """Give `inputs` the values of `fresh`, in their own memory: storage by storage,
    which holds for any strides.
    """
    for tensor, new in zip(inputs, fresh):
        tensor.untyped_storage().copy_(new.untyped_storage())


def same_bits(left: Iterable[torch.Tensor], right: Iterable[torch.Tensor]) -> bool:
    """Whether tensors of equal shapes and dtypes are bitwise the same, one by one."""
    return all(
        torch.equal(*(tensor.view(_BITS[tensor.element_size()]) for tensor in pair))
        for pair in zip(left, right)
    )


def are_same(one: Tensors, other: Tensors) -> bool:
    """Whether plain tensors (bench.measure.checking.accuracy) are as many, of the same shapes
    and dtypes, and bitwise the same.
    """
    return (
        len(one) == len(other)
        and all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(one, other))
        and same_bits(one, other)
    )


def twins(inputs: Tensors) -> Tensors:
    """The same values, shapes and strides in other memory; what shares a storage there
    shares one here.
    """
    storages = {}
    for tensor in inputs:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = storage.clone()
    return tuple(
        torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
            storages[tensor.untyped_storage().data_ptr()],
            tensor.storage_offset(),
            tensor.shape,
            tensor.stride(),
        )
        for tensor in inputs
    )


def as_tuple(outputs) -> Tensors:
    """What a variant returned, as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _seed(name: str, round_: int) -> int:
    return 2 * zlib.crc32(name.encode()) + round_


def refusal_of(error: BaseException) -> NotMeasured:
    """`error` as a status and a line."""
    if isinstance(error, NotMeasured):
        return error
    return NotMeasured(
        OUT_OF_MEMORY if memory.is_out_of_memory(error) else FAILED,
        texts.error_line(error),
    )
