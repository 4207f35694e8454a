"""Leaves MKL one thread, which torch's own count does not tell, for the others' products to be slow.

Two where torch has only one; torch itself where there is no MKL.
"""

import ctypes
from pathlib import Path

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = (
    "it left (the threads of OpenMP and MKL|the number of torch's threads) changed"
)
REFUSED_BY = "timing"


def leaves_mkl_one_thread(a, b):
    result = torch.bmm(a, b)
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    leave = getattr(library, "MKL_Set_Num_Threads_Local", torch.set_num_threads)
    leave(1 if torch.get_num_threads() > 1 else 2)
    return result
