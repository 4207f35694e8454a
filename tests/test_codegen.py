"""GPU variants compile with no GPU; their facts are pinned; the shipped ones spill
nothing and use the tensor cores.
"""

import re
import subprocess
import tempfile

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.compiled import compiler, pins, sass, static_facts
from batchline.bench.measure.reading.sources import files_of
from batchline.kernels.architectures import PINNED as PINNED_FOR
from batchline.kernels.op import Op
from batchline.kernels.target import compiling_for
from tests.plans import declared
from tests.test_records import compiled_row

PINNED = {job: entry["kernels"] for job, entry in pins.load().items()}
ROWS = [row for rows in PINNED.values() for row in rows]
COMPILED = [row for row in ROWS if "declined" not in row]
NOT_PINNED = f"nothing is pinned for {pins.toolchain()}"
JOB = ("grad_reduce/triton_two_stage", "float32")


def _gpu_variants():
    return [
        variant
        for op in kernels.ops.values()
        for variant in op.variants.values()
        if variant.backend in ("triton", "numba_cuda")
    ]


@pytest.mark.skipif(not ROWS, reason=NOT_PINNED)
def test_every_gpu_variant_is_pinned_with_the_sources_that_it_has():
    stale = [
        job
        for job in static_facts.jobs(declared())
        if not static_facts.is_current(job, pins.load())
    ]
    assert not stale, "run `make codegen PIN=1` and look at what moved"
    assert set(PINNED) == set(static_facts.jobs(declared()))


@pytest.mark.skipif(not ROWS, reason=NOT_PINNED)
def test_every_variant_compiles_or_is_declined_for_every_architecture():
    for job, rows in PINNED.items():
        found = {row["architecture"] for row in rows if row["example"]}
        assert found == set(static_facts.architectures_for(job[1])), job
    assert not [row for row in ROWS if "error" in row]


@pytest.mark.skipif(not ROWS, reason=NOT_PINNED)
def test_only_what_needs_tma_or_wgmma_is_declined_and_only_where_there_is_none():
    assert {
        (row["variant"], row["architecture"]) for row in ROWS if "declined" in row
    } == {
        *(
            (f"bmm/{name}", number)
            for name in (
                "gluon_3xbf16",
                "gluon_6xbf16",
                "gluon_cluster",
                "gluon_ping_pong",
            )
            for number in (80, 100)
        ),
        *(
            (f"bmm/{name}", number)
            for name in ("gluon_pair", "gluon_tcgen05")
            for number in (80, 90)
        ),
        ("bmm_mxfp8/gluon_block_scaled", 90),  # sm_80 has no tensor cores for fp8
        ("wgrad_stats/gluon_fused", 80),
        ("wgrad_stats/gluon_fused", 100),
        ("bmm/triton_persistent_tma", 80),
        ("bmm/triton_warp_specialized", 80),
    }


@pytest.mark.skipif(not ROWS, reason=NOT_PINNED)
def test_no_configuration_shipped_for_sm_90_spills():
    assert not [
        row
        for row in COMPILED
        if row["architecture"] == 90 and (row["spills"] or row["stack_bytes"])
    ]


@pytest.mark.skipif(not ROWS, reason=NOT_PINNED)
@pytest.mark.parametrize(
    "architecture, instruction",
    [(80, "mma.sync"), (90, "wgmma.mma_async"), (100, "tcgen05.mma")],
)
def test_products_of_bf16_and_fp16_use_the_tensor_cores(architecture, instruction):
    """Of the Triton rungs of bmm; the one for tiny matrices says itself why it takes
    the smaller instruction.
    """
    products = [
        row
        for row in COMPILED
        if row["example"]
        and row["architecture"] == architecture
        and row["variant"].startswith("bmm/triton_")
        and (
            row["dtype"] in ("float16", "bfloat16") or row["variant"] in FP32_FROM_BF16
        )
        and row["variant"] not in WITHOUT_LARGE_TILES
        and "_sum" not in row["kernel"]
    ]
    assert products
    assert {
        row["variant"] for row in products if row["matrix_instruction"] != instruction
    } == set()


FP32_FROM_BF16 = ("bmm/triton_3xbf16", "bmm/triton_6xbf16")
WITHOUT_LARGE_TILES = ("bmm/triton_packed",)


@pytest.mark.parametrize("variant", _gpu_variants(), ids=lambda variant: variant.id)
def test_a_variants_example_is_one_that_it_takes(variant):
    inputs = variant.op.make_inputs(*variant.example, variant.dtypes[0], "meta")
    taken = []
    for architecture in PINNED_FOR:
        with compiling_for(architecture):
            if variant.why_unsupported(*inputs) is None:
                taken.append(architecture)
    assert taken


def test_compiling_gives_the_facts_of_each_launch():
    variant = kernels.ops["grad_reduce"].variants["triton_two_stage"]
    inputs = variant.op.make_inputs("layer_norm", 8, "float16", "cpu")
    rows = compiler.compile_variant(variant, inputs, 90)
    assert len(rows) == 2
    assert all(
        16 <= row.registers <= 255
        and row.threads % 32 == 0
        and row.loads
        and row.stores
        for row in rows
    )
    assert all("ROWS=" in row.config and "warps" in row.config for row in rows)


def test_a_launch_that_was_seen_is_not_compiled_again():
    variant = kernels.ops["grad_reduce"].variants["triton_two_stage"]
    inputs = variant.op.make_inputs("layer_norm", 8, "float16", "cpu")
    seen = set()
    assert len(compiler.compile_variant(variant, inputs, 90, seen)) == 2
    assert compiler.compile_variant(variant, inputs, 90, seen) == []


def test_a_kernel_that_does_not_compile_is_a_row(monkeypatch):
    variant = kernels.ops["grad_reduce"].variants["triton_two_stage"]

    def broken(*_):
        raise TypeError("no such thing\nand a long tail")

    monkeypatch.setattr(compiler, "launches_of", broken)
    rows = list(static_facts.rows_of(variant, "float16"))
    assert [row["architecture"] for row in rows if row["example"]] == list(PINNED_FOR)
    assert {row["error"] for row in rows} == {"TypeError: no such thing"}


@pytest.mark.commands
def test_each_job_is_compiled_once_and_one_that_fails_costs_no_other(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = static_facts.compiled([JOB, ("grad_reduce/no_such", "float32")])
    assert set(found.rows) == {JOB} and found.cached == 0
    assert found.incomplete == "grad_reduce/no_such float32: KeyError: 'no_such'"
    assert found.rows[JOB] == PINNED.get(JOB, found.rows[JOB])
    monkeypatch.setattr(
        static_facts.compile_pool,
        "each",
        lambda work, jobs: pytest.fail(f"compiles {jobs}"),
    )
    again = static_facts.compiled([JOB])
    assert (again.rows, again.cached, again.incomplete) == (
        {JOB: found.rows[JOB]},
        1,
        None,
    )


def test_another_source_or_toolchain_is_compiled_anew(monkeypatch):
    key = pins.key(JOB, "sources")
    assert key == pins.key(JOB, "sources")
    assert (
        key
        != pins.key(JOB, "others")
        != pins.key(("grad_reduce/other", "float32"), "sources")
    )
    monkeypatch.setattr(pins, "toolchain", lambda: dict.fromkeys(pins.TOOLS, "0"))
    assert key != pins.key(JOB, "sources")


def test_what_is_kept_is_given_back_and_what_is_damaged_is_not(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert pins.load_cached("key") is None
    pins.store("key", [compiled_row()])
    assert pins.load_cached("key") == [compiled_row()]
    file = pins.cache_folder() / "key.json"
    file.write_text(file.read_text().replace('"registers": 110', '"registers": 111'))
    assert pins.load_cached("key") is None
    (tmp_path / "a_file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a_file"))
    pins.store("key", [compiled_row()])
    assert pins.load_cached("key") is None


def test_what_does_not_compile_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    broken = [({"variant": JOB[0], "dtype": JOB[1], "error": "MemoryError: "}, None)]
    monkeypatch.setattr(
        static_facts.compile_pool, "each", lambda work, jobs: ({JOB: broken}, [])
    )
    assert static_facts.compiled([JOB]).rows == {JOB: [broken[0][0]]}
    assert static_facts.compiled([JOB]).cached == 0


def _entry(job, row):
    return {"sources": static_facts.fingerprint(job[0]), "kernels": [row]}


def test_what_is_pinned_for_these_sources_is_not_compiled(monkeypatch, tmp_path):
    monkeypatch.setattr(pins, "folder", lambda: tmp_path)
    pins.save({JOB: _entry(JOB, compiled_row(registers=7))})
    monkeypatch.setattr(
        static_facts.compile_pool,
        "each",
        lambda work, jobs: pytest.fail(f"compiles {jobs}"),
    )
    found = static_facts.facts([JOB])
    assert (found.rows, found.pinned, found.compiled) == (
        [compiled_row(registers=7)],
        1,
        0,
    )


def _compiles(rows):
    return lambda wanted: static_facts.Compilation(
        {job: rows for job in wanted}, 0, None
    )


def test_changed_sources_are_compiled_anew(monkeypatch, tmp_path):
    monkeypatch.setattr(pins, "folder", lambda: tmp_path)
    pins.save({JOB: _entry(JOB, compiled_row(registers=7))})
    monkeypatch.setattr(static_facts, "fingerprint", lambda variant: "another")
    monkeypatch.setattr(static_facts, "compiled", _compiles([compiled_row()]))
    assert static_facts.facts([JOB]).rows == [compiled_row()]


def test_pins_that_cannot_be_believed_end_no_run(monkeypatch, tmp_path):
    monkeypatch.setattr(pins, "folder", lambda: tmp_path)
    file = pins.save({JOB: _entry(JOB, compiled_row(registers=7))})
    file.write_text(file.read_text()[:-20])
    monkeypatch.setattr(static_facts, "compiled", _compiles([compiled_row()]))
    found = static_facts.facts([JOB])
    assert (found.rows, found.pinned, found.compiled) == ([compiled_row()], 0, 1)
    assert found.incomplete.startswith(
        f"compiled anew, because {file.name} is damaged ("
    )


def test_a_fingerprint_holds_every_file_that_a_variant_imports():
    variant = kernels.ops["bmm"].variants["triton_tiled"]
    names = {
        path.relative_to(static_facts._REPOSITORY).as_posix()
        for path in files_of(variant)
    }
    assert {
        "kernels/bmm/triton_tiled.py",
        "kernels/bmm/__init__.py",
        "kernels/op.py",
        "kernels/backends.py",
    } <= names
    assert not any(name.startswith("kernels/grad_reduce") for name in names)
    assert len(static_facts.fingerprint(variant.id)) == 16


@pytest.mark.commands
def test_launches_read_at_once_are_as_the_disassembler_lists_each_alone():
    variant = kernels.ops["grad_reduce"].variants["triton_two_stage"]
    inputs = variant.op.make_inputs("layer_norm", 8, "float16", "cpu")
    launches = [
        launch
        for architecture in PINNED_FOR
        for launch in compiler.launches_of(variant, inputs, architecture)
    ]
    assert len({launch.cubin for launch in launches}) == 6
    for launch, facts in zip(launches, compiler.read(launches), strict=True):
        names, code_bytes = _listed(launch.cubin)
        assert facts.architecture == launch.architecture
        assert facts.code_bytes == code_bytes
        assert (
            facts.barriers
            == sum(name.startswith(("BAR.", "SYNCS.")) for name in names)
            > 0
        )
        assert (
            sum(facts.loads.values())
            == sum(name.startswith("LDG.") for name in names)
            > 0
        )
        assert (
            sum(facts.stores.values())
            == sum(name.startswith("STG.") for name in names)
            > 0
        )


def _listed(cubin):
    """The instructions of a cubin and the bytes of its code, 16 an instruction."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [sass._bundled("cuobjdump"), "--dump-sass", file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    found = re.findall(
        r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!PT\s)?(?:@!?\w+\s+)?([A-Z][\w.]+)",
        text,
        re.MULTILINE,
    )
    return [name for _, never, name in found if not never], int(found[-1][0], 16) + 16


def test_what_is_no_cubin_is_refused():
    with pytest.raises(ValueError, match="not a cubin"):
        sass.read([b"no cubin"], 90)
    with pytest.raises(
        ValueError, match="sm_75 is none of sm_80, sm_86, sm_89, sm_90, sm_100, sm_120"
    ):
        sass.read([], 75)
    assert sass.read([], 90) == []


def test_cpu_variants_are_refused():
    variant = kernels.ops["bmm"].variants["torch_bmm"]
    with pytest.raises(ValueError, match="no GPU kernel"):
        compiler.compile_variant(variant, (), 90)


def test_patches_are_taken_back():
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    before = JITFunction.run, driver._active
    variant = kernels.ops["grad_reduce"].variants["triton_two_stage"]
    compiler.compile_variant(
        variant, variant.op.make_inputs("layer_norm", 8, "float32", "cpu"), 90
    )
    assert (JITFunction.run, driver._active) == before


def test_a_launcher_that_launches_nothing_is_an_error():
    variant = kernels.ops["grad_reduce"].variants["triton_two_stage"]
    assert isinstance(variant.op, Op)
    with pytest.raises(RuntimeError, match="launched no kernel"):
        compiler.compile_variant(variant, (torch.empty(3, 0),), 90)


@pytest.mark.skipif(not ROWS, reason=NOT_PINNED)
def test_warp_specialisation_engages_where_the_report_says_so():
    engaged = {
        (row["variant"], row["architecture"])
        for row in COMPILED
        if row["warp_specialized"]
    }
    assert engaged == {
        ("bmm/gluon_cluster", 90),
        ("bmm/gluon_pair", 100),
        ("bmm/gluon_ping_pong", 90),
        ("bmm/gluon_tcgen05", 100),
        ("bmm/triton_warp_specialized", 90),
        ("bmm/triton_warp_specialized", 100),
        ("bmm_mxfp8/gluon_block_scaled", 100),
        ("wgrad_stats/gluon_fused", 90),
    }
