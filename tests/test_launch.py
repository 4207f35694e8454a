"""What of launching can be seen with no GPU: the grid is kept, and an integer is
marshalled as it is.
"""

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
    assert kernel.configurations == [(7, 64, 0)]
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
        (7, 64, ("stream", 12345)),
        (8, 64, ("stream", 12345)),
    ]
    assert len(kernel.calls) == 3


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
