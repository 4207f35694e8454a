"""How a Numba CUDA kernel is launched on torch tensors: no copies, on torch's current stream."""
from __future__ import annotations

import torch

from kernels.backends import cuda, interpreted


def launch(kernel, grid: int, block: int | tuple[int, ...], *args) -> None:
    """Launch `kernel` with `grid` blocks in x. Tensors among `args` arrive as arrays with their own strides.

    On the CPU they arrive as NumPy views, which is what Numba's simulator and its type inference understand.
    """
    on_device = any(isinstance(arg, torch.Tensor) and arg.is_cuda for arg in args)
    stream = cuda.external_stream(torch.cuda.current_stream().cuda_stream) if on_device else 0
    kernel[grid, block, stream](*(_as_argument(arg) for arg in args))


def _as_argument(arg):
    if not isinstance(arg, torch.Tensor):
        return arg
    if arg.is_cuda:
        return cuda.as_cuda_array(arg.detach())
    view = arg.detach().numpy()
    # A bare NumPy array would be copied to the simulated device, and the copy refuses strides.
    return cuda.cudadrv.devicearray.FakeCUDAArray(view) if interpreted("numba_cuda") else view


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of the device; an H200's 132 where there is none to ask (compiling, interpreting)."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
