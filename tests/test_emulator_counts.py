"""Counts of the emulator move when a kernel does more, and name the line that does it;
what is pinned of them comes back as it was.
"""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from batchline import kernels
from batchline.bench.commands import _executed_pins
from batchline.bench.declared import BrokenFile, Catalogue
from batchline.bench.errors import ExitCode
from batchline.bench.measure.compiled import pins, static_facts
from batchline.bench.measure.compiled.compiler import why_cannot_compile
from batchline.bench.measure.emulated import counted, filling, pinned
from batchline.bench.measure.emulator import ptx
from batchline.bench.measure.emulator.counts import Product, product_of
from batchline.bench.stats.prediction import CountedCall, LaunchCounts
from batchline.bench.statuses import FAILED
from batchline.bench.store.files import SealBroken
from batchline.bench.verdicts import executed_changes
from batchline.bench.verdicts.compiled_changes import WORSE

JOB = ("grad_reduce/triton_two_stage", "float16")
# A change of a kernel: the variant, its problem, what is replaced by what, the fact that
# must move, what must be said, and the new text of the line that must be named.
PLANTED = {
    "one column stride more": (
        "grad_reduce/triton_two_stage",
        ("layer_norm", 8),
        [("columns[None, :] * stride_gp", "columns[None, :] * 2 % P * stride_gp")],
        "sectors",
        "1.00x → 1.67x of the fewest",
        "g_ptr + rows * stride_gb",
    ),
    "an order that reads twice": (
        "grad_reduce/triton_two_stage",
        ("layer_norm", 8),
        [("range(first, end, ROWS)", "range(first, end, ROWS // 2)")],
        "bytes read",
        "1.00x → ",
        "g_ptr + rows * stride_gb",
    ),
    "a lost vector load": (
        "grad_reduce/triton_two_stage",
        ("layer_norm", 8),
        [("@triton.jit\n", '@triton.jit(do_not_specialize=["stride_gp"])\n')],
        "executed instructions",
        "load ",
        "g_ptr + rows * stride_gb",
    ),
    "a bank conflict": (
        "bmm/numba_cuda_tiled",
        ("square_64", 2),
        [("tile_b[y, x]", "tile_b[x, y]"), ("tile_b[k, x]", "tile_b[x, k]")],
        "shared-memory passes",
        " of the fewest",
        "total += tile_a[y, k] * tile_b[x, k]",
    ),
}


def changed_copy(variant, folder, replacements):
    """The variant with another text of its file."""
    text = variant.file.read_text()
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    op = variant.op.name
    file = folder / variant.file.name
    file.write_text(text.replace(f"@{op}.variant(", "@planted.variant("))
    spec = importlib.util.spec_from_file_location(f"planted_{variant.name}", file)
    module = importlib.util.module_from_spec(spec)
    module.planted = SimpleNamespace(variant=lambda **declared: lambda one: one)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function = getattr(module, variant.name)
    return dataclasses.replace(variant, function=function), file


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_change_moves_a_count_and_its_line_is_named(name, tmp_path):
    variant_id, example, replacements, fact, said, line = PLANTED[name]
    variant = static_facts.variant_of(variant_id)
    if why := why_cannot_compile(variant.backend):
        pytest.skip(why)
    variant = dataclasses.replace(variant, example=example)
    changed, file = changed_copy(variant, tmp_path, replacements)
    rows = [counted.rows_of(one, "float16", 80) for one in (variant, changed)]
    assert not [row for row in (*rows[0], *rows[1]) if "error" in row]
    move, *_ = executed_changes.moves(*rows)
    changes = {change.fact: change for change in move.changes}
    assert said in changes[fact].text
    if fact != "executed instructions":
        assert changes[fact].verdict == WORSE
    numbers = [
        number
        for number, text in enumerate(file.read_text().splitlines(), start=1)
        if line in text
    ]
    assert any(f" at {file.name}:{number}" in changes[fact].text for number in numbers)


def test_the_same_kernel_counts_the_same_wherever_its_lines_are(tmp_path):
    variant = static_facts.variant_of(JOB[0])
    if why := why_cannot_compile(variant.backend):
        pytest.skip(why)
    variant = dataclasses.replace(variant, example=("layer_norm", 8))
    moved, _ = changed_copy(
        variant, tmp_path, [("\nROWS, COLUMNS", "\n# Another line.\n\nROWS, COLUMNS")]
    )
    rows = [counted.rows_of(one, JOB[1], 80) for one in (variant, moved)]
    assert rows[0] != rows[1]
    assert executed_changes.moves(*rows) == ()


def test_so_many_samples_are_counted():
    two_stage = static_facts.variant_of(JOB[0])
    assert counted.counted_batch(two_stage, "float16") == 16
    tiled = static_facts.variant_of("bmm/triton_tiled")
    assert counted.counted_batch(tiled, "float32") == 2
    one = dataclasses.replace(tiled, example=("tiny_4", 1))
    assert counted.counted_batch(one, "float32") == 1


PRODUCTS = {
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f1}": (
        Product("bf16", 2 * 16 * 8 * 16, 0)
    ),
    "wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {%f1}, {%r1}, {%r2}, {%f2}": (
        Product("f16", 2 * 16 * 16 * 16, 0)
    ),
    "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%f1}, %rd1, %rd2, 1, 1, 1, 0, 0": (
        Product("f16", 2 * 16 * 128 * 16, (64 + 128) * 16 * 2 // 4)
    ),
    "wgmma.mma_async.sync.aligned.m64n32k8.f32.tf32.tf32 {%f1}, {%r1, %r2}, %rd2, 1, 1, 1": (
        Product("tf32", 2 * 16 * 32 * 8, 32 * 8 * 4 // 4)
    ),
    "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e5m2 {%f1}, %rd1, %rd2, 1, 1, 1": (
        Product("e4m3", 2 * 16 * 8 * 32, (64 + 8) * 32 // 4)
    ),
}


@pytest.mark.parametrize("text", PRODUCTS)
def test_a_warp_does_its_share_of_a_product(text):
    module = ptx.parse(
        ".version 8.0\n.target sm_90a\n.address_size 64\n"
        ".visible .entry one()\n{\n.reg .f32 %f<4>;\n.reg .b32 %r<4>;\n.reg .b64 %rd<4>;\n"
        f"{text};\nret;\n}}\n"
    )
    assert product_of(module.kernels["one"].instructions[0]) == PRODUCTS[text]


@pytest.mark.parametrize(
    "instructions, most, batch",
    [(2**20, 64, 32), (2**20, 8, 8), (2**25, 64, 2), (2**23, 64, 4)],
)
def test_as_many_samples_fill_a_gpu_as_are_executed_in_seconds(
    instructions, most, batch
):
    launches = [launch_counts(instructions=instructions // 2)] * 2
    assert filling.filling_batch(launches, 2, most) == batch


def test_a_call_that_fills_a_gpu_is_counted():
    (call,) = filling.count_filling("bmm/triton_packed", "float32", 90)
    assert call.problem == "tiny_16/B4096" and call.architecture == 90
    assert call.flops == 2 * 4096 * 16**3
    assert call.least_bytes == 3 * 4 * 4096 * 16**2
    assert sum(one.distinct_bytes for one in call.launches) == 2 * 4 * 4096 * 16**2
    assert sum(one.written_bytes for one in call.launches) == 4 * 4096 * 16**2


def test_what_is_declined_fills_nothing():
    assert filling.count_filling("bmm/triton_persistent_tma", "float16", 80) == []


def launch_counts(**counts):
    names = (one.name for one in dataclasses.fields(LaunchCounts))
    return LaunchCounts(**dict.fromkeys(names, 0) | {"matrix_flops": {}} | counts)


def entry(**changed):
    row = {
        "variant": JOB[0],
        "dtype": JOB[1],
        "scenario": "layer_norm",
        "batch": 8,
        "architecture": 90,
        "launch": 0,
        "instructions": 100,
        "lines": {"a.py": ["7 abcdef 100 0 0 0 0"]},
    }
    fields = {
        "sources": "abc",
        "emulator": "def",
        "right": ("ragged sm_80", "nan sm_90"),
        "wrong": {"empty sm_90": "it is not"},
        "launches": (row,),
        "calls": (CountedCall("layer_norm/B64", 90, 1.0, 2.0, (launch_counts(),)),),
    }
    return pinned.Entry(**fields | changed)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(pins, "folder", lambda: tmp_path)
    return tmp_path


def test_what_is_pinned_is_loaded(folder):
    entries = {JOB: entry(), ("bmm/triton_tiled", "float32"): entry(launches=())}
    file = pinned.save(entries)
    assert pinned.load() == entries
    assert file.parent == folder and file != pins.path()


def test_the_first_pins_make_their_folder(folder, monkeypatch):
    monkeypatch.setattr(pins, "folder", lambda: folder / "new" / "baselines")
    assert pinned.save({JOB: entry()}).parent == folder / "new" / "baselines"


def test_what_was_edited_by_hand_is_refused(folder):
    file = pinned.save({JOB: entry()})
    text = file.read_text()
    assert '"instructions":100' in text
    file.write_text(text.replace('"instructions":100', '"instructions":99'))
    with pytest.raises(SealBroken, match="edited by hand"):
        pinned.load()


def test_another_toolchain_is_named(folder, monkeypatch):
    pinned.save({JOB: entry()})
    other = pins.toolchain() | {"nvidia-nvvm": "14.0"}
    monkeypatch.setattr(pins, "toolchain", lambda: other)
    with pytest.raises(SealBroken, match="another toolchain"):
        pinned.load()


def test_what_came_from_other_sources_or_another_emulator_is_stale():
    sources = pinned.sources_fingerprint(JOB[0])
    emulator = pinned.emulator_fingerprint()
    assert pinned.is_current(JOB, {JOB: entry(sources=sources, emulator=emulator)})
    assert not pinned.is_current(JOB, {JOB: entry(sources=sources)})
    assert not pinned.is_current(JOB, {JOB: entry(emulator=emulator)})
    assert not pinned.is_current(JOB, {})


def test_how_machine_code_is_read_makes_no_verdict_stale(monkeypatch):
    before = pinned.sources_fingerprint(JOB[0])
    compiled = static_facts.fingerprint(JOB[0])
    read_bytes = Path.read_bytes

    def edited(path):
        return read_bytes(path) + (b"# more" if path.name == "sass.py" else b"")

    monkeypatch.setattr(Path, "read_bytes", edited)
    assert pinned.sources_fingerprint(JOB[0]) == before
    assert static_facts.fingerprint(JOB[0]) != compiled


def test_every_job_is_one_of_a_kernel_that_can_be_executed():
    declared = [
        SimpleNamespace(id=one.id, backend=one.backend, dtypes=one.dtypes, broken=None)
        for op in kernels.ops.values()
        for one in op.variants.values()
    ]
    jobs = pinned.jobs(declared)
    assert all("torch" not in variant for variant, _ in jobs)
    if why_cannot_compile("triton") is None:
        assert JOB in jobs


def test_the_rows_of_a_launch_are_json(folder):
    assert json.loads(json.dumps(entry().launches)) == list(entry().launches)


@pytest.fixture
def one_job(folder, monkeypatch):
    """The gate over one job, which nothing is executed for: what it would find is
    `found`.
    """
    found = {JOB: entry(launches=(changed_row(),))}
    monkeypatch.setattr(pinned, "jobs", lambda variants: [JOB])
    monkeypatch.setattr(
        pinned, "execute", lambda pool, jobs, variants, tell: (found, [])
    )
    _reads(monkeypatch)
    return found


def _reads(monkeypatch, *broken):
    """The catalogue has no op, and these broken files."""
    found = Catalogue({}, broken)
    monkeypatch.setattr(_executed_pins.catalogue, "read", lambda: found)


def changed_row(**facts):
    return (
        entry().launches[0]
        | {
            "kernel": "_sum_kernel",
            "config": "ROWS=4",
            "grid": [2, 1, 1],
            "block": [128, 1, 1],
            "classes": {"load": 100},
            "sectors": 64,
            "sectors_needed": 64,
            "passes": 0,
            "requests": 0,
            "read_bytes": 2048,
            "distinct_bytes": 2048,
            "products": 0,
        }
        | facts
    )


def test_the_gate_compares_pins_and_passes(one_job, capsys):
    one_job[JOB] = entry(launches=(changed_row(),), wrong={})
    compare = _executed_pins.execute_and_compare
    assert compare(pin=False, everything=False) == ExitCode.NOT_MEASURED
    assert compare(pin=True, everything=False) == ExitCode.CLEAN
    assert compare(pin=False, everything=False) == ExitCode.CLEAN
    assert "nothing moved" in capsys.readouterr().out
    lines = {"a.py": ["7 abcdef 100 128 64 0 0"]}
    one_job[JOB] = entry(launches=(changed_row(sectors=128, lines=lines),), wrong={})
    assert compare(pin=False, everything=False) == ExitCode.FAULT
    said = " ".join(capsys.readouterr().out.split())
    assert "worse: sectors 64 → 128 (1.00x → 2.00x of the fewest) at a.py:7" in said


def test_the_gate_names_what_is_not_right(one_job, capsys):
    pinned.save(one_job)
    compare = _executed_pins.execute_and_compare
    assert compare(pin=False, everything=False) == ExitCode.FAULT
    said = capsys.readouterr().out
    assert f"{' '.join(JOB)} empty sm_90: it is not" in said
    assert "1 are not right" in said


def test_the_gate_calls_nothing_gone_that_can_not_be_read(one_job, monkeypatch, capsys):
    one_job[JOB] = entry(launches=(changed_row(),), wrong={})
    pinned.save(one_job | {("my_op/idea", "float32"): one_job[JOB]})
    compare = _executed_pins.execute_and_compare
    assert compare(pin=False, everything=False) == ExitCode.FAULT
    assert "1 gone" in capsys.readouterr().out
    broken = BrokenFile("my_ops/my_op/__init__.py", FAILED, "it does not load: no")
    _reads(monkeypatch, broken)
    assert compare(pin=False, everything=False) == ExitCode.NOT_MEASURED
    said = capsys.readouterr()
    assert "nothing moved" in said.out and str(broken) in said.err


def test_the_gate_pins_nothing_that_is_not_whole(one_job, monkeypatch, capsys):
    monkeypatch.setattr(pinned, "execute", lambda *_: ({}, ["a b: its process died"]))
    code = _executed_pins.execute_and_compare(pin=True, everything=False)
    assert code == ExitCode.NOT_MEASURED and not pinned.path().exists()
    assert "its process died" in capsys.readouterr().err
