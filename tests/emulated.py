"""Kernels written in PTX by hand, executed in emulation on NumPy's memory."""

import dataclasses
import re
import struct

import numpy as np

from batchline.bench.measure.emulator import execution
from batchline.bench.measure.emulator.launch import KernelLaunch
from batchline.bench.measure.emulator.memory import GlobalMemory

SHARED_BYTES = 16384
SCHEDULES = {
    "late": execution.LATE,
    "early": execution.EARLY,
    "shuffled": execution.SHUFFLED,
}
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
    cluster=1,
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
        cluster=_three(cluster),
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


# --- kernels that are wrong, and their mended twins ---------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A kernel's body with <wrong||right> in it, and the word for what is wrong.

    `size` is the number of words of each of its two arrays. `under` are the schedules
    in which it has to be found, of all three. `cluster` is the blocks of a cluster.
    """

    name: str
    word: str
    body: str
    block: int = 64
    grid: int = 1
    size: int = 256
    fresh: bool = False
    under: tuple[str, ...] = tuple(SCHEDULES)
    cluster: int = 1


def require_found(case):
    """In the wrong twin something is found under each schedule, and its word in one."""
    wrong, _ = twins(case.body)
    found = [faults(_executed(case, wrong, SCHEDULES[name])) for name in case.under]
    assert all(found), found
    assert any(case.word in one for one in found), found


def require_clean(case):
    """Nothing is found in the right one."""
    _, right = twins(case.body)
    for name, schedule in SCHEDULES.items():
        findings = _executed(case, right, schedule).findings
        assert not findings, f"{name}: {[str(one) for one in findings]}"


def _executed(case, body, schedule):
    arrays = [buffer(case.size), buffer(case.size)]
    second = Fresh(arrays[1]) if case.fresh else arrays[1]
    shape = {"grid": case.grid, "block": case.block, "cluster": case.cluster}
    return run(body, arrays[0], second, schedule=schedule, **shape)


def mbarrier(address="%s", count=1):
    """One thread makes an mbarrier, and the block waits for that."""
    return f"""
    setp.eq.u32 %p0, %t, 0;
    @%p0 mbarrier.init.shared::cta.b64 [{address}], {count};
    bar.sync 0;
    """


def wait(parity, register="%r20", at="%s"):
    """Ask until the phase with this parity is complete."""
    label = f"W{abs(hash((parity, register, at))) % 10**6}"
    return f"""
    {label}:
    mbarrier.try_wait.parity.shared::cta.b64 %p9, [{at}], {parity};
    @!%p9 bra {label};
    """
