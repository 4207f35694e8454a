"""The names of the devices: of a GPU as its driver gives it, of a CPU with the vector extension that kernels can use."""
from __future__ import annotations

import functools
import platform
import re
from pathlib import Path

import torch


@functools.cache
def device_name(device: str) -> str:
    """The name of "cpu", or of the first GPU for "cuda"."""
    return torch.cuda.get_device_name(0) if device == "cuda" else cpu_name()


def cpu_name() -> str:
    """The processor's model name, with its vector extension where /proc says it (AVX2, AVX-512)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    vectors = "AVX-512" if " avx512f " in text else "AVX2" if " avx2 " in text else ""
    return " ".join(filter(None, (name.group(1).strip() if name else platform.machine(), vectors)))


def slug(name: str) -> str:
    """A device's name as part of a file's name: "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
