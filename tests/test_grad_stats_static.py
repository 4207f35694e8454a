"""One read of g, in machine code: a loop that loads each byte of its tile once, 16 at a
time, and spills nothing.

Also what the Triton rungs of both reductions promise of rows that begin within words,
and that their hints are true.
"""

import importlib
import os
import re
import subprocess
import sys
import tempfile

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.checking.check import checked_call, expect
from batchline.bench.measure.compiled import compiler, sass
from batchline.kernels import backends
from batchline.kernels.draw import Draw
from batchline.kernels.grad_reduce.triton_whole_words import words
from tests.test_properties import hints_are_true  # noqa: F401, a fixture for all

INTERPRETED = backends.interpreted("triton")
compiled_only = pytest.mark.skipif(
    INTERPRETED or backends.why_absent("triton") is not None,
    reason="nothing is compiled by an interpreter",
)
WIDTHS = {"U8": 1, "U16": 2, "64": 8, "128": 16}
RUNGS = (
    "grad_reduce/triton_whole_words",
    "grad_reduce/triton_one_launch",
    "grad_stats/triton_two_pass",
    "grad_stats/triton_one_read",
    "grad_stats/triton_one_launch",
)


def variant_of(name):
    op, _, variant = name.partition("/")
    return kernels.ops[op].variants[variant]


def compiled(name, inputs, monkeypatch):
    """The kernels that a variant launches on sm_90: (facts, listing of its machine
    code) by name, the first of each.
    """
    from triton.runtime.jit import JITFunction

    launch, cubins = JITFunction.run, []

    def keep(self, *args, **kwargs):
        kernel = launch(self, *args, **kwargs)
        cubins.append(kernel.asm["cubin"])
        return kernel

    with monkeypatch.context() as patch:
        patch.setattr(JITFunction, "run", keep)
        facts = compiler.compile_variant(variant_of(name), inputs, 90)
    found = {}
    for row, cubin in zip(facts, cubins, strict=True):
        found.setdefault(row.kernel, (row, cubin))
    return {kernel: (row, listing(cubin)) for kernel, (row, cubin) in found.items()}


def listing(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [sass._bundled("cuobjdump"), "--dump-sass", file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout


def loads_by_place(text):
    """Bytes that a thread loads from global memory before, in and after the one loop of
    a listing, per run of each.

    What is predicated on !PT never runs.
    """
    found = re.findall(
        r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?\w+)\s+)?([A-Z][\w.]*)(.*?);",
        text,
        re.MULTILINE,
    )
    lines = [
        (int(address, 16), name, rest)
        for address, guard, name, rest in found
        if guard != "!PT"
    ]
    jumps = [
        (int(rest.split("0x")[-1].strip(" `()"), 16), address)
        for address, name, rest in lines
        if name.startswith("BRA") and "0x" in rest
    ]
    ((first, last),) = [
        (target, address) for target, address in jumps if target < address
    ]
    moved = [0, 0, 0]
    for address, name, _ in lines:
        if name.partition(".")[0] in ("LDG", "LDGSTS"):
            width = next(
                (WIDTHS[part] for part in name.split(".") if part in WIDTHS), 4
            )
            moved[(address >= first) + (address > last)] += width
    return moved


def constants(row):
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", row.config)}


def tile_bytes(row, dtype):
    given = constants(row)
    return given["ROWS"] * given["COLUMNS"] * dtype.itemsize


@pytest.mark.compiled
@compiled_only
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_turn_of_the_loop_loads_its_tile_once(dtype, monkeypatch):
    inputs = (torch.empty(64, 512 * 512, dtype=dtype),)
    row, text = compiled("grad_stats/triton_one_read", inputs, monkeypatch)[
        "stats_kernel"
    ]
    assert (row.stack_bytes, row.spills, set(row.loads)) == (0, 0, {"16"})
    before, within, after = (moved * row.threads for moved in loads_by_place(text))
    assert within == tile_bytes(row, dtype)
    assert (before, after) == (
        (constants(row)["STAGES"] - 1) * within,
        0,
    )  # what is under way when the loop begins


@pytest.mark.compiled
@compiled_only
def test_by_the_same_count_two_passes_load_it_twice(monkeypatch):
    found = compiled(
        "grad_stats/triton_two_pass", (torch.empty(64, 512 * 512),), monkeypatch
    )
    reads = []
    for kernel in ("sum_kernel", "_dots_kernel"):
        row, text = found[kernel]
        assert row.stack_bytes == 0
        reads.append(
            loads_by_place(text)[1] * row.threads / tile_bytes(row, torch.float32)
        )
    means = 1 / constants(found["_dots_kernel"][0])["ROWS"]
    assert reads == [1, 1 + means]


LOOP = """
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/              @!PT LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/              @!P0 LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;
        /*0040*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0050*/               @P1 BRA 0x30 ;
        /*0060*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0070*/                   EXIT ;
        /*0080*/                   BRA 0x80;
"""


def test_the_count_sees_a_load_too_many():
    assert loads_by_place(LOOP) == [16, 18, 4]
    assert loads_by_place(LOOP.replace("@!PT ", "").replace("0x30", "0x20")) == [
        16,
        34,
        4,
    ]


@pytest.mark.compiled
@compiled_only
@pytest.mark.parametrize(
    "name", ["grad_reduce/triton_whole_words", "grad_stats/triton_one_read"]
)
def test_rows_that_begin_within_words_are_read_in_words(name, monkeypatch):
    inputs = (torch.empty(64, 100_003, dtype=torch.bfloat16),)
    row, _ = next(iter(compiled(name, inputs, monkeypatch).values()))
    assert set(row.loads) == {"16"}
    below, _ = compiled("grad_reduce/triton_two_stage", inputs, monkeypatch)[
        "_sum_kernel"
    ]
    assert set(below.loads) == {"2"}


@pytest.mark.parametrize("samples", [1, 3, 64])
@pytest.mark.parametrize("name", ["triton_one_read", "triton_one_launch"])
def test_every_thread_of_a_candidate_has_a_whole_word(name, samples):
    """With less a thread may read past a row's last word, where nothing is allocated."""
    g = torch.empty(samples, 1217, dtype=torch.bfloat16, device="meta")
    for config in variant_of(f"grad_stats/{name}").tunable.candidates(g):
        tile = config["ROWS"] * config["COLUMNS"] * g.element_size()
        assert tile >= config["num_warps"] * 512


@pytest.mark.slow
@pytest.mark.compiled
@compiled_only
@pytest.mark.parametrize(
    "name", ["grad_reduce/triton_whole_words", "grad_stats/triton_one_read"]
)
def test_no_candidate_lives_on_its_stack(name, monkeypatch):
    """A gather of rows wider than a warp reads at once took 66,000 bytes."""
    inputs = (torch.empty(64, 100_003, dtype=torch.bfloat16),)
    variant = variant_of(name)
    candidates = variant.tunable.candidates(*inputs)
    assert variant.tunable.rule(*inputs) in candidates
    for config in candidates:
        with variant.tunable.forced(config):
            row, _ = next(iter(compiled(name, inputs, monkeypatch).values()))
        assert row.stack_bytes <= 512, config


def misaligned(dtype, rows, columns, stride, start):
    """g[rows, columns] in the middle of NaN, its first element `start` elements past an
    aligned address.
    """
    memory = torch.full(
        (start + (rows - 1) * stride + columns + 64,), float("nan"), dtype=dtype
    )
    assert memory.data_ptr() % 16 == 0
    g = memory.as_strided((rows, columns), (stride, 1), start)
    distinct = g if stride else g[:1]
    distinct.copy_(Draw(dtype, "cpu", 0).uniform(*distinct.shape))
    return (g,)


# Samples, parameters, stride and start. The last is split over the batch, and 600
# parameters are many blocks.
PLACES = [
    (5, 300, 301, 0),
    (33, 600, 601, 0),
    (64, 77, 90, 3),
    (40, 130, 136, 5),
    (40, 130, 136, 4),
    (1, 515, 7, 1),
    (70, 9, 0, 2),
    (150, 40, 41, 1),
    (1100, 5, 5, 0),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("tile", [(64, 32), (64, 4), (8, 64), (1, 1024)], ids=str)
def test_what_is_promised_of_addresses_is_true(tile, dtype):
    for place in PLACES:
        (g,) = misaligned(dtype, *place)
        (base, stride_gb, stride_gp), hints = words(g, *tile)
        unit = hints["ALIGN"] * dtype.itemsize
        assert (g.data_ptr() - base * dtype.itemsize) % unit == 0 and stride_gp == 1
        assert stride_gb * hints["PHASES"] % hints["ALIGN"] == 0


@pytest.mark.skipif(
    not INTERPRETED, reason="walked by the interpreter, in a process of its own"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("sms", [132, 1])
@pytest.mark.parametrize("name", RUNGS)
def test_hints_hold_wherever_rows_begin(name, sms, dtype, monkeypatch):
    """And programs are right past their first block: on one multiprocessor each has
    several.
    """
    for rung in RUNGS:
        module = importlib.import_module(f"batchline.kernels.{rung.replace('/', '.')}")
        if hasattr(module, "multiprocessors"):
            monkeypatch.setattr(module, "multiprocessors", lambda device: sms)
    variant = variant_of(name)
    if variant.tunable:
        monkeypatch.setattr(variant.tunable, "_known", {})
    for place in PLACES:
        inputs = misaligned(dtype, *place)
        expected = expect(variant.op, inputs)
        checked_call(variant, inputs, expected, f"{place}")
        for config in (
            variant.tunable.candidates(*inputs)[1:3] if variant.tunable else ()
        ):
            with variant.tunable.forced(config):
                checked_call(variant, inputs, expected, f"{place}, {config}")


@pytest.mark.slow
@pytest.mark.compiled
@compiled_only
def test_hints_hold_where_they_are_interpreted():
    from tests.test_interpreters import _why_not

    if _why_not("triton"):
        pytest.skip(_why_not("triton"))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            __file__,
            "-k",
            "wherever_rows",
            "-p",
            "no:cacheprovider",
        ],
        env=os.environ | backends.interpreter_environment("triton"),
        capture_output=True,
        text=True,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0 and f"{4 * len(RUNGS)} passed" in done.stdout, told
