"""What is executed in emulation: every GPU variant, on probes that compute something,
and a verdict as the checker's.
"""

import ctypes
import pickle
import re
from types import SimpleNamespace

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.compiled import compiler
from batchline.bench.measure.emulated import executed
from batchline.bench.measure.emulator import subjects
from batchline.bench.measure.emulator.subjects import Subject, Verdict
from batchline.kernels import architectures
from batchline.kernels.elements import dtype_name
from batchline.kernels.op import FP8

ON_TMA = (
    "bmm/gluon_3xbf16",
    "bmm/gluon_6xbf16",
    "bmm/gluon_cluster",
    "bmm/gluon_ping_pong",
    "bmm/triton_persistent_tma",
    "bmm/triton_warp_specialized",
)
NEED_TMA = (*ON_TMA, "wgrad_stats/gluon_fused")
NEED_TCGEN05 = (
    "bmm/gluon_pair",
    "bmm/gluon_tcgen05",
    "bmm_mxfp8/gluon_block_scaled",
)
REDUCED = Subject("grad_reduce/triton_two_stage", "float16", "ragged", 90)
compiled = pytest.mark.skipif(
    bool(compiler.why_cannot_compile("triton")), reason="needs Triton's compiler"
)


@pytest.fixture(scope="module")
def every_subject():
    return list(subjects.subjects(kernels.ops.values()))


def computes(subject):
    """Whether the variant takes it and something is computed."""
    if subject.declined is not None:
        return False
    make = subjects.probes_of(subjects.variant_of(subject).op)[subject.probe]
    inputs = make(getattr(torch, subject.dtype), "meta", 0)
    return all(tensor.numel() for tensor in inputs)


def test_every_gpu_variant_is_there_in_each_dtype_for_each_architecture(every_subject):
    expected = {
        (variant.id, dtype, architecture)
        for op in kernels.ops.values()
        for variant in op.variants.values()
        if variant.backend in ("triton", "numba_cuda")
        for dtype in variant.dtypes or ("float32", "float16", "bfloat16")
        for architecture in (80, 90, *([100] if variant.id in NEED_TCGEN05 else []))
    }
    assert {(one.variant, one.dtype, one.architecture) for one in every_subject} == (
        expected
    )
    assert len(set(every_subject)) == len(every_subject)


def test_every_gpu_variant_takes_a_probe_that_is_not_empty_in_each_dtype(every_subject):
    taken = {
        (one.variant, one.dtype, one.architecture)
        for one in every_subject
        if computes(one)
    }
    left = {(one.variant, one.dtype, one.architecture) for one in every_subject} - taken
    assert {variant for variant, _, architecture in left} <= {*NEED_TMA, *NEED_TCGEN05}
    assert {one[2] for one in left if one[0] not in NEED_TCGEN05} == {80}
    assert {one[2] for one in left if one[0] in NEED_TCGEN05} == {80, 90}


@pytest.mark.parametrize("variant", ON_TMA)
def test_the_variants_on_tma_walk_tiles_edges_and_windows(every_subject, variant):
    dtype = kernels.ops["bmm"].variants[variant.partition("/")[2]].dtypes[0]
    taken = {
        one.probe
        for one in every_subject
        if (one.variant, one.dtype, one.architecture)
        == (variant, dtype_name(dtype), 90)
        and computes(one)
    }
    assert taken >= {
        "aligned_tiles",
        "aligned_tiles_tn",
        "aligned_tiles_nt",
        "aligned_windows",
        "aligned_shared_b",
        "aligned_entries",
    }


@pytest.mark.parametrize("variant", ON_TMA)
def test_a_probe_has_more_tiles_than_programs(variant):
    op, name = kernels.ops["bmm"], variant.partition("/")[2]
    inputs = op.probes["aligned_entries"](torch.float16, "cpu", 0)
    config = dict(op.variants[name].tunable.choose(*inputs))
    programs = 132 * config.get("programs_per_sm", 1)
    tiles = inputs[0].shape[0] * -(-inputs[0].shape[1] // config["BLOCK_M"])
    tiles *= -(-inputs[1].shape[2] // config["BLOCK_N"])
    assert tiles > programs


def test_every_variant_has_strides_past_32_bits(every_subject):
    far = [one for one in every_subject if "_far_" in one.probe]
    variants = {one.variant for one in every_subject}
    assert {one.variant for one in far if one.declined is None} == variants


@pytest.mark.parametrize("layout", ["far_outer", "far_inner"])
def test_far_operands_are_the_near_ones_in_other_memory(layout):
    op = kernels.ops["bmm"]
    near = op.probes["aligned_nt"](torch.float16, "cpu", 7)
    far = subjects.probes_of(op)[f"aligned_nt_{layout}"](torch.float16, "cpu", 7)
    for one, other in zip(near, far):
        assert torch.equal(one, other)
        reach = sum((n - 1) * step for n, step in zip(other.shape, other.stride()))
        assert reach >= 2**31
        assert [step == 1 for step in one.stride()] == [
            step == 1 for step in other.stride()
        ]
    if layout == "far_inner":
        assert all(step < 2**31 for step in far[0].stride()[1:])


def test_far_operands_keep_a_stride_of_zero():
    op = kernels.ops["bmm"]
    _, b = subjects.probes_of(op)["aligned_shared_b_far_inner"](torch.float16, "cpu", 7)
    assert b.stride(0) == 0
    assert torch.equal(b, op.probes["aligned_shared_b"](torch.float16, "cpu", 7)[1])


def test_fp8_is_declined_where_the_tensor_cores_lack_it(every_subject):
    lacking = [
        one for one in every_subject if (one.dtype, one.architecture) == (FP8, 80)
    ]
    assert lacking and all("fp8" in one.declined for one in lacking)
    assert not architectures.KNOWN[80].fp8


def recorded(launch, memory):
    """Executes nothing."""
    return SimpleNamespace(findings=(), counts={"instructions": 1})


def writing_the_mean(launch, memory):
    """Writes what the launches should give into the memory of the output, each time."""
    (g,) = subjects.inputs_of(REDUCED)
    mean = g.double().mean(0).to(g.dtype)
    (output,) = (one for one in memory.allocations if "empty [261] float16" in one.name)
    ctypes.memmove(output.start, mean.data_ptr(), output.size_bytes)
    memory.mark_initialised(output.start, output.size_bytes)
    return recorded(launch, memory)


@compiled
def test_a_launch_writes_the_memory_that_the_launcher_returns():
    verdict = subjects.verdict_of(REDUCED, None, writing_the_mean)
    assert verdict.wrong is None and verdict.is_right


@compiled
def test_outputs_that_nobody_wrote_are_wrong_in_a_line():
    verdict = subjects.verdict_of(REDUCED, None, recorded)
    assert "never written" in verdict.wrong and "\n" not in verdict.wrong
    assert not verdict.is_right and verdict.findings == ()
    assert [launch.kernel for launch in verdict.launches] == ["_sum_kernel"] * 2
    assert verdict.launches[0].counts == {"instructions": 1}
    assert 0 < verdict.compile_s < verdict.seconds
    assert pickle.loads(pickle.dumps(verdict)) == verdict


@compiled
def test_changed_inputs_are_wrong():
    def spoiling(launch, memory):
        (g,) = (one for one in memory.allocations if one.name.startswith("input"))
        ctypes.memset(g.start, 0, 2)
        return writing_the_mean(launch, memory)

    verdict = subjects.verdict_of(REDUCED, None, spoiling)
    assert verdict.wrong == "on ragged: it changed its inputs"


@compiled
def test_what_the_executor_raises_is_a_line_with_the_launches_before_it():
    launched = []

    def execute(launch, memory):
        launched.append(launch)
        if len(launched) == 2:
            raise ValueError("no such opcode\nat all")
        return SimpleNamespace(findings=("out of bounds",), counts=None)

    verdict = subjects.verdict_of(REDUCED, None, execute)
    assert "no such opcode" in verdict.wrong and "\n" not in verdict.wrong
    assert verdict.findings == ("out of bounds",)


def test_a_right_result_with_a_fault_is_not_right():
    assert Verdict(REDUCED, None, (), 1.0, 0.5).is_right
    for is_fault in (True, False):
        found = SimpleNamespace(is_fault=is_fault)
        launched = subjects.Launched("k", "", (1, 1, 1), (1, 1, 1), (found,), None)
        verdict = Verdict(REDUCED, None, (launched,), 1.0, 0.5)
        assert verdict.is_right is not is_fault and verdict.findings == (found,)


def shaped(sizes, variant="bmm/triton_tiled", dtype="float16"):
    subject = Subject(variant, dtype, "", 90)
    return subjects.shaped(subjects.variant_of(subject), sizes, dtype, 90)


def test_a_problem_of_any_size_is_a_subject():
    subject = shaped("B=4,M=100,N=64,K=32")
    a, b = subjects.inputs_of(subject)
    assert (a.shape, b.shape) == ((4, 100, 32), (4, 32, 64))
    assert a.is_contiguous() and b.is_contiguous()
    assert str(subject) == "bmm/triton_tiled float16 B=4,M=100,N=64,K=32 sm_90"
    several = subjects.inputs_of(
        shaped("B=2,w=7,b=9", "grad_reduce_multi/triton_one_launch")
    )
    assert [one.shape for one in several] == [(2, 7), (2, 9)]


@pytest.mark.parametrize(
    "sizes, variant, why",
    [
        ("B=64,M=4096,N=4096,K=4096", "bmm/triton_tiled", "up to 1.1e.09 on 3.4e.07"),
        ("B=9000,P=90000", "grad_reduce/triton_two_stage", "are emulated"),
        ("B=2,T=3,I=0,O=4", "wgrad_stats/triton_fused", "can't make inputs of B=2,T=3"),
    ],
)
def test_a_problem_that_is_too_large_or_can_t_be_made_says_so(sizes, variant, why):
    refused = shaped(sizes, variant)
    assert not refused and re.search(why, refused.reason)


@compiled
def test_a_problem_of_any_size_has_a_verdict_as_a_probe_has():
    subject = shaped("B=3,P=40", REDUCED.variant)
    done = executed.execute_subject(subject, ("late", "early"))
    assert done.is_right and done.counts.instructions
    assert done.schedules == ("late", "early")


def test_what_can_t_be_compiled_is_named_by_its_line(monkeypatch):
    error = ValueError("no summ")
    error.src, error.node = "def k():\n    x = tl.summ(y)", SimpleNamespace(lineno=2)

    def fail(*_):
        raise error

    monkeypatch.setattr(subjects, "emulate_call", fail)
    wrong = subjects.verdict_of(REDUCED, None, fail).wrong
    assert wrong == "ValueError: no summ at `x = tl.summ(y)`"
