"""What the peers' kernels compile to, and whether they are right in emulation, with no
GPU. Their libraries are in the environment of `make bench-peers`; where they are not,
nothing is tested. `pytest -s` prints the compiled facts.
"""

import dataclasses
import importlib
import re
import struct

import pytest
import torch

from batchline.bench.measure.checking import check
from batchline.bench.measure.compiled import compiler, sass
from batchline.bench.measure.emulator import capture, execution
from batchline.bench.measure.emulator.launch import KernelLaunch
from batchline.bench.measure.emulator.memory import GlobalMemory
from batchline.kernels import architectures, backends
from batchline.kernels.bmm import bmm, tilelang_gemm

# Helion makes a Triton kernel, and is captured as one.
HELION = dataclasses.replace(bmm.variants["helion_tile"], backend="triton")
TILELANG = bmm.variants["tilelang_gemm"]
SCENARIOS = ("linear_grad_weight", "attention_scores", "skinny_long_k", "tiny_16")
PROBES = ("ragged", "transposed_b", "shared_b", "deep", "nan", "empty_k", "many_tiles")
needs_helion = pytest.mark.skipif(
    backends.why_absent("helion") is not None or backends.interpreted("triton"),
    reason="Helion is not installed",
)
needs_tilelang = pytest.mark.skipif(
    backends.why_absent("tilelang") is not None, reason="TileLang is not installed"
)


@needs_helion
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_helions_kernel_is_on_tensor_cores_and_spills_nothing(scenario, architecture):
    inputs = bmm.make_inputs(scenario, 1, "float16", "cpu")
    (facts,) = compiler.compile_variant(HELION, inputs, architecture)
    print(scenario, facts)
    assert (facts.stack_bytes, facts.spills) == (0, 0)
    widest = scenario != "tiny_16" and architecture == 90
    assert facts.matrix_instruction == ("wgmma.mma_async" if widest else "mma.sync")


@needs_helion
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("probe", PROBES)
def test_helions_kernel_is_right_in_emulation(probe, architecture, dtype):
    inputs = bmm.probes[probe](getattr(torch, dtype), "cpu", 0)
    call = capture.emulate_call(HELION, inputs, architecture, _execute)
    expected = check.held_to(HELION, inputs, check.expect(bmm, inputs))
    check.check_outputs(call.returned, inputs, expected, probe)
    assert not [found for _, done in call.launches for found in _faults(done)]


@needs_tilelang
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("scenario", (*SCENARIOS, "odd_127x257x65", "linear_forward"))
def test_tilelangs_kernel_spills_nothing_and_has_wgmma_behind_tma(
    scenario, architecture
):
    inputs = bmm.make_inputs(scenario, 2, "float16", "meta")
    *_, problem = tilelang_gemm.problem_of(*inputs)
    source, cubin = _compile(problem, architecture, "cubin")
    (facts,) = sass.read([cubin], architecture)
    print(scenario, architecture, dataclasses.replace(facts, listing=""))
    assert (facts.stack_bytes, facts.spills) == (0, 0) and facts.matrix
    is_odd = scenario.startswith("odd")  # rows that TMA does not take
    assert ("tma_load" in source) == (architecture == 90 and not is_odd)
    assert ("wgmma" in source) == (architecture == 90)


@needs_tilelang
@pytest.mark.parametrize("probe", [name for name in PROBES if name != "empty_k"])
def test_tilelangs_kernel_is_right_in_emulation_on_sm_80(probe):
    inputs = bmm.probes[probe](torch.float16, "cpu", 0)
    a, b, problem = tilelang_gemm.problem_of(*inputs)
    c = torch.full((problem.batch, problem.m, problem.n), torch.nan, dtype=a.dtype)
    done = _execute(*_launch(problem, {"a": a, "b": b, "c": c}))
    expected = check.held_to(TILELANG, inputs, check.expect(bmm, inputs))
    check.check_outputs(c, inputs, expected, probe)
    assert not _faults(done)


def _execute(launch, memory):
    return execution.execute(launch, memory, execution.LATE)


def _faults(done):
    return [found for found in done.findings if found.is_fault]


def _compile(problem, architecture, form):
    """The CUDA source, and the PTX or the cubin, as TileLang's own launcher has it
    compiled.
    """
    made = importlib.import_module("batchline.kernels.bmm._tilelang_product")
    nvrtc = importlib.import_module("tilelang.contrib.nvrtc")
    tilelang = importlib.import_module("tilelang")
    target = made.target_for(architectures.known(architecture))
    with tilelang.tvm.target.Target(target):
        program = made.program_of(problem, made.tile_of(problem))
        source = tilelang.lower(program, target=target).kernel_source
    folders = tilelang.env.TILELANG_TEMPLATE_PATH, tilelang.env.CUTLASS_INCLUDE_DIR
    options = [f"-I{folder}" for folder in folders] + made.include_flags()
    options.append("-D__CUDACC_VER_MAJOR__=13")
    return source, bytes(nvrtc.compile_cuda(source, form, architecture, options))


def _launch(problem, tensors):
    """The launch on sm_80, and the memory of the tensors, of which c is not written."""
    made = importlib.import_module("batchline.kernels.bmm._tilelang_product")
    source, text = _compile(problem, 80, "ptx")
    name, arguments = re.search(
        r"__launch_bounds__\(.*?\) (\w+)\((.*?)\)", source
    ).groups()
    places = [argument.split()[-1] for argument in arguments.split(",")]
    memory = GlobalMemory()
    for place in places:
        tensor = tensors[place]
        size_bytes = tensor.numel() * tensor.element_size()
        memory.add(tensor.data_ptr(), size_bytes, place, place != "c")
    tile = made.tile_of(problem)
    blocks = problem.batch * -(-problem.m // tile.m) * -(-problem.n // tile.n)
    launch = KernelLaunch(
        kernel=name,
        entry=name,
        ptx=_in_the_order_of_the_isa(text.decode().rstrip("\0")),
        architecture=80,
        grid=(blocks, 1, 1),
        block=(tile.threads, 1, 1),
        cluster=(1, 1, 1),
        dynamic_shared_bytes=tile.stages * (tile.m + tile.n) * tile.k * 2,
        arguments=tuple(struct.pack("<Q", tensors[one].data_ptr()) for one in places),
        registers=None,
        config="",
    )
    return launch, memory


def _in_the_order_of_the_isa(text):
    """ldmatrix with its shape first, as the PTX ISA has it: ptxas takes either."""
    return re.sub(r"\.(x[124])(\.trans)?\.m8n8\.", r".m8n8.\1\2.", text)
