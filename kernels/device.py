"""The devices, and their names: of a GPU as its driver gives it, of a CPU with its
vector extension.
"""

from __future__ import annotations

import functools
import platform
import re
from collections.abc import Callable
from pathlib import Path

import torch

from batchline.kernels import architectures


def on_its_device(function: Callable) -> Callable:
    """The function of tensors, run with their GPU as the current one: that is where a
    launch goes.
    """

    @functools.wraps(function)
    def guarded(*inputs: torch.Tensor):
        device = inputs[0].device
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return function(*inputs)
        with torch.cuda.device(device):
            return function(*inputs)

    return guarded


@functools.cache
def device_name(device: str) -> str:
    """The name of "cpu", or of the first GPU for "cuda"."""
    return torch.cuda.get_device_name(0) if device == "cuda" else cpu_name()


def cpu_name() -> str:
    """The processor's model name, with its family and model and its vector extension
    where /proc says them.

    Virtual machines call every EPYC by one name, and of two generations one does twice
    the multiply-adds of the other: "AMD EPYC 25/17 AVX-512" is Zen 4.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name, family, model = (
        re.search(rf"^{field}\s*:\s*(.+)$", text, re.MULTILINE)
        for field in ("model name", "cpu family", "model")
    )
    number = (
        f"{family.group(1).strip()}/{model.group(1).strip()}"
        if family and model
        else ""
    )
    vectors = "AVX-512" if " avx512f " in text else "AVX2" if " avx2 " in text else ""
    return " ".join(
        filter(
            None,
            (name.group(1).strip() if name else platform.machine(), number, vectors),
        )
    )


def why_no_fp8(device: str) -> str | None:
    """Why this machine's "cpu" or "cuda" does not multiply fp8, or None; None too where
    there is no GPU to ask.
    """
    if device != "cuda" or not torch.cuda.is_available():
        return None
    number = _capability_of_gpu()
    if why := architectures.why_too_old(number):
        return why
    target = architectures.taken_for(number)
    return None if target.fp8 else f"fp8 needs sm_89 or newer, and this is {target}"


def why_no_kernels(device: str) -> str | None:
    """Why compiled kernels can't run on this machine's "cuda", or None; None too where
    there is no GPU to ask.
    """
    if device != "cuda" or not torch.cuda.is_available():
        return None
    return architectures.why_too_old(_capability_of_gpu())


def _capability_of_gpu() -> int:
    """90 of a current GPU of compute capability 9.0."""
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor
