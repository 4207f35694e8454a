"""What moved between two compilations: by name, with what follows from it, and what a
GPU must time again.
"""

import html
import importlib

import pytest

from batchline import kernels
from batchline.bench.commands import codegen as command
from batchline.bench.measure.compiled import compiler, pins, static_facts
from batchline.bench.report import of_commands as report
from batchline.bench.selection import selected
from batchline.bench.verdicts.compiled_changes import (
    BETTER,
    CHANGED,
    GONE,
    NEW,
    OPEN,
    WORSE,
    cases_to_time_again,
    moves,
)
from batchline.kernels import backends
from tests.test_records import compiled_row

compiled_only = pytest.mark.skipif(
    backends.interpreted("triton")
    or backends.why_absent("triton") is not None
    or not pins.path().exists(),
    reason="nothing is pinned for this toolchain",
)
TILED = ("bmm/triton_tiled", "float16")
PLACE = ("variant", "dtype", "scenario", "batch", "example", "architecture")
TWO_STAGE = "grad_reduce/triton_two_stage"
DTYPES = ("float16", "bfloat16", "float32")


def moved(**changes):
    (move,) = moves([compiled_row()], [compiled_row(**changes)])
    return move


def test_equal_rows_do_not_move_in_whatever_order():
    rows = [compiled_row(), compiled_row(), compiled_row(dtype="bfloat16")]
    assert moves(rows, rows[::-1]) == ()
    assert len(moves(rows, rows[1:])) == 1  # of two equal launches one is gone


@pytest.mark.parametrize(
    "changes, words, verdict",
    [
        (
            {"registers": 168},
            "registers 110 → 168: occupancy 25% → 12%, limited by registers",
            OPEN,
        ),
        ({"registers": 112}, "registers 110 → 112", OPEN),
        (
            {"shared_bytes": 163840},
            "64.0 KiB more shared memory (160 KiB): occupancy 25% → 12%, limited by shared memory",
            OPEN,
        ),
        ({"shared_bytes": 0}, "96.0 KiB less shared memory (0 B)", OPEN),
        (
            {"threads": 128},
            "threads 256 → 128; occupancy 25% → 12%, limited by shared memory",
            OPEN,
        ),
        (
            {"spills": 12},
            "spill instructions 0 → 12 (a spill appeared: a finding, not a verdict by itself)",
            OPEN,
        ),
        ({"stack_bytes": 8}, "stack bytes 0 → 8", OPEN),
        (
            {"loads": {"2": 192}},
            "loads 24 x 16 B → 192 x 2 B: narrower, 8.00x as many for the same bytes",
            WORSE,
        ),
        (
            {"stores": {"32": 4}},
            "stores 8 x 16 B → 4 x 32 B: wider, 2.00x fewer for the same bytes",
            BETTER,
        ),
        ({"loads": {"16": 32}}, "loads 24 x 16 B → 32 x 16 B", OPEN),
        ({"loads": {"TMA": 2}}, "loads 24 x 16 B → 2 x TMA", OPEN),
        ({"loads": {}}, "loads 24 x 16 B → none", OPEN),
        (
            {"matrix_instruction": None, "matrix": 0},
            "tensor cores by wgmma.mma_async → none; tensor-core instructions 4 → 0",
            WORSE,
        ),
        (
            {"matrix_instruction": "mma.sync"},
            "tensor cores by wgmma.mma_async → mma.sync",
            OPEN,
        ),
        ({"barriers": 7}, "barriers 6 → 7", OPEN),
        ({"code_bytes": 6144}, "code 5.00 KiB → 6.00 KiB", OPEN),
        ({"warp_specialized": True}, "warp-specialised no → yes", OPEN),
        ({"a_new_fact": 3}, "a_new_fact None → 3", OPEN),
        (
            {"shared_bytes": 2**18},
            "160 KiB more shared memory (256 KiB); a block of 256 threads with 110 registers and "
            "262144 B of shared memory does not fit on sm_90",
            WORSE,
        ),
    ],
)
def test_each_fact_is_said_with_what_follows(changes, words, verdict):
    move = moved(**changes)
    assert (move.text, move.verdict, move.kind, move.reconfigured) == (
        words,
        verdict,
        CHANGED,
        "",
    )


def test_every_fact_of_a_kernel_is_compared():
    """But for where it is launched, which is what it is known by."""
    for fact, value in compiled_row().items():
        if fact not in (*PLACE, "kernel"):
            other = {
                int: lambda: value + 1,
                str: lambda: value + "x",
                dict: lambda: {"4": 1},
                bool: lambda: not value,
            }[type(value)]()
            assert moved(**{fact: other}).changes, fact


def test_a_change_of_configuration_is_the_same_kernels_and_certain_of_nothing():
    move = moved(
        config="BLOCK_M=64, 4 warps, 4 stages", loads={"2": 192}, shared_bytes=131072
    )
    assert move.reconfigured == "BLOCK_M 128 → 64, warps 8 → 4, stages 3 → 4"
    assert move.text.startswith(
        "32.0 KiB more shared memory (128 KiB): occupancy 25% → 12%, limited by shared "
    )
    assert (move.kind, move.verdict) == (CHANGED, OPEN)


def test_kernels_are_new_and_gone_and_a_launch_that_another_scenario_has_is_told():
    (move,) = moves([], [compiled_row()])
    assert (move.kind, move.text) == (NEW, "new: BLOCK_M=128, 8 warps, 3 stages")
    here, there = compiled_row(), compiled_row(scenario="odd", batch=1)
    gone, new = moves([here], [there])
    assert (gone.kind, gone.text) == (
        GONE,
        "gone here, now compiled for odd/B1: BLOCK_M=128, 8 warps, 3 stages",
    )
    assert (new.kind, new.text) == (
        NEW,
        "new here, had been compiled for tiny_16/B4: BLOCK_M=128, 8 warps, 3 stages",
    )


def test_what_does_not_compile_is_worse_and_names_the_kernels_it_took():
    place = {name: compiled_row()[name] for name in PLACE}
    broken, fine = place | {"error": "TypeError: no"}, [
        compiled_row(),
        compiled_row(kernel="_sum_kernel"),
    ]
    lost = moves(fine, [broken])
    assert [(move.kernel, move.text, move.verdict) for move in lost] == [
        (name, "does not compile any more: TypeError: no", WORSE)
        for name in ("_kernel", "_sum_kernel")
    ]
    assert [move.verdict for move in moves([broken], fine)] == [BETTER, BETTER]
    (move,) = moves([], [broken])
    assert (move.kind, move.text, move.verdict) == (
        NEW,
        "does not compile: TypeError: no",
        WORSE,
    )
    (move,) = moves([broken], [])
    assert (move.kind, move.verdict) == (GONE, OPEN)
    (move,) = moves([broken], [broken | {"error": "another"}])
    assert (move.kind, move.text) == (CHANGED, "error TypeError: no → another")


def test_what_is_declined_is_said_and_is_no_verdict():
    place = {name: compiled_row()[name] for name in PLACE}
    declined = place | {"declined": "needs TMA"}
    (move,) = moves([compiled_row()], [declined])
    assert (move.kernel, move.text, move.verdict) == (
        "_kernel",
        "declined: needs TMA",
        OPEN,
    )
    (move,) = moves([declined], [compiled_row()])
    assert (move.text, move.verdict) == (
        "is compiled now (it was declined: needs TMA)",
        OPEN,
    )
    (move,) = moves([], [declined])
    assert (move.kind, move.text, move.verdict) == (NEW, "declined: needs TMA", OPEN)
    (move,) = moves([declined], [])
    assert (move.kind, move.text) == (GONE, "gone: declined: needs TMA")
    (move,) = moves([declined], [declined | {"declined": "needs wgmma"}])
    assert (move.kind, move.text) == (CHANGED, "declined needs TMA → needs wgmma")
    (move,) = moves([place | {"error": "TypeError: no"}], [declined])
    assert (move.text, move.verdict) == ("declined: needs TMA", OPEN)
    (move,) = moves([declined], [place | {"error": "TypeError: no"}])
    assert (move.text, move.verdict) == (
        "does not compile any more: TypeError: no",
        WORSE,
    )
    assert moves([declined], [dict(declined)]) == ()


def test_the_worse_come_first_and_forty_that_moved_alike_are_a_row_with_every_name():
    before = [compiled_row(scenario=f"scenario_{number}") for number in range(40)] + [
        compiled_row(dtype="float32")
    ]
    after = [row | {"registers": 168} for row in before[:-1]] + [
        before[-1] | {"loads": {"4": 96}}
    ]
    found = moves(before, after)
    assert found[0].dtype == "float32" and found[0].verdict == WORSE
    for text in (report.moves_on_terminal(found), report.moves_on_github(found)):
        flat = html.unescape(" ".join(text.split())).replace("\\", "")
        assert flat.startswith(
            "41 kernels are not as pinned (41 changed): 1 worse, 40 for a GPU to judge."
        )
        assert all(f"{row['scenario']}/B4" in flat for row in before)
        assert flat.count("registers 110 → 168") == 1
        assert flat.index("worse: loads") < flat.index("registers 110")
    lines = report.moves_on_terminal(found).splitlines()
    assert max(map(len, lines)) <= 100 and len(lines) < 45
    ((title, message),) = report.move_annotations(found)
    assert (
        title == "codegen: bmm/triton_tiled _kernel (41 kernels)"
        and "scenario_39/B4" in message
    )


IDS = [
    f"{variant}/{scenario}/{dtype}/B8"
    for variant in (
        "bmm/triton_tiled",
        "bmm/triton_tiled_more",
        TWO_STAGE,
        "grad_reduce_multi/triton_two_stage",
    )
    for scenario in ("linear_forward", "float16_like")
    for dtype in DTYPES
]


@pytest.mark.parametrize(
    "jobs, expression, cases",
    [
        ([("bmm/triton_tiled", "float16")], "(bmm/triton_tiled/ and /float16/)", 2),
        (
            [("bmm/triton_tiled", "float16"), ("bmm/triton_tiled", "bfloat16")],
            "(bmm/triton_tiled/ and (/float16/ or /bfloat16/))",
            4,
        ),
        ([("bmm/triton_tiled", dtype) for dtype in DTYPES], "bmm/triton_tiled/", 6),
        (
            [
                ("bmm/triton_tiled", "float32"),
                *((TWO_STAGE, dtype) for dtype in DTYPES),
            ],
            "(bmm/triton_tiled/ and /float32/) or grad_reduce/triton_two_stage/",
            8,
        ),
    ],
)
def test_what_a_gpu_must_time_again_is_an_expression_that_pytest_takes(
    jobs, expression, cases
):
    before = [
        compiled_row(variant=variant, dtype=dtype)
        for variant in ("bmm/triton_tiled", TWO_STAGE)
        for dtype in DTYPES
    ]
    after = [
        row | ({"registers": 200} if (row["variant"], row["dtype"]) in jobs else {})
        for row in before
    ]
    found = cases_to_time_again(moves(before, after), after)
    assert found == expression
    chosen = selected(IDS, found, "of profile quick")
    assert len(chosen) == cases
    assert {
        ("/".join(name.split("/")[:2]), name.split("/")[3]) for name in chosen
    } == set(jobs)


def test_what_is_gone_can_not_be_timed_again():
    assert cases_to_time_again(moves([compiled_row()], []), []) is None
    assert cases_to_time_again((), []) is None


@pytest.fixture
def only_tiled(monkeypatch):
    """The command on the example of one variant for sm_90, compiled in this process,
    where it can be changed.
    """
    pinned = pins.load()[TILED]
    example = [
        row for row in pinned["kernels"] if row["example"] and row["architecture"] == 90
    ]
    monkeypatch.setattr(pins, "load", lambda: {TILED: pinned | {"kernels": example}})
    monkeypatch.setattr(static_facts, "jobs", lambda variants: [TILED])
    monkeypatch.setattr(static_facts, "PINNED", (90,))
    monkeypatch.setattr(static_facts, "BATCHES", ())
    monkeypatch.setattr(
        static_facts,
        "compiled",
        lambda wanted: static_facts.Compilation(
            {
                job: static_facts.rows_of(static_facts.variant_of(job[0]), job[1])
                for job in wanted
            },
            0,
            None,
        ),
    )


@compiled_only
def test_an_untouched_kernel_is_clean(only_tiled, capsys):
    assert command.codegen(pin=False, everything=True) == 0
    assert capsys.readouterr().out.startswith("Nothing moved.\n")


@compiled_only
@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"num_stages": 4},
            (
                "stages 3 → 4 (1 kernel)",
                "registers",
                "32.0 KiB more shared memory (128 KiB): occupancy 25% "
                "→ 12%, limited by shared memory",
            ),
        ),
        (
            {"BLOCK_M": 64, "num_warps": 4},
            (
                "BLOCK_M 128 → 64, warps 8 → 4 (1 kernel)",
                "registers",
                "threads 256 → 128",
                "24.0 KiB less shared memory (72.0 KiB): occupancy 25% → 19%",
            ),
        ),
    ],
)
def test_a_changed_tile_is_caught_by_name_with_no_gpu(
    only_tiled, monkeypatch, tmp_path, capsys, change, words
):
    module = importlib.import_module("batchline.kernels.bmm.triton_tiled")
    tile = module._tile
    monkeypatch.setattr(module, "_tile", lambda a, b: tile(a, b) | change)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert command.codegen(pin=False, everything=True) == 1
    printed = " ".join(capsys.readouterr().out.split())
    for word in (
        "bmm/triton_tiled _product_kernel",
        "float16 sm_90 linear_grad_weight/B16",
        "code 8.62 KiB → ",
        *words,
        'K="bmm/triton_tiled/"',
        "`make codegen PIN=1`",
        "::error title=codegen%3A bmm/triton_tiled",
    ):
        assert word in printed, word
    summary = html.unescape((tmp_path / "summary.md").read_text()).replace("\\", "")
    assert (
        "bmm/triton_tiled _product_kernel" in summary
        and words[0] in summary
        and 'K="bmm/triton_tiled/"' in summary
    )


@compiled_only
def test_a_forced_configuration_moves_against_the_pins():
    variant = kernels.ops["bmm"].variants["triton_autotuned"]
    pinned = [
        row
        for row in pins.load()[variant.id, "float16"]["kernels"]
        if row["example"] and row["architecture"] == 90
    ]
    inputs = variant.op.make_inputs(*variant.example, "float16", "cpu")
    where = {name: pinned[0][name] for name in PLACE}
    rule = variant.tunable.rule(*inputs)

    def compiled_as(config):
        with variant.tunable.forced(config):
            return [
                where | vars(kernel)
                for kernel in compiler.compile_variant(variant, inputs, 90)
            ]

    assert moves(pinned, compiled_as(rule)) == ()
    (move,) = moves(pinned, compiled_as(rule | {"num_stages": rule["num_stages"] - 1}))
    assert (
        move.reconfigured == f"stages {rule['num_stages']} → {rule['num_stages'] - 1}"
    )
    assert "less shared memory" in move.text
