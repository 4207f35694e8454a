"""What is the same for all lanes of a warp, said to the compiler."""

from batchline.kernels.backends import interpreted, tl, triton

ASSEMBLED = not interpreted("triton")


@triton.jit
def of_the_warp(number, ASSEMBLED: tl.constexpr):
    """The first lane's int32, which all lanes have: said to the compiler, so that a
    branch on it, or on what is loaded by it, parts no warp. Triton's interpreter knows
    no assembly.
    """
    if ASSEMBLED:
        number = tl.inline_asm_elementwise(
            "shfl.sync.idx.b32 $0, $1, 0, 31, -1;",
            "=r,r",
            [number],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    return number
