"""A launch as the emulator executes it, and why a GPU would refuse it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from batchline.kernels import architectures
from batchline.kernels.architectures import Architecture

Three = tuple[int, int, int]
_MOST_BLOCKS = (2**31 - 1, 65535, 65535)
_MOST_CLUSTER = 8  # blocks: the portable limit of the CUDA programming guide
_STATIC_SHARED_BYTES = 48 * architectures.KIB
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{;]*)")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(?P<before>\d+)\s+)?\.(?P<type>[bsuf])(?P<bits>\d+)\s+"
    r"(?:\.ptr\s+(?:\.\w+\s+)*?(?:\.align\s+\d+\s+)?)?(?P<name>[\w$]+)"
    r"(?:\[(?P<count>\d+)\])?"
)
_SHARED = re.compile(
    r"^\s*(?:\.visible\s+)?\.shared\s+(?:\.align\s+\d+\s+)?\.[bsuf](\d+)\s+[\w$]+"
    r"((?:\[\d+\])*)\s*;",
    re.MULTILINE,
)
_THREADS = re.compile(r"\.(reqntid|maxntid)\s+(\d+(?:\s*,\s*\d+)*)")


class LaunchRefused(ValueError):
    """No GPU of the architecture would take the launch; the message is one line."""


@dataclass(frozen=True)
class KernelLaunch:
    """One launch of one kernel.

    Args:
        kernel: the name of the function in the source.
        entry: its name in the PTX.
        ptx: the text of the PTX.
        architecture: 90 for sm_90.
        grid, block, cluster: blocks of the grid, threads of a block, blocks of a
            cluster, in x, y and z.
        dynamic_shared_bytes: shared memory of a block, beside the arrays that the PTX
            declares with a size.
        arguments: one for each .param of the entry, little endian and of its size. A
            tensor map is 128 bytes.
        registers: of a thread, as the assembler gave them; None where it is not known.
        config: its compile-time constants, as reports word them.
    """

    kernel: str
    entry: str
    ptx: str
    architecture: int
    grid: Three
    block: Three
    cluster: Three
    dynamic_shared_bytes: int
    arguments: tuple[bytes, ...]
    registers: int | None
    config: str

    @property
    def threads(self) -> int:
        """Of a block."""
        return math.prod(self.block)

    @property
    def blocks(self) -> int:
        """Of the grid."""
        return math.prod(self.grid)

    @property
    def clusters(self) -> int:
        """Of the grid."""
        return self.blocks // math.prod(self.cluster)


@dataclass(frozen=True)
class Entry:
    """What the head of a kernel's PTX says.

    `parameters` are the sizes of its .params in bytes. `required_threads` and
    `most_threads` are of a block, None where nothing is said. `static_shared_bytes` is
    the size of the shared arrays that the whole PTX declares.
    """

    name: str
    parameters: tuple[int, ...]
    required_threads: int | None
    most_threads: int | None
    static_shared_bytes: int


def read_entry(ptx: str) -> Entry:
    """The head of the only kernel of a PTX text.

    Raises:
        ValueError: if it has none, or several.
    """
    found = _ENTRY.findall(ptx)
    if len(found) != 1:
        raise ValueError(f"the PTX has {len(found)} kernels, not one")
    name, parameters, directives = found[0]
    threads = {
        kind: math.prod(int(one) for one in numbers.split(","))
        for kind, numbers in _THREADS.findall(directives)
    }
    sizes = [
        int(one["bits"]) // 8 * int(one["count"] or 1)
        for one in _PARAMETER.finditer(parameters)
    ]
    if len(sizes) != parameters.count(".param"):
        raise ValueError(f"a .param of {name} is in no form that is known here")
    return Entry(
        name,
        tuple(sizes),
        threads.get("reqntid"),
        threads.get("maxntid"),
        sum(
            int(bits) // 8 * math.prod(int(one) for one in re.findall(r"\d+", counts))
            for bits, counts in _SHARED.findall(ptx)
        ),
    )


def require_arguments(launch: KernelLaunch, entry: Entry) -> None:
    """Raise ValueError unless there is an argument of its size for each .param."""
    given = tuple(map(len, launch.arguments))
    if given != entry.parameters:
        raise ValueError(
            f"{launch.kernel} is given arguments of {_listed(given)} bytes, and its PTX "
            f"has .params of {_listed(entry.parameters)}"
        )


def require_launchable(launch: KernelLaunch, entry: Entry) -> None:
    """Raise LaunchRefused if a GPU of the launch's architecture would not start it.

    The limits are those of kernels.architectures and, for the grid, of the CUDA C++
    Programming Guide's "Technical Specifications per Compute Capability".
    """
    target = architectures.known(launch.architecture)
    for why in (
        _why_not_grid(launch),
        _why_not_block(launch, entry, target),
        _why_not_shared(launch, entry, target),
        _why_not_registers(launch, target),
    ):
        if why:
            raise LaunchRefused(f"{launch.kernel} {why}")


def _why_not_grid(launch: KernelLaunch) -> str | None:
    for axis, blocks, most, in_cluster in zip(
        "xyz", launch.grid, _MOST_BLOCKS, launch.cluster
    ):
        if not 0 < blocks <= most:
            return f"has a grid of {blocks} blocks in {axis}: 1 to {most} are allowed"
        if blocks % in_cluster:
            return f"has {blocks} blocks in {axis}, in clusters of {in_cluster}"
    if math.prod(launch.cluster) > _MOST_CLUSTER:
        return f"has clusters of {math.prod(launch.cluster)} blocks: {_MOST_CLUSTER} are allowed"
    return None


def _why_not_block(
    launch: KernelLaunch, entry: Entry, target: Architecture
) -> str | None:
    threads = launch.threads
    if not 0 < threads <= target.threads_per_block:
        return f"has blocks of {threads} threads: 1 to {target.threads_per_block} are allowed"
    if launch.block[2] > 64:
        return f"has blocks of {launch.block[2]} threads in z: 64 are allowed"
    if entry.required_threads not in (None, threads):
        return f"has blocks of {threads} threads, and its PTX requires {entry.required_threads}"
    if entry.most_threads is not None and threads > entry.most_threads:
        return (
            f"has blocks of {threads} threads, and its PTX allows {entry.most_threads}"
        )
    if math.prod(launch.cluster) > 1 and not target.clusters:
        return f"wants clusters, and {target} has none"
    return None


def _why_not_shared(
    launch: KernelLaunch, entry: Entry, target: Architecture
) -> str | None:
    if entry.static_shared_bytes > _STATIC_SHARED_BYTES:
        return (
            f"declares {entry.static_shared_bytes} B of shared arrays: "
            f"{_STATIC_SHARED_BYTES} are allowed"
        )
    shared = entry.static_shared_bytes + launch.dynamic_shared_bytes
    if shared > target.shared_bytes_per_block:
        return (
            f"needs {shared} B of shared memory, and a block of {target} has at most "
            f"{target.shared_bytes_per_block}"
        )
    return None


def _why_not_registers(launch: KernelLaunch, target: Architecture) -> str | None:
    """A warp gets registers in steps, and a block's warps get them from one file."""
    if launch.registers is None:
        return None
    of_warp = _rounded_up(
        launch.registers * target.threads_per_warp, target.register_step
    )
    warps = _rounded_up(launch.threads, target.threads_per_warp)
    needed = of_warp * (warps // target.threads_per_warp)
    if needed > target.registers_per_sm:
        return (
            f"needs {needed} registers for {launch.threads} threads of "
            f"{launch.registers}, and {target} has {target.registers_per_sm}"
        )
    return None


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers)) or "no"
