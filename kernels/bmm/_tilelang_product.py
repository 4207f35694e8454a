"""The product in TileLang's language, and what it is compiled with. It is imported where
it is called.
"""

from dataclasses import dataclass

import tilelang
import tilelang.language as T
from cuda.pathfinder import find_nvidia_header_directory

from batchline.kernels.architectures import Architecture

tilelang.set_log_level("WARNING")  # it has a line for each shape that it compiles


@dataclass(frozen=True)
class Problem:
    """C[B,M,N] of A[B,M,K] and B[B,K,N], dense in memory: `a_transposed` where A lies as
    [B,K,M], `b_transposed` where B lies as [B,N,K], `b_shared` where all entries have
    one B. `dtype` is "float16" or "bfloat16".
    """

    batch: int
    m: int
    n: int
    k: int
    a_transposed: bool
    b_transposed: bool
    b_shared: bool
    dtype: str


@dataclass(frozen=True)
class Tile:
    """The part of C that a block of threads makes, and its steps over K."""

    m: int
    n: int
    k: int
    threads: int
    stages: int


def tile_of(problem: Problem) -> Tile:
    """As large as C fills, and no deeper than K: 64 rows at least, as wgmma has them."""
    m = 128 if problem.m > 64 else 64
    n = 128 if problem.n > 64 else 64
    k = 64 if problem.k > 32 else 32
    return Tile(m, n, k, threads=256 if m * n == 128 * 128 else 128, stages=3)


def program_of(problem: Problem, tile: Tile):
    """The program, for this problem alone: sizes are constants of it."""
    batch, m, n, k = problem.batch, problem.m, problem.n, problem.k
    a_transposed, b_transposed = problem.a_transposed, problem.b_transposed
    a_shape = (batch, k, m) if a_transposed else (batch, m, k)
    b_batch = 1 if problem.b_shared else batch
    b_shape = (b_batch, n, k) if b_transposed else (b_batch, k, n)
    a_tile = (tile.k, tile.m) if a_transposed else (tile.m, tile.k)
    b_tile = (tile.n, tile.k) if b_transposed else (tile.k, tile.n)
    across = -(-n // tile.n)
    tiles = -(-m // tile.m) * across
    shared, dtype = problem.b_shared, problem.dtype

    @T.prim_func
    def product(
        a: T.Tensor(a_shape, dtype),
        b: T.Tensor(b_shape, dtype),
        c: T.Tensor((batch, m, n), dtype),
    ):
        with T.Kernel(batch * tiles, threads=tile.threads) as block:
            entry = block // tiles
            of_b = 0 if shared else entry
            top = block % tiles // across * tile.m
            left = block % across * tile.n
            a_part = T.alloc_shared(a_tile, dtype)
            b_part = T.alloc_shared(b_tile, dtype)
            total = T.alloc_fragment((tile.m, tile.n), "float32")
            T.clear(total)
            for step in T.Pipelined(T.ceildiv(k, tile.k), num_stages=tile.stages):
                if a_transposed:
                    T.copy(a[entry, step * tile.k, top], a_part)
                else:
                    T.copy(a[entry, top, step * tile.k], a_part)
                if b_transposed:
                    T.copy(b[of_b, left, step * tile.k], b_part)
                else:
                    T.copy(b[of_b, step * tile.k, left], b_part)
                T.gemm(a_part, b_part, total, a_transposed, b_transposed)
            T.copy(total, c[entry, top, left])

    return product


def target_for(architecture: Architecture) -> dict[str, str]:
    """What TileLang calls the architecture."""
    return {"kind": "cuda", "arch": f"sm_{architecture.number}{architecture.suffix}"}


def compile_product(problem: Problem, architecture: Architecture):
    """A function of A, B and C as they lie, which writes C; compiled by NVRTC, which
    comes with Numba's CUDA target, so that no nvcc is asked for.
    """
    target = target_for(architecture)
    with tilelang.tvm.target.Target(target):
        return tilelang.compile(
            program_of(problem, tile_of(problem)),
            target=target,
            execution_backend="nvrtc",
            compile_flags=include_flags(),
        )


def include_flags() -> list[str]:
    """Where NVRTC finds CUDA's own headers, in the packages that it came with."""
    found = (find_nvidia_header_directory(name) for name in ("cudart", "cccl"))
    return [f"-I{folder}" for folder in found if folder]
