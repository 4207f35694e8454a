"""Kernels compiled ahead: which there are, and that a process that launches them later
compiles nothing.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from batchline import kernels
from batchline.bench.measure import ahead
from batchline.bench.measure.ahead import folder, work
from batchline.bench.measure.ahead.gpu import H200, Gpu, pretended
from batchline.bench.measure.checking import steadiness
from batchline.bench.measure.compiled.compile_pool import Pool
from batchline.bench.measure.compiled.compiler import why_cannot_compile
from batchline.kernels.backends import interpreted, tl, triton
from batchline.kernels.op import Variant
from batchline.kernels.target import multiprocessors
from tests.as_a_gpu_worker import CHANGES
from tests.plans import planned

REPOSITORY = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(
    any(
        why_cannot_compile(backend) or interpreted(backend)
        for backend in ("triton", "numba_cuda")
    ),
    reason="needs both compilers",
)

# Arrays and closures over device functions and intrinsics; pointers and descriptors,
# one launch and two.
LAUNCHED = [
    ("bmm/numba_cuda_naive", "tiny_16", "float32", 3),
    ("bmm/numba_cuda_mma", "square_256", "float16", 8),
    ("grad_reduce/numba_cuda_two_stage", "digits", "float32", 3),
    ("bmm/triton_tiled", "square_256", "float16", 8),
    ("bmm/triton_persistent_tma", "square_256", "float16", 8),
    ("bmm/gluon_ping_pong", "square_256", "float16", 8),
    ("bmm/gluon_6xbf16", "square_256", "float32", 8),
    ("bmm/gluon_cluster", "square_256", "float16", 8),
]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Two processes that compile into `pool.folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(folder.VARIABLE, str(tmp_path_factory.mktemp("kernels")))
        with folder.kernels_folder() as place, Pool(2) as made:
            made.folder = place
            yield made


@pytest.fixture(scope="module")
def cache(pool):
    """A folder of kernels that other processes have compiled ahead, for the problems of
    LAUNCHED.
    """
    keys = {
        key for problem in LAUNCHED for key in keys_at(*problem)
    }  # and not those of the probes
    jobs = [
        job
        for job in ahead.specialisations(LAUNCHED, H200, pool).jobs
        if job.key in keys
    ]
    made, failed = ahead.compile_all(jobs, H200, pool)
    assert (
        not failed
        and len(made) == len(keys)
        and all(one.is_new for one in made.values())
    )
    again, failed = ahead.compile_all(jobs, H200, pool)
    assert not failed and not any(one.is_new for one in again.values())
    return pool.folder


def keys_at(name, scenario, dtype, batch):
    op, _, variant = name.partition("/")
    shapes = kernels.ops[op].make_inputs(scenario, batch, dtype, "meta")
    return work.keys_of(kernels.ops[op].variants[variant], shapes, H200)


def launched_elsewhere(cache, launched):
    """(how many binaries were loaded, what was compiled) of each launch, by a process
    that has just started.
    """
    environment = os.environ | {
        folder.VARIABLE: str(cache),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.as_a_gpu_worker", json.dumps(launched)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.commands
def test_a_launch_in_another_process_finds_its_kernels_compiled(cache):
    found = launched_elsewhere(cache, [(*problem, None) for problem in LAUNCHED])
    assert all(loaded and compiled == [] for loaded, compiled in found), found


@pytest.mark.slow
def test_a_launch_that_differs_in_anything_of_the_key_is_compiled(cache):
    tiled = LAUNCHED[3]
    others = [(*tiled, change) for change in CHANGES]
    others += [
        (*tiled[:2], "bfloat16", 8, None),
        ("bmm/numba_cuda_naive", "tiny_16", "float16", 3, None),
        ("bmm/numba_cuda_mma", "square_256", "bfloat16", 8, None),
    ]
    found = launched_elsewhere(cache, others)
    assert [compiled for _, compiled in found] == [["triton"]] * 4 + [["nvvm"]] * 2


@pytest.mark.slow
def test_what_is_on_disk_and_damaged_is_compiled(cache, tmp_path):
    copied = tmp_path / "kernels"
    shutil.copytree(cache, copied)
    for kernel in (copied / "numba").iterdir():
        kernel.write_bytes(kernel.read_bytes()[:-1] + b"x")
    assert launched_elsewhere(copied, [(*LAUNCHED[0], None)]) == [[0, ["nvvm"]]]


@pytest.mark.compiled
@pytest.mark.parametrize("name", kernels.ops)
def test_what_a_launch_compiles_for_is_the_same_with_tensors_in_memory(name):
    """Of every probe that is small: ragged, sliced at odd addresses, of one sample,
    shared.
    """
    for variant in kernels.ops[name].variants.values():
        if why_cannot_compile(variant.backend) is None:
            for place in work.places(
                variant, [(next(iter(variant.op.scenarios)), "float16", 1)], None
            ):
                shapes = (
                    work.inputs_at(variant, place, None)
                    if place.kind == work.PROBE
                    else None
                )
                if (
                    shapes is not None
                    and sum(tensor.nbytes for tensor in shapes) < 2**20
                ):
                    in_memory = variant.op.probes[place.name](torch.float16, "cpu", 0)
                    assert (
                        work.keys_of(variant, in_memory, H200).keys()
                        == work.keys_of(variant, shapes, H200).keys()
                    ), f"{variant.id} on {place}"


def test_noting_allocates_nothing_and_takes_no_gpu():
    before = torch.cuda.is_available()
    with pretended(H200):
        tensor = torch.empty(1 << 40, dtype=torch.float16, device="cuda")
        assert (
            tensor.is_cuda
            and tensor.device == torch.device("cuda", 0)
            and not tensor.is_meta
        )
        assert tensor[1:].data_ptr() % 16 == 2 and tensor.new_empty(3).is_cuda
        assert (
            torch.cuda.get_device_properties(0).multi_processor_count
            == H200.multiprocessors
        )
    assert torch.cuda.is_available() is before


@pytest.mark.compiled
def test_a_kernel_that_several_launch_is_compiled_once_and_what_comes_first_first(pool):
    needed = ahead.specialisations(
        [
            ("bmm/triton_tiled", "square_1024", "float16", 8),
            ("bmm/triton_split_k", "square_1024", "float16", 8),
            ("bmm/numba_cuda_naive", "tiny_16", "float16", 3),
        ],
        H200,
        pool,
    )
    assert needed.unknown == ()
    assert len({job.key for job in needed.jobs}) == len(needed.jobs)
    in_order = [job.variant for job in needed.jobs if job.place.kind != work.CONDITION]
    assert in_order == sorted(
        in_order,
        key=["bmm/triton_tiled", "bmm/triton_split_k", "bmm/numba_cuda_naive"].index,
    )


@pytest.mark.compiled
def test_a_launcher_that_raises_and_a_kernel_that_is_not_launched_are_lines_and_the_rest_is_done(
    pool,
):
    needed = ahead.specialisations(
        [
            ("bmm/triton_naive", "no_such", "float16", 3),
            ("bmm/triton_naive", "tiny_16", "float16", 3),
            ("bmm/no_such", "tiny_16", "float16", 3),
        ],
        H200,
        pool,
    )
    lost = needed.jobs[0]._replace(key="another")
    made, failed = ahead.compile_all([lost], H200, pool)
    assert needed.jobs and len(needed.unknown) == 2
    assert made == {} and failed == [
        f"{lost.variant} on {lost.place}: RuntimeError: bmm/triton_naive launches another "
        "kernel than before"
    ]


def test_where_kernels_are_interpreted_nothing_is_compiled(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    kernels_of_run = ahead.Ahead(H200, nearby_seed=1)
    kernels_of_run.note([])
    done = kernels_of_run.compile([], 60, lambda done, of: pytest.fail("compiles"))
    assert done.count == 0 and "interpret" in done.why_none


def test_a_numba_that_lacks_what_the_cache_is_made_of_compiles_at_each_launch(
    monkeypatch,
):
    monkeypatch.setitem(
        sys.modules, "batchline.bench.measure.ahead.stored_kernels", None
    )
    assert folder.numba_keeper() is None
    folder.load_what_was_compiled()
    shapes = kernels.ops["bmm"].make_inputs("tiny_16", 3, "float32", "meta")
    assert work.keys_of(kernels.ops["bmm"].variants["triton_naive"], shapes, H200)


def test_what_declines_a_problem_is_asked_for_the_gpu_that_is_compiled_for(monkeypatch):
    older = Gpu("an older one", 80, 108, 163 * 1024)
    problem = ("square_256", "float16", 8)
    noted = {
        gpu: work.note("bmm/triton_persistent_tma", (problem,), gpu, None)
        for gpu in (H200, older)
    }
    assert noted[H200][0] and noted[older] == ([], [])


def test_a_run_has_a_folder_of_its_own_unless_one_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv(folder.VARIABLE, raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "before")
    with folder.kernels_folder() as own:
        (own / "triton").mkdir()
        assert (
            os.environ["TRITON_CACHE_DIR"] == str(own / "triton")
            and folder.numba_folder() == own / "numba"
        )
    assert (
        not own.exists()
        and os.environ["TRITON_CACHE_DIR"] == "before"
        and folder.numba_folder() is None
    )
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path))
    with folder.kernels_folder() as named:
        assert named == tmp_path
    assert tmp_path.exists()


def test_sizes_near_a_scenario_are_the_same_for_a_seed_and_else_nobody_foresees_them():
    variant = kernels.ops["bmm"].variants["torch_bmm"]

    def drawn(seed):
        found = steadiness.sizes_near(variant, "square_256", "float16", seed)
        return [(dict(near.sizes), batch) for near, batch in found]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)


@triton.autotune(
    configs=[
        triton.Config({"BLOCK": block}, num_warps=warps)
        for block in (16, 32)
        for warps in (1, 2)
    ],
    key=["n"],
)
@triton.jit
def _tried(x, n, BLOCK: tl.constexpr):
    tl.store(x + tl.arange(0, BLOCK), 0.0, mask=tl.arange(0, BLOCK) < n)


def test_a_launcher_is_asked_with_the_gpu_that_it_will_run_on():
    def fills(a, b):
        _tried.fn[(1,)](
            a, a.numel(), BLOCK=16 if multiprocessors(a.device) < 100 else 32
        )

    variant = Variant(kernels.ops["bmm"], fills, "triton")
    shapes = kernels.ops["bmm"].make_inputs("tiny_16", 3, "float32", "meta")
    keys = [
        work.keys_of(variant, shapes, gpu).keys()
        for gpu in (
            H200,
            Gpu("a small one", 90, 16, 96 * 1024),
            Gpu("an older one", 80, 108, 163 * 1024),
        )
    ]
    assert not keys[0] & keys[1] and not keys[0] & keys[2]


@pytest.mark.compiled
def test_a_kernel_with_several_configurations_is_compiled_in_each():
    def tried(a, b):
        _tried[(1,)](a, a.numel())

    variant = Variant(kernels.ops["bmm"], tried, "triton")
    shapes = kernels.ops["bmm"].make_inputs("tiny_16", 3, "float32", "meta")
    assert len(work.keys_of(variant, shapes, H200)) == 4


@pytest.mark.slow
@pytest.mark.commands
def test_what_compiling_is_expected_to_take_is_told_once_for_each_kernel_and_shared_by_the_processes(
    monkeypatch,
):
    cases = [
        case
        for case in planned("smoke", "cpu").cases
        if case.variant.id == "bmm/triton_naive"
    ][:3]
    cases = [replace(case, refusal=None) for case in cases]
    first, second, _ = ahead.problems_of(cases)
    place = work.Place(work.PROBE, "a", "float32")
    jobs = tuple(
        ahead.Job(compiler, key, first[0], place, problem)
        for compiler, key, problem in (
            ("triton", "1", first),
            ("numba_cuda", "2", first),
            ("triton", "3", second),
        )
    )
    monkeypatch.setattr(ahead, "specialisations", lambda *asked: ahead.Needed(jobs, ()))
    kernels_of_run = ahead.Ahead(H200, nearby_seed=1, processes=2)
    kernels_of_run.note(cases)
    triton_s, numba_s = (
        ahead.COMPILE_S[compiler] / 2 for compiler in ("triton", "numba_cuda")
    )
    assert [kernels_of_run.seconds_for([case]) for case in cases] == pytest.approx(
        [triton_s + numba_s, triton_s, 0]
    )
