"""What of launching can be seen with no GPU: the grid is kept, and an integer is
marshalled as it is.
"""

from types import SimpleNamespace

import pytest
import torch

from batchline.kernels._cuda import launch
from batchline.kernels.backends import interpreted, why_absent

pytestmark = pytest.mark.skipif(
    bool(why_absent("numba_cuda")) or interpreted("numba_cuda"),
    reason="needs Numba's CUDA compiler",
)


class Recorder:
    """Stands for a kernel: keeps what it was configured and called with."""

    def __init__(self):
        self.configurations, self.calls = [], []

    def __getitem__(self, configuration):
        self.configurations.append(configuration)
        return lambda *args: self.calls.append(args)


def test_numbers_arrive_as_they_are():
    kernel = Recorder()
    launch.launch_at(torch.device("cpu"), kernel, 7, 64, 1 << 40, 3)
    assert kernel.configurations == [(7, 64, 0, 0)]
    assert kernel.calls == [(1 << 40, 3)]


def test_on_a_gpu_a_configuration_is_made_once(monkeypatch):
    class Stream:
        cuda_stream = 12345

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(
        launch.cuda, "external_stream", lambda pointer: ("stream", pointer)
    )
    kernel = Recorder()
    for grid in (7, 7, 8):
        launch.launch_at(torch.device("cuda"), kernel, grid, 64, 3)
    assert kernel.configurations == [
        (7, 64, ("stream", 12345), 0),
        (8, 64, ("stream", 12345), 0),
    ]
    assert len(kernel.calls) == 3


def test_more_than_48_kib_of_shared_memory_is_asked_for_once(monkeypatch):
    from numba import types
    from numba.cuda.cudadrv import driver

    device = SimpleNamespace(id=3, MAX_SHARED_MEMORY_PER_BLOCK_OPTIN=232448)
    function = SimpleNamespace(handle="handle", device=device)
    library = SimpleNamespace(get_cufunc=lambda: function)
    compiled, asked = [], []
    kernel = Recorder()
    kernel.compile = lambda signature: (
        compiled.append(signature) or SimpleNamespace(_codelibrary=library)
    )
    stream = SimpleNamespace(cuda_stream=1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(launch.cuda, "external_stream", lambda pointer: pointer)
    monkeypatch.setattr(
        driver,
        "driver",
        SimpleNamespace(cuKernelSetAttribute=lambda *args: asked.append(args)),
    )
    for kib in (48, 64, 96):
        launch.launch_at(
            torch.device("cuda", 3), kernel, 7, 64, 1, 2, shared_bytes=kib << 10
        )
    assert compiled == [(types.int64, types.int64)]
    ((attribute, *rest),) = asked
    assert attribute.name.endswith("MAX_DYNAMIC_SHARED_SIZE_BYTES")
    assert rest == [232448, "handle", 3]
    assert [one[3] for one in kernel.configurations] == [48 << 10, 64 << 10, 96 << 10]


def test_an_integer_is_marshalled_without_ctypes():
    from numba import types
    from numba.cuda.dispatcher import _Kernel

    @launch.jit_for(32)
    def kernel(number):
        pass

    marshalled = []
    shell = _Kernel.__new__(
        _Kernel
    )  # a compiled kernel wants a driver; marshalling does not
    shell.extensions = kernel.targetoptions["extensions"]
    shell._prepare_args(types.int64, 1 << 40, 0, [], marshalled)
    assert [getattr(number, "value", number) for number in marshalled] == [1 << 40]
