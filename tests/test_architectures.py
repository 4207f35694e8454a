"""One table of architectures: what a chip is taken for, and that rules choose what the
chip they are given can hold.
"""

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.compiled import compile_pool, compiler, static_facts
from batchline.bench.measure.compiled.static_facts import grids_of, never_written
from batchline.bench.report.sections.machine import _chip
from batchline.kernels import backends, device, target
from batchline.kernels.architectures import (
    KNOWN,
    MMA_SYNC,
    PINNED,
    TCGEN05,
    WGMMA,
    known,
    taken_for,
)
from batchline.kernels.bmm import bmm
from batchline.kernels.grad_stats import grad_stats
from batchline.kernels.op import FP8, why_not_here
from batchline.kernels.target import compiling_for, target_of
from batchline.kernels.tuning import Tunable

NOT_PINNED = tuple(number for number in KNOWN if number not in PINNED)
compiles = pytest.mark.skipif(
    any(
        backends.interpreted(name) or backends.why_absent(name)
        for name in ("triton", "numba_cuda")
    ),
    reason="nothing is compiled here",
)


@pytest.fixture
def a_gpu(monkeypatch):
    """Makes torch say that it has a GPU of a compute capability."""

    def of(major, minor):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda index=None: (major, minor)
        )
        target.of_gpu.cache_clear()

    yield of
    target.of_gpu.cache_clear()


@pytest.mark.parametrize(
    "number, per_block, tensor_cores, fp8, tma",
    [
        (80, 163, MMA_SYNC, False, False),
        (86, 99, MMA_SYNC, False, False),
        (89, 99, MMA_SYNC, True, False),
        (90, 227, WGMMA, True, True),
        (100, 227, TCGEN05, True, True),
        (120, 99, MMA_SYNC, True, True),
    ],
)
def test_what_each_offers(number, per_block, tensor_cores, fp8, tma):
    entry = known(number)
    assert entry.shared_bytes_per_block == per_block * 1024
    assert (entry.tensor_cores, entry.fp8, entry.tma) == (tensor_cores, fp8, tma)
    assert bool(entry.tensor_memory_columns) == (tensor_cores == TCGEN05)
    assert entry.capability == divmod(number, 10)


@pytest.mark.parametrize(
    "number, entry, name",
    [
        (90, 90, "sm_90"),
        (87, 86, "sm_87 (taken for sm_86)"),
        (103, 100, "sm_103 (taken for sm_100)"),
        (121, 120, "sm_121 (taken for sm_120)"),
        (110, 89, "sm_110 (taken for sm_89)"),
        (130, 89, "sm_130 (taken for sm_89)"),
    ],
)
def test_a_chip_without_an_entry_is_taken_for_one_and_says_so(number, entry, name):
    taken = taken_for(number)
    assert taken.number == entry and str(taken) == name
    assert _chip(".".join(map(str, divmod(number, 10)))) == name


def test_an_unknown_generation_is_taken_for_one_that_asks_no_more_than_any_later_chip_has():
    least = taken_for(130)
    for later in (entry for number, entry in KNOWN.items() if number >= least.number):
        assert later.shared_bytes_per_block >= least.shared_bytes_per_block
        assert (
            later.warps_per_sm >= least.warps_per_sm
            and later.blocks_per_sm >= least.blocks_per_sm
        )
        assert (later.fp8, later.tma) >= (least.fp8, least.tma)
    assert least.tensor_cores == MMA_SYNC


def test_an_older_chip_is_refused_in_a_line(a_gpu):
    with pytest.raises(ValueError, match="need sm_80 or newer, and this is sm_75"):
        taken_for(75)
    assert _chip("7.5") == "sm_75"
    a_gpu(7, 5)
    for backend in ("triton", "numba_cuda"):
        if backends.why_absent(backend) is None:
            assert (
                why_not_here(backend, "cuda", "cuda")
                == "its kernels need sm_80 or newer, and this is sm_75"
            )
    assert why_not_here("torch", None, "cuda") is None
    assert "sm_75" in device.why_no_fp8("cuda")


@pytest.mark.parametrize(
    "capability, why_not",
    [
        ((8, 6), "fp8 needs sm_89 or newer, and this is sm_86"),
        ((8, 9), None),
        ((12, 0), None),
        ((13, 0), None),
        ((8, 7), "fp8 needs sm_89 or newer, and this is sm_87 (taken for sm_86)"),
    ],
)
def test_fp8_is_where_the_table_has_it(a_gpu, capability, why_not):
    a_gpu(*capability)
    assert device.why_no_fp8("cuda") == why_not


def test_a_launch_is_for_its_device_and_a_compilation_for_what_it_asks(a_gpu):
    cpu, meta, cuda = map(torch.device, ("cpu", "meta", "cuda:0"))
    assert target_of(cpu) == KNOWN[90]
    a_gpu(12, 1)
    assert [target_of(where).number for where in (cpu, meta, cuda)] == [90, 120, 120]
    with compiling_for(86):
        assert [target_of(where).number for where in (cpu, meta, cuda)] == [86, 86, 120]
        with compiling_for(80):
            assert target_of(cpu).number == 80
        assert target_of(cpu).number == 86
    with pytest.raises(ValueError, match="sm_87 is none of"), compiling_for(87):
        pass


def test_a_rule_is_given_its_target_and_no_chip_another_ones_choice(tmp_path):
    tunable = Tunable(
        rule=lambda a, target: {"for": target.number},
        candidates=lambda a, target: [target.number],
    )
    tunable.bind(tmp_path, "mine", lambda a: ("traits", tuple(a.shape)))
    x = torch.empty(4)
    assert tunable.choose(x) == {"for": 90}
    with compiling_for(120):
        assert (tunable.choose(x), tunable.candidates(x)) == ({"for": 120}, [120])
    assert tunable.choose(x) == {"for": 90}
    assert tunable.rule(x, target=KNOWN[86]) == {"for": 86}


def test_six_products_are_kept_out_of_tensor_memory_where_it_is_and_nowhere_else():
    a, b = torch.empty(8, 512, 512, device="meta"), torch.empty(
        8, 512, 512, device="meta"
    )
    tallest = {
        number: max(
            config["BLOCK_M"]
            for config in bmm.variants["triton_6xbf16"].tunable.candidates(
                a, b, target=entry
            )
        )
        for number, entry in KNOWN.items()
    }
    assert tallest == {80: 128, 86: 128, 89: 128, 90: 128, 100: 64, 120: 128}


def test_large_tiles_have_fewer_stages_where_a_block_has_less_shared_memory():
    a, b = (
        torch.empty(4, 8192, 4096, dtype=torch.float16, device="meta") for _ in range(2)
    )
    b = b.mT
    deepest = {
        number: max(
            config["num_stages"]
            for config in bmm.variants["triton_autotuned"].tunable.candidates(
                a, b, target=entry
            )
            if (config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"])
            == (128, 256, 64)
        )
        for number, entry in KNOWN.items()
    }
    assert deepest == {80: 4, 86: 3, 89: 3, 90: 4, 100: 4, 120: 3}
    tma = bmm.variants["triton_persistent_tma"].tunable
    assert tma.rule(a, b, target=KNOWN[90])["BLOCK_N"] == 256
    assert tma.rule(a, b, target=KNOWN[120])["BLOCK_N"] == 128
    g = torch.empty(4096, 1 << 16, device="meta")
    one_read = grad_stats.variants["triton_one_read"].tunable
    assert [
        one_read.rule(g, target=KNOWN[number])["STAGES"] for number in (80, 90, 86)
    ] == [3, 3, 2]


@pytest.mark.parametrize("number", NOT_PINNED)
@pytest.mark.parametrize(
    "name, reason",
    [
        ("triton_persistent_tma", {86: "needs TMA", 89: "needs TMA", 120: None}),
        *(
            (name, {number: "wgmma is of sm_90 alone" for number in (86, 89, 120)})
            for name in (
                "gluon_3xbf16",
                "gluon_6xbf16",
                "gluon_cluster",
                "gluon_ping_pong",
            )
        ),
        *(
            (
                name,
                {
                    number: "tcgen05 is of compute capability 10.x alone"
                    for number in (86, 89, 120)
                },
            )
            for name in ("gluon_pair", "gluon_tcgen05")
        ),
        (
            "triton_warp_specialized",
            {86: "needs TMA", 89: "needs TMA", 120: "warps are specialised for wgmma"},
        ),
    ],
)
def test_what_a_chip_does_not_have_is_a_reason(name, reason, number):
    variant = bmm.variants[name]
    inputs = bmm.make_inputs("linear_forward", 16, variant.dtypes[0], "meta")
    with compiling_for(number):
        why = variant.why_unsupported(*inputs)
    if reason[number] is None:
        assert why is None
    else:
        assert why.startswith(reason[number]) and f"sm_{number}" in why


@compiles
def test_a_declined_example_is_a_row():
    rows = static_facts.rows_of(bmm.variants["triton_warp_specialized"], "bfloat16")
    (declined,) = [row for row in rows if row["architecture"] == 80]
    assert (
        declined["declined"] == "needs TMA, which starts with sm_90: this is sm_80"
        and declined["example"]
    )
    assert "kernel" not in declined
    assert {row["architecture"] for row in rows if "kernel" in row} == {90, 100}


@compiles
@pytest.mark.parametrize(
    "number, words", [(90, "4 warps, 3 stages"), (120, "8 warps, 3 stages")]
)
def test_what_is_compiled_and_counted_is_what_the_rule_chooses_for_the_chip(
    number, words
):
    variant = bmm.variants["triton_persistent_tma"]
    inputs = never_written(bmm.make_inputs("linear_forward", 16, "float16", "meta"))
    (launch,) = compiler.launches_of(variant, inputs, number)
    (grid,) = grids_of(variant, inputs, number)
    assert launch.config.endswith(words) and grid.config == launch.config


@compiles
def test_code_that_no_block_can_hold_is_refused():
    a, b = (
        torch.empty(shape, dtype=torch.float16)
        for shape in ((4, 512, 512), (4, 512, 512))
    )
    variant = bmm.variants["triton_autotuned"]
    config = {
        "BLOCK_M": 128,
        "BLOCK_N": 256,
        "BLOCK_K": 64,
        "GROUP_M": 16,
        "num_warps": 8,
        "num_stages": 4,
    }
    with variant.tunable.forced(config), pytest.raises(
        RuntimeError,
        match=r"needs \d+ B of shared memory, and a block "
        "of sm_120 has at most 101376",
    ):
        compiler.launches_of(variant, (a, b), 120)


def held_by(number, variant_id, dtype, problems):
    """What is wrong with the kernels of a variant on these (scenario, batch), each in a
    line, and how many there are.

    For a process of its own: each is compiled for sm_`number`, and must fit a block
    there, or is declined.
    """
    variant = static_facts.variant_of(variant_id)
    problems_found, count, seen = [], 0, set()
    for scenario, batch in problems:
        shapes = variant.op.make_inputs(scenario, batch, dtype, "meta")
        with compiling_for(number):
            if variant.why_unsupported(*shapes):
                continue
        compiled = compiler.compile_variant(
            variant, never_written(shapes), number, seen
        )
        count += len(compiled)
        problems_found += [
            f"{variant_id} {dtype} {scenario}/B{batch}: {facts}"
            for facts in compiled
            if not _fits(facts, known(number))
        ]
    return count, problems_found


def _fits(facts, entry):
    return (
        facts.shared_bytes <= entry.shared_bytes_per_block
        and facts.registers <= entry.registers_per_thread
        and facts.registers * facts.threads <= entry.registers_per_sm
        and facts.matrix_instruction in (None, MMA_SYNC)
    )


@pytest.mark.compiled
@compiles
@pytest.mark.parametrize(
    "number, variant, dtype",
    [
        (86, "bmm/triton_autotuned", "float16"),
        (89, "bmm/numba_cuda_mma", "bfloat16"),
        (120, "bmm/triton_persistent_tma", FP8),
        (120, "bmm/triton_6xbf16", "float32"),
        (86, "grad_stats/triton_one_read", "float32"),
        (120, "wgrad_stats/triton_fused", "bfloat16"),
    ],
)
def test_examples_fit_the_chips_that_are_not_pinned(number, variant, dtype):
    count, problems = held_by(
        number, variant, dtype, (static_facts.variant_of(variant).example,)
    )
    assert count and not problems


@pytest.mark.slow
@compiles
def test_everything_fits_the_chips_that_are_not_pinned():
    """Each GPU variant's example in each dtype, and in the first one of each width all
    that its rule gives.
    """
    jobs = []
    for op in kernels.ops.values():
        for variant in op.variants.values():
            if variant.backend in ("triton", "numba_cuda"):
                everywhere = tuple(
                    (name, batch)
                    for name in op.scenarios
                    for batch in static_facts.BATCHES
                )
                firsts = {
                    getattr(torch, dtype).itemsize: dtype
                    for dtype in reversed(variant.dtypes)
                }.values()
                jobs += [
                    (
                        number,
                        variant.id,
                        dtype,
                        (variant.example, *(everywhere if dtype in firsts else ())),
                    )
                    for number in NOT_PINNED
                    for dtype in variant.dtypes
                    if dtype != FP8 or KNOWN[number].fp8
                ]
    results, failed = compile_pool.each(held_by, jobs)
    assert not failed
    assert not [problem for _, problems in results.values() for problem in problems]
    without_code = {
        (job[0], job[1]) for job, (count, _) in results.items() if not count
    }
    assert without_code == {
        (86, "bmm/triton_persistent_tma"),
        (89, "bmm/triton_persistent_tma"),
        *(
            (number, f"bmm/{name}")
            for name in (
                "gluon_3xbf16",
                "gluon_6xbf16",
                "gluon_cluster",
                "gluon_pair",
                "gluon_ping_pong",
                "gluon_tcgen05",
            )
            for number in NOT_PINNED
        ),
        *((number, "bmm/triton_warp_specialized") for number in NOT_PINNED),
        *((number, "wgrad_stats/gluon_fused") for number in NOT_PINNED),
    }
