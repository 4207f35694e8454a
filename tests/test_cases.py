"""The plan: ids that never change, limits, refusals."""

import json
import re

import pytest
import torch

from batchline import kernels
from batchline.bench.cases import PROFILES, of_catalogue, plan
from batchline.bench.commands.list import render
from batchline.bench.declared import Catalogue
from batchline.bench.statuses import NOT_HERE, UNSUPPORTED, case_id, parse_case_id
from tests.plans import planned

# A rename of any of these loses the history of its case. Add to the list; never change
# a line of it.
PINNED = """
bmm/torch_bmm/attention_scores/float32/B1
bmm/torch_bmm/attention_values/float32/B3
bmm/torch_bmm/attention_grad_key/float32/B1
bmm/torch_bmm/linear_forward/float32/B3
bmm/torch_bmm/linear_grad_input/float32/B8
bmm/torch_bmm/linear_grad_weight/float32/B8
bmm/torch_bmm/tiny_16/float32/B4096
bmm/torch_bmm/square_1024/float32/B1
bmm/torch_bmm/odd_127x257x65/float32/B33
bmm/torch_bmm/skinny_long_k/float32/B64
bmm/torch_bmm/digits_forward/float32/B256
bmm/torch_bmm/digits_grad_weight/float32/B1024
bmm/torch_einsum/tiny_16/float32/B1
bmm/torch_baddbmm/tiny_16/float32/B1
bmm/torch_folded/linear_forward/float32/B1
bmm/torch_compiled/tiny_16/float32/B1
bmm/torch_scaled_mm/linear_forward/float32/B1
bmm/triton_tiled/attention_scores/float32/B1
bmm/numba_cuda_naive/attention_scores/float32/B1
bmm/numba_cuda_tiled/attention_scores/float32/B1
bmm/numba_cpu_tiled/attention_scores/float32/B1
bmm/numba_cpu_naive/square_64/float32/B1
bmm/numba_cpu_blocked/square_256/float32/B64
bmm/numba_cpu_tiny/tiny_4/float32/B4096
bmm/torch_baddbmm/square_128/float32/B64
bmm/torch_folded/linear_forward/float32/B8
bmm/torch_compiled/tiny_16/float32/B1
bmm/triton_naive/tiny_16/float32/B1
bmm/triton_autotuned/tiny_16/float32/B1
bmm/triton_persistent_tma/tiny_16/float32/B1
bmm/gluon_ping_pong/tiny_16/float32/B1
bmm/gluon_cluster/tiny_16/float32/B1
bmm/triton_warp_specialized/tiny_16/float32/B1
bmm/triton_split_k/skinny_long_k/float32/B1
bmm/triton_packed/tiny_16/float32/B1
bmm/triton_shared_rhs/linear_forward/float32/B1
bmm/triton_3xbf16/tiny_16/float32/B1
bmm/triton_6xbf16/tiny_16/float32/B1
bmm/gluon_3xbf16/tiny_16/float32/B1
bmm/gluon_6xbf16/tiny_16/float32/B1
bmm/numba_cuda_register_tile/tiny_16/float32/B1
bmm/numba_cuda_tiny/tiny_16/float32/B1
bmm/numba_cuda_mma/tiny_16/float32/B1
grad_reduce/torch_mean/digits/float32/B4096
grad_reduce/torch_mean/layer_norm/float32/B1
grad_reduce/torch_mean/linear_512/float32/B64
grad_reduce/torch_mean/odd_100003/float32/B33
grad_reduce/torch_mean/transformer_block/float32/B8
grad_reduce/triton_two_stage/digits/float32/B1
grad_reduce/numba_cuda_two_stage/digits/float32/B1
grad_reduce/numba_cpu_parallel/digits/float32/B1
grad_reduce/numba_cpu_together/digits/float32/B1
grad_reduce/numba_cuda_vectorised/digits/float32/B1
grad_reduce/triton_whole_words/digits/float32/B1
grad_reduce/triton_one_launch/digits/float32/B1
grad_reduce_multi/torch_loop/digits/float32/B1
grad_reduce_multi/numba_cpu_one_launch/digits/float32/B1
grad_reduce_multi/numba_cuda_one_launch/digits/float32/B1
grad_reduce_multi/torch_concat/digits/float32/B1
grad_reduce_multi/triton_one_launch/digits/float32/B1
grad_reduce_multi/torch_loop/gpt2_block/float32/B1
grad_reduce_multi/torch_loop/layer_norms/float32/B1
grad_stats/torch_passes/digits/float32/B1
grad_stats/numba_cpu_one_read/digits/float32/B1
grad_stats/numba_cpu_two_pass/digits/float32/B1
grad_stats/numba_cuda_one_read/digits/float32/B1
grad_stats/numba_cuda_two_pass/digits/float32/B1
grad_stats/torch_compiled/digits/float32/B1
grad_stats/triton_one_read/digits/float32/B1
grad_stats/triton_two_pass/digits/float32/B1
grad_stats/torch_passes/layer_norm/float32/B1
grad_stats/torch_passes/linear_512/float32/B1
grad_stats/torch_passes/odd_100003/float32/B1
grad_stats/torch_passes/transformer_block/float32/B1
wgrad_stats/torch_materialize/digits_hidden/float32/B1
wgrad_stats/backpack_batch_l2/digits_hidden/float32/B1
wgrad_stats/dispatched/digits_hidden/float32/B1
wgrad_stats/gluon_fused/digits_hidden/float32/B1
wgrad_stats/numba_cpu_fused/digits_hidden/float32/B1
wgrad_stats/numba_cpu_loop/digits_hidden/float32/B1
wgrad_stats/opacus_ghost/digits_hidden/float32/B1
wgrad_stats/torch_ghost/digits_hidden/float32/B1
wgrad_stats/torch_mean_gradient/digits_hidden/float32/B1
wgrad_stats/torch_rank_one/digits_hidden/float32/B1
wgrad_stats/torch_vmap/digits_hidden/float32/B1
wgrad_stats/triton_fused/digits_hidden/float32/B1
wgrad_stats/triton_materialize_fused/digits_hidden/float32/B1
wgrad_stats/triton_rank_one/digits_hidden/float32/B1
wgrad_stats/torch_materialize/linear_512_T1/float32/B1
wgrad_stats/torch_materialize/linear_512_T4/float32/B1
wgrad_stats/torch_materialize/linear_512_T16/float32/B1
wgrad_stats/torch_materialize/linear_512_T128/float32/B1
wgrad_stats/torch_materialize/odd_37x127x257/float32/B1
""".split()


PINNED_IN_FULL = """
bmm/torch_bmm/tiny_8/float32/B4096
bmm/torch_bmm/tiny_32/float32/B4096
wgrad_stats/torch_ghost/linear_512_T512/float32/B8
wgrad_stats/torch_ghost/linear_1024_T256/float32/B8
wgrad_stats/torch_ghost/gpt2_mlp_T256/float32/B8
bmm/torch_scaled_mm/linear_forward/float8_e4m3fn/B1
bmm/torch_scaled_grouped_mm/linear_forward/float8_e4m3fn/B1
bmm/torch_upcast/linear_forward/float8_e4m3fn/B1
bmm/torch_grouped_mm/linear_forward/bfloat16/B1
wgrad_stats/torch_ghost_tf32/linear_512_T128/bfloat16/B1
wgrad_stats/torch_ghost_3xbf16/linear_512_T128/bfloat16/B1
wgrad_stats/torch_ghost_6xbf16/linear_512_T128/float32/B1
wgrad_stats/torch_rank_one_tf32/linear_512_T1/bfloat16/B1
wgrad_stats/torch_rank_one_3xbf16/linear_512_T1/float32/B1
""".split()


@pytest.mark.commands
def test_case_ids_are_pinned():
    assert set(PINNED) <= {case.id for case in planned("quick", "cpu").cases}


@pytest.mark.commands
def test_ids_of_full_are_pinned():
    assert "bmm/torch_bmm/square_4096/bfloat16/B1" in {
        case.id for case in planned("full", "cuda").cases
    }
    assert set(PINNED_IN_FULL) <= {case.id for case in planned("full", "cuda").cases}


@pytest.mark.commands
def test_only_full_takes_the_details_and_the_slow_starts():
    for name, taken in (("smoke", False), ("quick", False), ("full", True)):
        cases = planned(name, "cpu").cases
        assert any(case.scenario == "tiny_8" for case in cases) == taken
        refusals = {
            case.refusal
            for case in cases
            if case.variant.slow_start and case.dtype == "float32"
        }
        assert refusals == {
            (
                None
                if taken
                else (
                    NOT_HERE,
                    "takes seconds to compile for each shape: PROFILE=full times it",
                )
            )
        }
        refusals = {
            case.refusal for case in cases if case.variant.name == "torch_einsum"
        }
        assert refusals == {
            (
                None
                if taken
                else (NOT_HERE, "a detail beside torch_bmm: PROFILE=full times it")
            )
        }


@pytest.mark.commands
def test_fp8_is_planned_where_it_is_defined():
    cases = [
        case for case in planned("full", "cuda").cases if case.dtype == "float8_e4m3fn"
    ]
    assert {case.op for case in cases} == {"bmm", "bmm_mxfp8"}
    assert not [case for case in cases if case.scenario.startswith("digits")]
    refusals = {
        (case.variant.name, case.scenario): case.refusal
        for case in cases
        if case.op == "bmm"
    }
    assert refusals["torch_scaled_mm", "attention_scores"] is None
    assert refusals["torch_bmm", "attention_scores"][0] == UNSUPPORTED
    assert "B column by column" in refusals["torch_scaled_mm", "attention_values"][1]


@pytest.mark.commands
def test_every_fp8_problem_has_a_way_of_pytorchs_that_takes_it_in_one_launch():
    """torch_scaled_mm is a launch for each entry, and declines what is not aligned."""
    refusals = {
        (case.variant.name, *case.problem): case.refusal
        for case in planned("full", "cuda").cases
        if case.dtype == "float8_e4m3fn"
    }
    problems = {key[1:] for key in refusals}
    whole = {"bmm": "torch_upcast", "bmm_mxfp8": "torch_dequantised"}
    assert {problem[0] for problem in problems} == set(whole)
    assert all(refusals[whole[problem[0]], *problem] is None for problem in problems)
    grouped = {
        problem
        for problem in problems
        if problem[0] == "bmm" and refusals["torch_scaled_grouped_mm", *problem] is None
    }
    assert {problem[1] for problem in grouped} == {"attention_scores", "linear_forward"}
    assert all(problem[3] < 1024 for problem in grouped)


@pytest.mark.parametrize(
    "name, why",
    [
        (
            "torch_scaled_grouped_mm",
            "this PyTorch .* has no torch.nn.functional.scaled_grouped_mm",
        ),
        ("torch_grouped_mm", "this PyTorch .* has no torch.nn.functional.grouped_mm"),
    ],
)
def test_a_pytorch_without_grouped_products_says_so(monkeypatch, name, why):
    dtype = "bfloat16" if name == "torch_grouped_mm" else "float8_e4m3fn"
    op = kernels.ops["bmm"]
    variant, inputs = op.variants[name], op.make_inputs(
        "linear_forward", 2, dtype, "meta"
    )
    assert variant.why_unsupported(*inputs) is None
    with monkeypatch.context() as patch:
        patch.delattr(torch.nn.functional, name.removeprefix("torch_"))
        assert re.match(why, variant.why_unsupported(*inputs))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (12, 0))
    assert variant.why_unsupported(*inputs).endswith("not for sm_12x")


@pytest.mark.commands
def test_a_gpu_without_fp8_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    on_sm_80 = of_catalogue(
        PROFILES["full"], "cuda", Catalogue(planned("full", "cuda").ops, ())
    )
    refusals = {
        case.dtype: case.refusal
        for case in on_sm_80.cases
        if case.variant.name == "torch_scaled_mm"
        and case.scenario == "attention_scores"
    }
    assert refusals["float8_e4m3fn"] == (
        NOT_HERE,
        "fp8 needs sm_89 or newer, and this is sm_80",
    )
    assert refusals["float16"][0] == UNSUPPORTED


def test_case_id_and_its_parts():
    assert (
        case_id("bmm", "triton_tiled", "attention_scores", "float16", 64)
        == "bmm/triton_tiled/attention_scores/float16/B64"
    )
    assert case_id(**parse_case_id(PINNED[0])) == PINNED[0]


def test_variants_of_a_problem_run_side_by_side():
    problems = [case.problem for case in planned("smoke", "cpu").cases]
    assert len(set(problems)) == sum(
        1 for i, problem in enumerate(problems) if i == 0 or problem != problems[i - 1]
    )


def test_what_cannot_run_here_is_planned_and_refused_with_a_reason():
    refusals = {
        case.variant.name: case.refusal for case in planned("smoke", "cpu").cases
    }
    assert refusals["triton_tiled"] == (NOT_HERE, "needs CUDA")
    assert refusals["torch_bmm"] is None


@pytest.mark.commands
def test_a_dtype_that_a_variant_has_not_is_planned_and_refused():
    on_cuda = {
        case.variant.name: case.refusal
        for case in planned("full", "cuda").cases
        if case.dtype == "bfloat16"
    }
    status, reason = on_cuda["numba_cuda_naive"]
    assert status == UNSUPPORTED and "bfloat16 is not among its dtypes" in reason
    assert on_cuda["triton_tiled"] is None


@pytest.mark.parametrize(
    "profile, device",
    [
        (
            (profile, device)
            if (profile, device) == ("smoke", "cpu")
            else pytest.param(profile, device, marks=pytest.mark.slow)
        )
        for profile in PROFILES
        for device in ("cpu", "cuda")
    ],
)
def test_limits_are_kept_and_what_is_over_them_is_named(profile, device):
    the_plan = planned(profile, device)
    limits = PROFILES[profile].limits[device]
    for case in the_plan.cases:
        op = kernels.ops[case.op]
        inputs = op.make_inputs(case.scenario, case.batch, case.dtype, "meta")
        assert (
            op.flops(*inputs) <= limits.flops
            and op.least_bytes(*inputs) <= limits.bytes
        )
    problems = {case.problem for case in the_plan.cases}
    assert not problems & set(the_plan.left_out)
    dtypes, batches = set(PROFILES[profile].dtypes[device]), PROFILES[profile].batches
    count = sum(
        len(dtypes.intersection(scenario.dtypes)) * len(batches)
        for op in kernels.ops.values()
        for scenario in op.scenarios.values()
        if profile == "full" or not scenario.detail
    )
    assert len(problems) + len(the_plan.left_out) == count


def test_full_has_the_designs_batches():
    assert PROFILES["full"].batches == (
        1,
        2,
        3,
        4,
        8,
        16,
        32,
        33,
        64,
        100,
        128,
        256,
        257,
        512,
        1024,
        2048,
        4096,
    )


def test_unknown_profile():
    with pytest.raises(
        ValueError, match="unknown profile 'fast': use smoke, quick, full"
    ):
        plan("fast", "cpu")


def test_list_shows_every_case_and_what_it_runs_on():
    cases = planned("smoke", "cpu").cases
    lines = render(planned("smoke", "cpu"), as_json=False).splitlines()
    assert [line.split()[0] for line in lines] == [case.id for case in cases]
    by_id = dict(zip((case.id for case in cases), lines))
    assert "runs on cpu, cuda  timed here" in by_id["bmm/torch_bmm/tiny_16/float32/B1"]
    assert by_id["bmm/triton_tiled/tiny_16/float32/B1"].endswith(
        "not timed here: needs CUDA"
    )


def test_list_as_json():
    cases = json.loads(render(planned("smoke", "cpu"), as_json=True))
    assert len(cases) == len(planned("smoke", "cpu").cases)
    triton = next(
        case for case in cases if case["id"] == "bmm/triton_tiled/tiny_16/float32/B1"
    )
    assert triton == {
        "id": triton["id"],
        "op": "bmm",
        "variant": "triton_tiled",
        "backend": "triton",
        "scenario": "tiny_16",
        "dtype": "float32",
        "batch": 1,
        "runs_on": ["cuda"],
        "here": False,
        "why_not": "not timed here: needs CUDA",
    }
