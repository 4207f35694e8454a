"""Operations of torch's on the stand-in's tensors, which lie in host memory that is a
device's.

torch computes each operation at once, after what its stream had to do; that is late
enough, for whoever reads a tensor by torch waits for it on CUDA too. What waits there
waits here, and no capture can hold it.

Products that only a GPU's library has, computed on the CPU: they refuse what that
library refuses on sm_90.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from batchline.bench.measure.stand_in.devices import (
    Device,
    home,
    host_only,
    is_pinned,
    of_index,
)
from batchline.bench.measure.stand_in.timeline import BYTES_PER_S, OPERATION_S

_aten = torch.ops.aten
_ALIGNED_BYTES = 16
_MOST_GROUPS = 1023
_ROW_WISE = 1  # torch.nn.functional.ScalingType.RowWise


def _product_in(
    a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype
) -> torch.Tensor:
    """bmm with narrow inputs and wide results."""
    return torch.bmm(a.to(out_dtype), b.to(out_dtype))


def _added_product_in(
    total: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    out_dtype: torch.dtype,
    *,
    beta=1,
    alpha=1,
    out: torch.Tensor,
) -> torch.Tensor:
    """baddbmm with narrow inputs and wide results."""
    if a.dtype != b.dtype or a.dtype.itemsize != 2 or out_dtype != torch.float32:
        raise RuntimeError(
            "out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs"
        )
    if total.dtype not in (out_dtype, a.dtype):
        raise RuntimeError("self dtype must match either out_dtype or batch1 dtype")
    return torch.baddbmm(
        total.to(out_dtype),
        a.to(out_dtype),
        b.to(out_dtype),
        beta=beta,
        alpha=alpha,
        out=out,
    )


def _grouped(
    a: torch.Tensor, b: torch.Tensor, offs=None, bias=None, out_dtype=None
) -> torch.Tensor:
    """grouped_mm of three-dimensional operands, bf16 as its own kernel takes them."""
    _require_groups(a, b, offs, bias)
    for tensor in (a, b):
        _is_transposed(tensor)
    return torch.bmm(a, b)


def _scaled_grouped(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: list,
    recipe_a: list,
    swizzle_a: list,
    scale_b: list,
    recipe_b: list,
    swizzle_b: list,
    offs=None,
    bias=None,
    out_dtype=None,
    contraction_dim=(),
    use_fast_accum: bool = False,
) -> torch.Tensor:
    """scaled_grouped_mm of three-dimensional fp8 operands, scaled by row of A and
    column of B.
    """
    _require_groups(a, b, offs, bias)
    if _is_transposed(a):
        raise ValueError("Expected mat1 to not be transposed")
    if not _is_transposed(b):
        raise ValueError("Expected mat2 to be transposed")
    if a.shape[2] % 16 or b.shape[2] % 16:
        raise ValueError(
            f"Expected trailing dimension of mat_a and mat_b shape to be divisible by 16, got {a.shape} "
            f"and {b.shape}"
        )
    if out_dtype not in (None, torch.bfloat16):
        raise ValueError(
            "Only bf16 high precision output types are supported for grouped gemm"
        )
    if (
        any(tensor.dtype != torch.float8_e4m3fn for tensor in (a, b))
        or (recipe_a, recipe_b) != ([_ROW_WISE],) * 2
    ):
        raise ValueError("No gemm implementation was found")
    for scale, size in ((scale_a[0], a.shape[1]), (scale_b[0], b.shape[2])):
        if (
            scale.shape != (len(a), size)
            or scale.stride(1) != 1
            or scale.dtype != torch.float32
        ):
            raise RuntimeError(
                "scale must have the same batch and first dimension as mat, and be contiguous in it"
            )
    rows, columns = scale_a[0][:, :, None], scale_b[0][:, None, :]
    return (torch.bmm(a.float(), b.float()) * rows * columns).to(torch.bfloat16)


def _require_groups(a: torch.Tensor, b: torch.Tensor, offs, bias) -> None:
    if a.dim() != 3 or b.dim() != 3 or offs is not None or bias is not None:
        raise RuntimeError("the stand-in has grouped products of two 3D operands alone")
    if len(a) != len(b) or a.shape[2] != b.shape[1]:
        raise RuntimeError(
            "matrix batch sizes and contraction dimensions have to match"
        )
    if len(a) > _MOST_GROUPS:
        raise RuntimeError("Can't process more than 1024 groups")


def _is_transposed(tensor: torch.Tensor) -> bool:
    """Whether its columns are contiguous and not its rows; as
    check_valid_strides_and_return_transposed of ATen's.
    """
    aligned = _ALIGNED_BYTES // tensor.element_size()
    rows, columns = tensor.shape[1:]
    _, down, along = tensor.stride()
    is_transposed = down == 1 and along >= max(1, rows)
    if not is_transposed and not (along == 1 and down >= max(1, columns)):
        raise RuntimeError(
            f"Invalid strides/sizes, got {tensor.stride()} for strides and {tensor.shape} for sizes"
        )
    if (along if is_transposed else down) % aligned:
        raise RuntimeError("strides should be multiple of 16 bytes")
    if tensor.data_ptr() % _ALIGNED_BYTES or tensor.stride(0) % aligned:
        raise RuntimeError("expected data_ptr to be aligned to 16 bytes")
    return is_transposed


ONLY_ON_CUDA = {
    _aten.bmm.dtype: _product_in,
    _aten.baddbmm.dtype_out: _added_product_in,
    _aten._grouped_mm.default: _grouped,
    _aten._scaled_grouped_mm_v2.default: _scaled_grouped,
}


_aten = torch.ops.aten
_EMPTY = {
    _aten.empty,
    _aten.empty_like,
    _aten.empty_strided,
    _aten.new_empty,
    _aten.new_empty_strided,
    _aten.empty_permuted,
}
_WAITS = {
    _aten._local_scalar_dense,
    _aten.equal,
    _aten.is_nonzero,
    _aten.nonzero,
    _aten.masked_select,
    _aten.unique_dim,
    _aten._unique2,
    _aten.repeat_interleave,
}
_SUMS = {_aten.sum, _aten.mean}
_PRODUCTS = {_aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm}
_CPU = torch.device("cpu")


class Operations(TorchDispatchMode):
    """Every operation of torch's on the devices' tensors."""

    ignores_kernels = True  # as bench.measure.checking.check.Poison: or an op's own call would be its baseline
    supports_higher_order_operators = True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunction():
            return _operation(func, args, dict(kwargs or {}))


def _computed(func, args: tuple, kwargs: dict):
    return ONLY_ON_CUDA.get(func, func)(*args, **kwargs)


def _operation(func, args: tuple, kwargs: dict):
    tensors = list(_tensors((args, kwargs)))
    homes = {place for tensor in tensors if (place := home(tensor)) is not None}
    asked = kwargs.get("device")
    if asked is not None and asked.type == "cuda":
        kwargs["device"] = _CPU
        device = of_index(asked.index)
    elif homes and (asked is None or func.overloadpacket is _aten.new_empty_strided):
        kwargs |= (
            {"device": _CPU} if asked is not None else {}
        )  # by torch itself, for a gradient: where the other is
        device = of_index(min(homes))
    elif homes and asked.type == "cpu":
        return _to_host(func, args, kwargs, of_index(min(homes)))
    else:
        return func(*args, **kwargs)
    packet = func.overloadpacket
    if packet is _aten.copy_:
        return _copy(*args, **kwargs)
    if packet is not _aten._to_copy:
        _require_one_device(tensors, homes)
    if func.is_view:
        return func(*args, **kwargs)
    if packet in _WAITS or (
        packet is _aten.index
        and any(t.dtype in (torch.bool, torch.uint8) for t in args[1] if t is not None)
    ):
        device.queue.synchronize()
    if packet in _EMPTY:
        made = _placed(func(*args, **kwargs), device, copied=False)
        if device.queue.capture:
            _forget_before_each_replay(made, device)
        return made
    if device.queue.capture:
        return _captured(func, args, kwargs, device)
    device.queue.compute()
    cast = _cast_before_a_sum(packet, tensors, kwargs, device)
    returned = _placed(_computed(func, args, kwargs), device)
    read, written = (
        sum(tensor.nbytes for tensor in _tensors(tree))
        for tree in ((args, kwargs), returned)
    )
    seconds = _seconds(read + written) + device.write_back_s(
        read - _bytes_written_to(func, args, kwargs), written
    )
    device.queue.add(None, seconds, packet in _PRODUCTS)
    del cast
    return returned


def _seconds(nbytes: int) -> float:
    """Of an operation that reads and writes so many bytes."""
    return OPERATION_S + nbytes / BYTES_PER_S


def _cast_before_a_sum(
    packet, tensors: list[torch.Tensor], kwargs: dict, device: Device
):
    """The memory of the copy that CUDA's sums make of what they are to add in another
    dtype (ATen's ReduceOps).

    From fp16 and bf16 to fp32 they make none.
    """
    dtype = kwargs.get("dtype")
    if packet not in _SUMS or dtype in (None, tensors[0].dtype):
        return None
    if tensors[0].dtype.itemsize == 2 and dtype == torch.float32:
        return None
    return device.empty(tensors[0].numel() * dtype.itemsize)


def _tensors(tree) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from _tensors(part)
    elif isinstance(tree, dict):
        yield from _tensors(tuple(tree.values()))


def _require_one_device(tensors: list[torch.Tensor], homes: set[int]) -> None:
    found = {f"cuda:{index}" for index in homes}
    found |= {
        "cpu"
        for tensor in tensors
        if tensor.dim() and tensor.device == _CPU and home(tensor) is None
    }
    if len(found) > 1:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{' and '.join(sorted(found))}!"
        )


def _placed(returned, device: Device, copied: bool = True):
    """What an operation returned, in the device's memory where it is new."""

    def place(tensor: torch.Tensor) -> torch.Tensor:
        if home(tensor) is not None or tensor.device != _CPU:
            return tensor
        new = _like(tensor, device)
        if copied:
            new.copy_(tensor)
        return new

    return tree_map_only(torch.Tensor, place, returned)


def _like(tensor: torch.Tensor, device: Device) -> torch.Tensor:
    """New memory on the device for such a tensor."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=tensor.dtype).set_(
        device.empty(len(storage)),
        tensor.storage_offset(),
        tensor.shape,
        tensor.stride(),
    )


def _captured(func, args: tuple, kwargs: dict, device: Device):
    """Compute nothing now: give memory for the results, which every replay writes to."""
    written = _written_to(func, args, kwargs)
    kept = [tensor.clone() for tensor in written]
    before = _computed(func, args, kwargs)
    for tensor, content in zip(written, kept):
        tensor.copy_(content)
    returned = _placed(before, device, copied=False)
    results = [
        (new, number)
        for number, (new, old) in enumerate(zip(_tensors(returned), _tensors(before)))
        if new is not old
    ]

    def compute() -> None:
        with host_only():
            again = list(_tensors(_computed(func, args, kwargs)))
            for new, number in results:
                new.copy_(again[number])

    nbytes = sum(
        tensor.nbytes for tensor in (*_tensors((args, kwargs)), *_tensors(before))
    )
    device.queue.add(compute, _seconds(nbytes), func.overloadpacket in _PRODUCTS)
    return returned


def _forget_before_each_replay(made: torch.Tensor, device: Device) -> None:
    """What a graph's own memory holds when a replay begins is nobody's: NaN, so that it
    must be written each time.
    """

    def compute() -> None:
        with host_only():
            made.untyped_storage().fill_(255)

    device.queue.add(compute, 0.0)


def _written_to(func, args: tuple, kwargs: dict) -> list[torch.Tensor]:
    """The tensors that the operation changes."""
    given = (
        dict(zip((argument.name for argument in func._schema.arguments), args)) | kwargs
    )
    return [
        tensor
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in _tensors(given.get(argument.name))
    ]


def _bytes_written_to(func, args: tuple, kwargs: dict) -> int:
    return sum(tensor.nbytes for tensor in _written_to(func, args, kwargs))


def _copy(
    target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False
) -> torch.Tensor:
    """copy_, between any two of the devices and the host."""
    to, of = home(target), home(source)
    queue = of_index(to if to is not None else of).queue
    on_host = next(
        (tensor for tensor, place in ((target, to), (source, of)) if place is None),
        None,
    )

    def compute() -> None:
        with host_only():
            target.copy_(source)

    if on_host is not None and not is_pinned(on_host) and on_host.dim():
        queue.require_not_captured()
    if on_host is target and not (non_blocking and is_pinned(target)):
        queue.synchronize()
        target.copy_(source)
        return target
    if queue.capture or (on_host is not None and non_blocking and is_pinned(on_host)):
        # It reads or writes the host's memory when it is its turn.
        queue.add(compute, _seconds(target.nbytes + source.nbytes))
        return target
    for place in {to, of} - {None}:
        of_index(place).queue.compute()
    target.copy_(source)
    queue.add(None, _seconds(target.nbytes + source.nbytes))
    return target


def _to_host(func, args: tuple, kwargs: dict, device: Device):
    """An operation on a device's tensor whose result is a CPU's."""
    device.queue.synchronize()
    returned = func(*args, **kwargs)
    return tree_map_only(
        torch.Tensor,
        lambda tensor: tensor.clone() if home(tensor) is not None else tensor,
        returned,
    )


def moved(
    tensor: torch.Tensor, to: int | None, non_blocking: bool = False
) -> torch.Tensor:
    """A tensor of the same values on a device, or for None on the CPU."""
    if home(tensor) == to:
        return tensor
    dense = torch.empty_like(tensor, device=_CPU)
    new = dense if to is None else _like(dense, of_index(to))
    return _copy(new, tensor.detach(), non_blocking)
