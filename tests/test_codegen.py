"""Every GPU variant compiles for every architecture with no GPU, and matrix products use the tensor cores."""
import pytest

import kernels
from bench.measure import codegen


def _gpu_variants():
    for op in kernels.ops.values():
        for variant in op.variants.values():
            if codegen.why_cannot_compile(variant.backend) is None:
                for dtype in variant.dtypes:
                    yield pytest.param(variant, dtype, id=f"{variant.id}-{dtype}")


@pytest.mark.parametrize("architecture", codegen.ARCHITECTURES, ids=lambda number: f"sm_{number}")
@pytest.mark.parametrize("variant, dtype", list(_gpu_variants()))
def test_variant_compiles(variant, dtype, architecture):
    inputs = variant.op.make_inputs(*variant.op.example, dtype, "cpu")
    compiled = codegen.compile_variant(variant, inputs, architecture)
    assert all(0 < kernel.registers <= 255 for kernel in compiled)
    if variant.backend == "triton" and variant.op.name == "bmm" and dtype in ("float16", "bfloat16"):
        expected = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}[architecture]
        assert {kernel.matrix_instruction for kernel in compiled} == {expected}


def test_a_kernel_that_does_not_compile_is_a_row(monkeypatch):
    variant = kernels.ops["bmm"].variants["triton_tiled"]

    def broken(*_):
        raise TypeError("no such thing\nand a long tail")

    monkeypatch.setattr(codegen, "compile_variant", broken)
    rows = list(codegen.facts_of(variant, ("float16", "float64")))
    assert [row["architecture"] for row in rows] == list(codegen.ARCHITECTURES)  # float64 is none of its dtypes
    assert {row["error"] for row in rows} == {"TypeError: no such thing"}


def test_a_compiling_process_that_dies_costs_only_what_it_had_not_compiled():
    rows, incomplete = codegen.compile_in_own_process(["grad_reduce/triton_two_stage", "bmm/no_such"], ["float32"])
    assert len(rows) == 2 * len(codegen.ARCHITECTURES)  # two launches each
    assert incomplete == "the compiling process failed: KeyError: 'no_such'"


def test_cpu_variants_are_refused():
    variant = kernels.ops["bmm"].variants["torch_bmm"]
    with pytest.raises(ValueError, match="no GPU kernel"):
        codegen.compile_variant(variant, (), 90)


def test_patches_are_taken_back():
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction
    before = JITFunction.run, driver._active
    variant = kernels.ops["grad_reduce"].variants["triton_two_stage"]
    codegen.compile_variant(variant, variant.op.make_inputs("layer_norm", 8, "float32", "cpu"), 90)
    assert (JITFunction.run, driver._active) == before
