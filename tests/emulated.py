"""Kernels written in PTX by hand, executed in emulation on NumPy's memory."""

import dataclasses
import re
import struct

import numpy as np

from batchline.bench.measure.emulator import execution
from batchline.bench.measure.emulator.launch import KernelLaunch
from batchline.bench.measure.emulator.memory import GlobalMemory

SHARED_BYTES = 16384
_EITHER = re.compile(r"<([^<>|]*)\|\|([^<>|]*)>")
_HEAD = """
.version 8.7
.target sm_{architecture}
.address_size 64
{module}
.visible .entry k({parameters})
{{
    .reg .pred %p<32>;
    .reg .b16 %h<64>;
    .reg .b32 %r<128>;
    .reg .b32 %n<8>;
    .reg .b64 %d<64>;
    .reg .b64 %a<8>;
    .reg .b64 %g<8>;
    .reg .f32 %f<64>;
    .reg .f64 %q<16>;
    .reg .b32 %t;
    .reg .b32 %w;
    .reg .b32 %l;
    .reg .b32 %s;
    .reg .b32 %m;
    .reg .b64 %o;
    .shared .align 1024 .b8 s[{shared}];
    mov.u32 %t, %tid.x;
    shr.u32 %w, %t, 5;
    and.b32 %l, %t, 31;
    mov.u32 %s, s;
    shl.b32 %m, %t, 2;
    cvt.u64.u32 %o, %m;
    add.u32 %m, %m, %s;
"""


def buffer(count, dtype=np.uint32, align=256):
    """An array of zeros from an address that is a multiple of `align`."""
    size = count * np.dtype(dtype).itemsize
    held = np.zeros(size + align, np.uint8)
    first = -held.ctypes.data % align
    return held[first : first + size].view(dtype)


class Fresh:
    """An argument's array that nothing has written yet."""

    def __init__(self, array):
        self.array = array


def text_of(body, arguments, architecture=90, module="", shared=SHARED_BYTES):
    """The PTX of a kernel with this body.

    It begins with, of the thread: %t its number, %w and %l of its warp and in it, %s
    the address of `s` in shared memory, %m that of its own word there, %o the offset of
    its own word. Of argument i: %a<i> an array's address and %g<i> that of the thread's
    own word in it, %n<i> an integer. Bytes are a .param p<i> and no more.
    """
    declared, loads = [], []
    for place, value in enumerate(arguments):
        if isinstance(value, bytes):
            declared.append(f".param .align 64 .b8 p{place}[{len(value)}]")
        elif isinstance(value, int):
            declared.append(f".param .u32 p{place}")
            loads.append(f"ld.param.u32 %n{place}, [p{place}];")
        else:
            declared.append(f".param .u64 p{place}")
            loads.append(f"ld.param.u64 %a{place}, [p{place}];")
            loads.append(f"add.s64 %g{place}, %a{place}, %o;")
    head = _HEAD.format(
        architecture=f"{architecture}a" if architecture >= 90 else architecture,
        module=module,
        parameters=", ".join(declared),
        shared=shared,
    )
    return head + "\n".join(loads) + "\n" + body + "\n    ret;\n}\n"


def run(
    body,
    *arguments,
    grid=1,
    block=32,
    architecture=90,
    module="",
    shared=SHARED_BYTES,
    dynamic=0,
    schedule=execution.LATE,
    most_steps=1_000_000,
):
    """Execute a kernel with this body (see `text_of`) on arrays, which it changes."""
    memory, values = GlobalMemory(), []
    for place, value in enumerate(arguments):
        if isinstance(value, int):
            values.append(struct.pack("<I", value & 0xFFFFFFFF))
        elif isinstance(value, bytes):
            values.append(value)
        else:
            array = value.array if isinstance(value, Fresh) else value
            address = array.ctypes.data
            is_known = not isinstance(value, Fresh)
            memory.add(address, array.nbytes, f"argument {place}", is_known)
            values.append(struct.pack("<Q", address))
    launch = KernelLaunch(
        kernel="k",
        entry="k",
        ptx=text_of(body, arguments, architecture, module, shared),
        architecture=architecture,
        grid=_three(grid),
        block=_three(block),
        cluster=(1, 1, 1),
        dynamic_shared_bytes=dynamic,
        arguments=tuple(values),
        registers=None,
        config="",
    )
    schedule = dataclasses.replace(schedule, most_steps=most_steps)
    return execution.execute(launch, memory, schedule)


def _three(given):
    return given if isinstance(given, tuple) else (given, 1, 1)


def words(execution_):
    """The words of what was found, each once."""
    return {found.word for found in execution_.findings}


def faults(execution_):
    """Those of them that are faults."""
    return {found.word for found in execution_.findings if found.is_fault}


def twins(body):
    """The wrong body and the right one: of each <wrong||right> in it one side."""
    return tuple(_EITHER.sub(lambda one: one[side].strip(), body) for side in (1, 2))
