"""What Numba's CPU kernels compile to on this machine: the register tiles stay in
registers, and every lane works.
"""

import re

import pytest
import torch

from batchline.kernels import backends
from batchline.kernels._cpu.lanes import FEATURES, VECTOR_BYTES
from batchline.kernels._cpu.vectors import TILE_ROWS, TILE_VECTORS

pytestmark = [
    pytest.mark.skipif(
        backends.why_absent("numba_cpu") is not None, reason="Numba is not installed"
    ),
    pytest.mark.skipif(
        not FEATURES.get("fma") or VECTOR_BYTES < 32,
        reason="a CPU without AVX2 and FMA",
    ),
]
REGISTER = {64: "zmm", 32: "ymm"}.get(VECTOR_BYTES)
DTYPES = ((torch.float32, 4), (torch.float64, 8))


def _functions(compiled) -> dict[str, list[str]]:
    """name → instructions and labels, of everything that was compiled with a kernel."""
    functions, current = {}, []
    for line in compiled._library.get_asm_str().splitlines():
        label = re.match(r"([\w.$]+):", line)
        if label and not line.startswith(".L"):
            current = functions.setdefault(label[1], [])
        else:
            current.append(line.strip())
    return functions


def _hot_loop(instructions: list[str]) -> list[str]:
    """The innermost loop with the most multiply-adds."""
    labels = {
        line[:-1]: place
        for place, line in enumerate(instructions)
        if re.fullmatch(r"\.L\w+:", line)
    }
    loops = []
    for place, line in enumerate(instructions):
        jump = re.fullmatch(r"j\w+\s+(\.L\w+)", line)
        if jump and labels.get(jump[1], place) < place:
            loops.append(instructions[labels[jump[1]] : place + 1])
    innermost = [
        loop
        for loop in loops
        if not any(other is not loop and other[0] in loop for other in loops)
    ]
    return max(innermost, key=lambda loop: len(_multiply_adds(loop)))


def _multiply_adds(instructions: list[str], register: str = "") -> list[str]:
    return [
        line
        for line in instructions
        if line.startswith("vfmadd") and re.search(rf"%{register}\w*\d+$", line)
    ]


def _stores(instructions: list[str]) -> list[str]:
    return [
        line for line in instructions if re.match(r"vmov\w+\s+%[xyz]mm\d+, .*\(", line)
    ]


@pytest.fixture(scope="module", params=DTYPES, ids=("float32", "float64"))
def blocked(request):
    from batchline.kernels.bmm import numba_cpu_blocked

    return _functions(numba_cpu_blocked._compiled(*request.param))


@pytest.mark.parametrize("rows", range(1, TILE_ROWS + 1))
@pytest.mark.parametrize("vectors", range(1, TILE_VECTORS + 1))
def test_a_tile_keeps_its_sums_in_registers(blocked, rows, vectors):
    """A step is rows x vectors multiply-adds on registers of their own, `vectors` loads
    of B, and no store.
    """
    (name,) = (
        name
        for name in blocked
        if name.startswith("tile_") and name.endswith(f"_{rows}x{vectors}")
    )
    loop = _hot_loop(blocked[name])
    sums = _multiply_adds(loop, REGISTER)
    assert len(sums) == len(_multiply_adds(loop))
    steps = len(sums) // (rows * vectors)
    assert steps >= 1 and len(sums) == steps * rows * vectors
    assert len({line.rpartition("%")[2] for line in sums}) >= rows * vectors
    assert not _stores(loop)
    loads = [line for line in loop if re.match(r"v\w+\s.*\(", line)]
    assert not any("(%rsp)" in line for line in loads)
    assert len(loads) <= steps * (rows + vectors)


def test_a_block_is_transposed_by_shuffles(blocked):
    (name,) = (name for name in blocked if name.startswith("transpose_"))
    lanes = int(re.search(r"v(\d+)f", name)[1])
    shuffles = [
        line
        for line in blocked[name]
        if re.match(r"v(perm|unpck|shuf|insert|blend|movs|movddup)", line)
    ]
    assert len(shuffles) <= 2 * lanes * (lanes.bit_length() - 1)


@pytest.mark.parametrize("size", (4, 8, 16, 32))
def test_a_tiny_product_has_no_multiply_add_to_spare(size):
    """Of vectors as wide as N, with the sums in registers; up to 8x8 no loop is left
    but the one over the batch.
    """
    from batchline.kernels.bmm import numba_cpu_tiny

    functions = _functions(
        numba_cpu_tiny._compiled(torch.float32, size, size, size, size, 1, size, 1)
    )
    (body,) = (lines for lines in functions.values() if _multiply_adds(lines))
    lanes = min(size, VECTOR_BYTES // 4)
    register = {4: "xmm", 8: "ymm", 16: "zmm"}[lanes]
    assert len(_multiply_adds(body, register)) == len(_multiply_adds(body))
    if size <= 8:
        assert len(_multiply_adds(body)) == size * size
        assert len(_stores(body)) == size
    else:
        assert not _stores(_hot_loop(body))
