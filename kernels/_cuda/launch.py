"""How a Numba CUDA kernel is launched on torch tensors: no copies, on torch's current
stream.
"""

from __future__ import annotations

import functools

import torch

from batchline.kernels.backends import cuda, interpreted, numba

_POINTER = numba.types.CPointer(numba.types.int8)
_SHARED_BYTES_UNASKED = 48 * 1024  # a block has without its kernel asking the driver


def launch(kernel, grid: int, block: int | tuple[int, ...], *args) -> None:
    """Launch `kernel` with `grid` blocks in x. Tensors among `args` arrive as arrays
    with their own strides.

    On the CPU they arrive as NumPy views, which is what Numba's simulator and its type
    inference understand.
    """
    on_device = any(isinstance(arg, torch.Tensor) and arg.is_cuda for arg in args)
    _configured(kernel, grid, block, on_device)(*(_as_argument(arg) for arg in args))


def launch_at(
    device: torch.device,
    kernel,
    grid: int,
    block: int,
    *numbers: int,
    shared_bytes: int = 0,
) -> None:
    """Launch a kernel that takes integers alone: addresses (`Tensor.data_ptr`), sizes
    and strides, and for each block `shared_bytes` in its array of shared memory without
    a size.

    An array costs the host a view of the tensor, its type and its eleven fields; an
    integer none of them.
    """
    on_device = device.type == "cuda"
    if on_device and shared_bytes > _SHARED_BYTES_UNASKED:
        _allow_shared_bytes(kernel, len(numbers), device.index)
    _configured(kernel, grid, block, on_device, shared_bytes)(*numbers)


def _configured(kernel, grid, block, on_device, shared_bytes=0):
    if not on_device:
        return kernel[grid, block, 0, shared_bytes]
    stream = torch.cuda.current_stream().cuda_stream
    return _on_stream(kernel, grid, block, stream, shared_bytes)


@functools.lru_cache(maxsize=512)
def _on_stream(kernel, grid, block, stream, shared_bytes):
    """A kernel with its grid and stream: the same few are launched over and over."""
    return kernel[grid, block, cuda.external_stream(stream), shared_bytes]


@functools.lru_cache(maxsize=512)
def _allow_shared_bytes(kernel, numbers, device_index):
    """Let a kernel of `numbers` integers have as much shared memory as the current
    device, of that index, has for a block. Numba asks for none of it.
    """
    from numba.cuda.cudadrv.driver import binding, driver

    compiled = kernel.compile((numba.types.int64,) * numbers)
    function = compiled._codelibrary.get_cufunc()
    driver.cuKernelSetAttribute(
        binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
        function.device.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        function.handle,
        function.device.id,
    )


def _as_argument(arg):
    if not isinstance(arg, torch.Tensor):
        return arg
    if arg.is_cuda:
        return cuda.as_cuda_array(
            arg.detach() if arg.requires_grad else arg, sync=False
        )
    view = arg.detach().numpy()
    # A bare NumPy array would be copied to the simulated device, and the copy refuses
    # strides.
    return (
        cuda.cudadrv.devicearray.FakeCUDAArray(view)
        if interpreted("numba_cuda")
        else view
    )


def jit_for(threads: int, blocks_per_sm: int = 1):
    """`cuda.jit` for a kernel of integers alone, with registers few enough that
    `blocks_per_sm` blocks fit on an SM.

    The simulator knows neither option.
    """
    if interpreted("numba_cuda"):
        return cuda.jit
    return cuda.jit(launch_bounds=(threads, blocks_per_sm), extensions=[_AsPointers])


class _AsPointers:
    """Hands integers to the launch as pointers, 8 bytes too: of an integer Numba makes
    a ctypes object first.
    """

    @staticmethod
    def prepare_args(type_, value, stream, retr):
        return _POINTER, value
