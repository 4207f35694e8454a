"""LLVM's vectors for Numba's CPU kernels, as wide as the host has: 512 bits with
AVX-512, 256 with AVX2, else 128.
"""

from __future__ import annotations

from batchline.kernels.backends import Absent, numba

if isinstance(numba, Absent):

    def intrinsic(function):
        return function

    FEATURES, types, ir, cgutils = {}, numba, numba, numba
else:
    from llvmlite import binding, ir
    from numba import types  # noqa: F401 (for the files that emit with it)
    from numba.core import cgutils
    from numba.extending import intrinsic  # noqa: F401

    FEATURES = binding.get_host_cpu_features()

VECTOR_BYTES = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx2") else 16


def lanes_of(itemsize: int) -> int:
    """Elements in a vector."""
    return VECTOR_BYTES // itemsize


class Vectors:
    """What is emitted for vectors of `lanes` elements; masks are vectors of bits, and
    what they leave out is zero.
    """

    def __init__(self, module, element, lanes):
        self.module, self.element, self.lanes = module, element, lanes
        self.vector = ir.VectorType(element, lanes)
        self.pointer, self.word, self.bit = (
            element.as_pointer(),
            ir.IntType(64),
            ir.IntType(1),
        )
        self.zero = ir.Constant(self.vector, None)
        self.bytes = 4 if isinstance(element, ir.FloatType) else 8
        self.name = f"v{lanes}f{8 * self.bytes}"

    def function(self, name, arguments, inlining="noinline"):
        """A function of its own in this module, so that what calls it in several places
        holds it once.
        """
        function = ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), arguments), name
        )
        function.linkage = "internal"
        function.attributes.add(inlining)
        return function

    def first(self, build, count):
        """The mask of the first `count` lanes."""
        wide = ir.VectorType(ir.IntType(32), self.lanes)
        limit = build.trunc(count, ir.IntType(32))
        iota = ir.Constant(wide, list(range(self.lanes)))
        return build.icmp_signed("<", iota, self._splat(build, limit, wide))

    def load(self, build, address, mask=None):
        address = build.bitcast(address, self.vector.as_pointer())
        if mask is None:
            return build.load(address, align=self.bytes)
        bits = ir.VectorType(self.bit, self.lanes)
        load = self._declared(
            f"llvm.masked.load.{self.name}.p0",
            self.vector,
            [address.type, ir.IntType(32), bits, self.vector],
        )
        return build.call(load, [address, ir.IntType(32)(self.bytes), mask, self.zero])

    def store(self, build, value, address, mask=None):
        address = build.bitcast(address, self.vector.as_pointer())
        if mask is None:
            return build.store(value, address, align=self.bytes)
        bits = ir.VectorType(self.bit, self.lanes)
        store = self._declared(
            f"llvm.masked.store.{self.name}.p0",
            ir.VoidType(),
            [self.vector, address.type, ir.IntType(32), bits],
        )
        return build.call(store, [value, address, ir.IntType(32)(self.bytes), mask])

    def load_wide(self, build, address, stored, mask=None):
        """A vector of numbers from an integer address where they lie as `stored`:
        "float16" and "bfloat16" widened.
        """
        if stored not in ("float16", "bfloat16"):
            return self.load(build, build.inttoptr(address, self.pointer), mask)
        half, word = ir.IntType(16), ir.IntType(32)
        bits = ir.VectorType(half, self.lanes)
        pointer = build.inttoptr(address, bits.as_pointer())
        if mask is None:
            loaded = build.load(pointer, align=2)
        else:
            load = self._declared(
                f"llvm.masked.load.v{self.lanes}i16.p0",
                bits,
                [pointer.type, word, ir.VectorType(self.bit, self.lanes), bits],
            )
            loaded = build.call(load, [pointer, word(2), mask, ir.Constant(bits, None)])
        if stored == "float16":
            return build.fpext(
                build.bitcast(loaded, ir.VectorType(ir.HalfType(), self.lanes)),
                self.vector,
            )
        wide = ir.VectorType(word, self.lanes)
        upper = build.shl(
            build.zext(loaded, wide), ir.Constant(wide, [16] * self.lanes)
        )  # bf16 is half a float32
        return build.bitcast(upper, self.vector)

    def prefetch(self, build, address):
        """Ask for the line at an integer address; nothing happens where there is none."""
        pointer, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = self._declared(
            "llvm.prefetch.p0", ir.VoidType(), [pointer, word, word, word]
        )
        build.call(
            function, [build.inttoptr(address, pointer), word(0), word(2), word(1)]
        )

    def total(self, build, vector):
        """The sum of a vector's lanes, by halves."""
        width = self.lanes
        while width > 1:
            width //= 2
            upper = self.shuffle(
                build,
                vector,
                vector,
                [(lane + width) % self.lanes for lane in range(self.lanes)],
            )
            vector = build.fadd(vector, upper)
        return build.extract_element(vector, ir.IntType(32)(0))

    def splat(self, build, value):
        return self._splat(build, value, self.vector)

    def _splat(self, build, value, vector):
        first = build.insert_element(
            ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0)
        )
        return self.shuffle(build, first, first, [0] * self.lanes)

    def shuffle(self, build, one, other, lanes):
        return build.shuffle_vector(
            one, other, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
        )

    def multiply_add(self, build, one, other, total):
        function = self._declared(
            f"llvm.fmuladd.{self.name}", self.vector, [self.vector] * 3
        )
        return build.call(function, [one, other, total])

    def _declared(self, name, result, arguments):
        return cgutils.get_or_insert_function(
            self.module, ir.FunctionType(result, arguments), name
        )
