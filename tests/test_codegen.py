"""GPU variants compile with no GPU; their facts are pinned; the shipped ones spill nothing and use the tensor cores."""
import pytest
import torch

import kernels
from bench import codegen as command
from bench.measure import codegen, static_facts
from kernels.op import Op
from tests.test_records import compiled_row

PINNED = {job: entry["kernels"] for job, entry in static_facts.pinned().items()}
ROWS = [row for rows in PINNED.values() for row in rows]
NOT_PINNED = f"nothing is pinned for {static_facts.toolchain()}"


def _gpu_variants():
    return [variant for op in kernels.ops.values() for variant in op.variants.values()
            if variant.backend in ("triton", "numba_cuda")]


@pytest.mark.skipif(not ROWS, reason=NOT_PINNED)
def test_every_gpu_variant_is_pinned_with_the_sources_that_it_has():
    stale = [job for job in static_facts.jobs() if not static_facts.is_current(job, static_facts.pinned())]
    assert not stale, "run `make codegen PIN=1` and look at what moved"
    assert set(PINNED) == set(static_facts.jobs())


@pytest.mark.skipif(not ROWS, reason=NOT_PINNED)
def test_every_variant_compiles_for_every_architecture():
    for job, rows in PINNED.items():
        found = {row["architecture"] for row in rows if row["example"]}
        assert found == set(static_facts.architectures_for(job[1])), job
    assert not [row for row in ROWS if "error" in row]


@pytest.mark.skipif(not ROWS, reason=NOT_PINNED)
def test_no_configuration_shipped_for_sm_90_spills():
    assert not [row for row in ROWS if row["architecture"] == 90 and (row["spills"] or row["stack_bytes"])]


@pytest.mark.skipif(not ROWS, reason=NOT_PINNED)
@pytest.mark.parametrize("architecture, instruction", [(80, "mma.sync"), (90, "wgmma.mma_async"), (100, "tcgen05.mma")])
def test_products_of_bf16_and_fp16_use_the_tensor_cores(architecture, instruction):
    """Of the Triton rungs of bmm; the one for tiny matrices says itself why it takes the smaller instruction."""
    products = [row for row in ROWS if row["example"] and row["architecture"] == architecture
                and row["variant"].startswith("bmm/triton_")
                and (row["dtype"] in ("float16", "bfloat16") or row["variant"] in FP32_FROM_BF16)
                and row["variant"] not in WITHOUT_LARGE_TILES and "_sum" not in row["kernel"]]
    assert products
    assert {row["variant"] for row in products if row["matrix_instruction"] != instruction} == set()


FP32_FROM_BF16 = ("bmm/triton_3xbf16", "bmm/triton_6xbf16")
WITHOUT_LARGE_TILES = ("bmm/triton_packed",)


@pytest.mark.parametrize("variant", _gpu_variants(), ids=lambda variant: variant.id)
def test_a_variants_example_is_one_that_it_takes(variant):
    dtype = variant.dtypes[0]
    assert variant.why_unsupported(*variant.op.make_inputs(*variant.example, dtype, "meta")) is None


def test_compiling_gives_the_facts_of_each_launch():
    variant = kernels.ops["grad_reduce"].variants["triton_two_stage"]
    inputs = variant.op.make_inputs("layer_norm", 8, "float16", "cpu")
    rows = codegen.compile_variant(variant, inputs, 90)
    assert len(rows) == 2
    assert all(16 <= row.registers <= 255 and row.threads % 32 == 0 and row.loads and row.stores for row in rows)
    assert all("ROWS=" in row.config and "warps" in row.config for row in rows)


def test_a_launch_that_was_seen_is_not_compiled_again():
    variant = kernels.ops["grad_reduce"].variants["triton_two_stage"]
    inputs = variant.op.make_inputs("layer_norm", 8, "float16", "cpu")
    seen = set()
    assert len(codegen.compile_variant(variant, inputs, 90, seen)) == 2
    assert codegen.compile_variant(variant, inputs, 90, seen) == []


def test_a_kernel_that_does_not_compile_is_a_row(monkeypatch):
    variant = kernels.ops["grad_reduce"].variants["triton_two_stage"]

    def broken(*_):
        raise TypeError("no such thing\nand a long tail")

    monkeypatch.setattr(codegen, "compile_variant", broken)
    rows = list(static_facts.rows_of(variant, "float16"))
    assert [row["architecture"] for row in rows if row["example"]] == list(static_facts.ARCHITECTURES)
    assert {row["error"] for row in rows} == {"TypeError: no such thing"}


def test_a_compiling_process_that_dies_costs_only_what_it_had_not_compiled():
    jobs = [("grad_reduce/triton_two_stage", "float32"), ("grad_reduce/no_such", "float32")]
    rows, incomplete = static_facts.compile_in_own_processes(jobs)
    assert set(rows) == {jobs[0]}
    assert incomplete == "a compiling process failed: KeyError: 'no_such'"


def _entry(job, row):
    return {"sources": static_facts.fingerprint(static_facts.variant_of(job[0])), "kernels": [row]}


def test_what_is_pinned_for_these_sources_is_not_compiled(monkeypatch, tmp_path):
    monkeypatch.setattr(static_facts, "_FOLDER", tmp_path)
    job = ("grad_reduce/triton_two_stage", "float32")
    static_facts.pin({job: _entry(job, compiled_row(registers=7))})
    monkeypatch.setattr(static_facts, "compile_in_own_processes", lambda jobs: pytest.fail(f"compiles {jobs}"))
    found = static_facts.facts([job])
    assert (found.rows, found.pinned, found.compiled) == ([compiled_row(registers=7)], 1, 0)


def test_changed_sources_are_compiled_anew(monkeypatch, tmp_path):
    monkeypatch.setattr(static_facts, "_FOLDER", tmp_path)
    job = ("grad_reduce/triton_two_stage", "float32")
    static_facts.pin({job: _entry(job, compiled_row(registers=7))})
    monkeypatch.setattr(static_facts, "fingerprint", lambda variant: "another")
    monkeypatch.setattr(static_facts, "compile_in_own_processes", lambda jobs: ({job: [compiled_row()]}, None))
    assert static_facts.facts([job]).rows == [compiled_row()]


def test_another_toolchain_has_no_pins(monkeypatch, tmp_path):
    monkeypatch.setattr(static_facts, "_FOLDER", tmp_path)
    job = ("grad_reduce/triton_two_stage", "float32")
    static_facts.pin({job: _entry(job, compiled_row())})
    monkeypatch.setattr(static_facts, "toolchain", lambda: {**dict.fromkeys(static_facts._TOOLS, "0")})
    assert static_facts.pinned() == {}


def test_a_fingerprint_holds_every_file_that_a_variant_imports():
    variant = kernels.ops["bmm"].variants["triton_tiled"]
    start = static_facts._REPOSITORY / "kernels" / "bmm" / "triton_tiled.py"
    names = {path.relative_to(static_facts._REPOSITORY).as_posix() for path in static_facts._sources(start)}
    assert {"kernels/bmm/triton_tiled.py", "kernels/bmm/__init__.py", "kernels/op.py", "kernels/backends.py"} <= names
    assert not any(name.startswith("kernels/grad_reduce") for name in names)
    assert len(static_facts.fingerprint(variant)) == 16


def test_what_moved_is_named_with_its_consequence():
    before = [compiled_row(), compiled_row(dtype="bfloat16"), compiled_row(architecture=80)]
    after = [compiled_row(registers=168), compiled_row(dtype="bfloat16"), compiled_row(architecture=100)]
    assert list(command.differences(before, before)) == []
    moved = list(command.differences(before, after))
    assert moved[0] == ("bmm/triton_tiled float16 tiny_16/B4 sm_90 _kernel (BLOCK_M=128, 8 warps, 3 stages): "
                        "registers 110 → 168, occupancy 25% → 12%")
    assert [line.rpartition(": ")[2] for line in moved[1:]] == ["gone", "new"]


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


def test_a_launcher_that_launches_nothing_is_an_error():
    variant = kernels.ops["grad_reduce"].variants["triton_two_stage"]
    assert isinstance(variant.op, Op)
    with pytest.raises(RuntimeError, match="launched no kernel"):
        codegen.compile_variant(variant, (torch.empty(3, 0),), 90)


@pytest.mark.skipif(not ROWS, reason=NOT_PINNED)
def test_warp_specialisation_engages_where_the_report_says_so():
    engaged = {(row["variant"], row["architecture"]) for row in ROWS if row["warp_specialized"]}
    assert engaged == {("bmm/triton_warp_specialized", 90), ("bmm/triton_warp_specialized", 100)}
