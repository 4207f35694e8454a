"""What the compilers make of a launch: the PTX and the registers, kept on disk by
content, for compiling takes a hundred times as long as executing a probe.

Triton keeps its kernels itself, by their source, place, constants and versions. Numba's
are kept beside the compiled facts (bench.measure.compiled.pins), by the code of all
that they call.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from dataclasses import dataclass

from numba.cuda.dispatcher import CUDADispatcher

from batchline.bench.measure.ahead import stored_kernels
from batchline.bench.measure.compiled import pins
from batchline.bench.measure.compiled.compiler import compile_as_launched

_FORMAT = "1 PTX with lines, registers"
_REGISTERS = 0x2F  # EIATTR_REGCOUNT of .nv.info: a symbol's number and its registers
_SIZED = 4  # EIFMT_SVAL: an attribute that is followed by its size


@dataclass(frozen=True)
class CompiledKernel:
    """PTX with the source's lines in it, and the registers of a thread (None where the
    cubin does not say).
    """

    ptx: str
    registers: int | None


def numba_kernel(
    kernel: CUDADispatcher, signature: tuple, architecture: int
) -> CompiledKernel:
    """The kernel for these argument types, as it was kept, or compiled now; within
    compiler.no_device(architecture).
    """
    return _kept_or_compiled(kernel, signature, architecture)


@functools.cache  # of this process
def _kept_or_compiled(kernel, signature, architecture) -> CompiledKernel:
    key = _key(kernel, signature, architecture)
    if key is not None and (kept := _load(key)) is not None:
        return kept
    made = _compile(kernel, signature)
    if key is not None:
        pins.store(key, [{"ptx": made.ptx, "registers": made.registers}])
    return made


def _key(kernel, signature, architecture) -> str | None:
    """None where not all that the kernel depends on can be told."""
    try:
        code = stored_kernels.key_of(
            kernel, signature, divmod(architecture, 10), with_places=True
        )
    except stored_kernels.Untold:
        return None
    return hashlib.sha256(f"{_FORMAT} {code}".encode()).hexdigest()


def _load(key: str) -> CompiledKernel | None:
    try:
        (row,) = pins.load_cached(key) or ()
        return CompiledKernel(row["ptx"], row["registers"])
    except (ValueError, KeyError, TypeError):
        return None


def _compile(kernel: CUDADispatcher, signature: tuple) -> CompiledKernel:
    """With line numbers: the machine code is the same, though its PTX may load a
    parameter once more.
    """
    options = dict(kernel.targetoptions) | {"lineinfo": True}
    with_lines = CUDADispatcher(kernel.py_func, targetoptions=options)
    ptx, cubin = compile_as_launched(with_lines, signature)
    return CompiledKernel(ptx, registers_of(cubin))


@functools.lru_cache(maxsize=4096)
def registers_of(cubin: bytes) -> int | None:
    """The most registers that a function in the cubin (an ELF64 file) takes; None where
    it does not say.

    Source: the attributes of .nv.info as cuobjdump --dump-elf names them.
    """
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    count, of_names = struct.unpack_from("<HH", cubin, 0x3C)
    headers = [
        struct.unpack_from("<IIQQQQ", cubin, table + 64 * number)
        for number in range(count)
    ]
    names_at = headers[of_names][4]
    found = []
    for name, _, _, _, offset, size in headers:
        if cubin.startswith(b".nv.info\0", names_at + name):
            found += _register_counts(cubin[offset : offset + size])
    return max(found, default=None)


def _register_counts(info: bytes) -> list[int]:
    counts, at = [], 0
    while at + 4 <= len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form != _SIZED:
            continue
        if attribute == _REGISTERS:
            counts.append(struct.unpack_from("<II", info, at)[1])
        at += size
    return counts
