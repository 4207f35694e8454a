"""The largest batch, tried out: what a memory law predicts is confirmed where it is
right, and refuted where not.

What limits memory runs in a process of its own, which keeps the limit.
"""

import ctypes
import dataclasses
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.machine import memory
from batchline.bench.stats.fits import MemoryLaw, fit_memory

MIB = 2**20
ROOM = 1024 * MIB
TINY = "bmm", "torch_bmm", "tiny_16"  # 3072 bytes a sample: two inputs and the output
RIGHT, TOO_HIGH = MemoryLaw(0, 3072, 0), MemoryLaw(0, 1.2 * 3072, 0)
CONFIRMED = {"95%": True, "105%": False}
ALL_FIT, NONE_FITS = {"95%": True, "105%": True}, {"95%": False, "105%": False}


@pytest.fixture
def fresh_process():
    """Calls a function of this file in a process whose heap keeps what is freed, as a
    worker's does.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [__name__]
    )  # what each process would import otherwise, for seconds
    with ProcessPoolExecutor(1, context, memory.keep_freed_memory) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result(
            timeout=60
        )


def _variant(op, name):
    return kernels.ops[op].variants[name]


def _measured_law(op, name, scenario, batches):
    """The law through the peaks and inputs really measured; None where peaks can't be
    measured.
    """
    variant, peaks, inputs = _variant(op, name), [], []
    for batch in batches:
        tensors = variant.op.make_inputs(scenario, batch, "float32", "cpu")
        variant(*tensors)  # warm
        peaks.append(memory.peak_of(lambda: variant(*tensors), "cpu").bytes)
        inputs.append(memory.storage_bytes(tensors))
    return (
        None
        if None in peaks
        else fit_memory(batches, [sum(both) for both in zip(peaks, inputs)])
    )


def _confirm(law, op, name, scenario, room_bytes=ROOM):
    return memory.confirm(
        _variant(op, name), scenario, "float32", law, "cpu", room_bytes
    )


def _confirm_measured(batches, *case):
    law = _measured_law(*case, batches)
    if law is None:
        return None
    wrong = (
        dataclasses.replace(law, per_sample=factor * law.per_sample)
        for factor in (0.8, 1.2)
    )
    return law, _confirm(law, *case), [_confirm(one, *case)["fits"] for one in wrong]


@pytest.mark.parametrize(
    "op, name, scenario, batches, sample_bytes",
    [
        ("grad_reduce", "torch_mean", "linear_512", (1, 3, 8), MIB),
        pytest.param(
            "bmm",
            "torch_bmm",
            "linear_grad_weight",
            (1, 2, 4),
            1.5 * MIB,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "bmm",
            "numba_cpu_tiled",
            "tiny_16",
            (256, 512, 1024),
            3072,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_measured_law_is_confirmed_and_one_off_by_a_fifth_is_not(
    fresh_process, op, name, scenario, batches, sample_bytes
):
    if _variant(op, name).why_not_here("cpu"):
        pytest.skip(_variant(op, name).why_not_here("cpu"))
    result = fresh_process(_confirm_measured, batches, op, name, scenario)
    if result is None:
        pytest.skip("peaks can't be measured here")
    law, right, wrong = result
    assert law.per_sample == pytest.approx(sample_bytes, rel=0.02)
    assert right["predicted"] == law.largest_batch(right["room_bytes"])
    assert right["predicted"] == pytest.approx(
        right["room_bytes"] / sample_bytes, rel=0.04
    )
    assert right["fits"] == CONFIRMED
    assert wrong == [NONE_FITS, ALL_FIT]


def _with_function(function):
    """torch.bmm's variant with another function in its place."""
    return dataclasses.replace(_variant(*TINY[:2]), function=function)


def _confirm_greedy():
    def greedy(a, b):
        c = torch.bmm(a, b)
        workspace = torch.empty_like(c) if len(a) > 4096 else None
        del workspace
        return c

    return memory.confirm(
        _with_function(greedy), TINY[2], "float32", RIGHT, "cpu", ROOM
    )


def test_a_variant_that_takes_twice_the_workspace_it_showed_is_refuted(fresh_process):
    assert fresh_process(_confirm_greedy)["fits"] == NONE_FITS


def _confirm_leaving():
    kept = []

    def leaving(a, b):
        c = torch.bmm(a, b)
        kept.append(
            bytearray(2000)
        )  # as a cache does; in the heap it comes to lie behind the output
        return c

    variant = _with_function(leaving)
    return [
        memory.confirm(variant, TINY[2], "float32", law, "cpu", ROOM)["fits"]
        for law in (TOO_HIGH, RIGHT)
    ]


def test_what_a_call_leaves_behind_does_not_hold_on_to_all_that_it_took(fresh_process):
    """Or the call at 105% fails for want of what the one at 95% took, and a law that is
    too high looks confirmed.
    """
    assert fresh_process(_confirm_leaving) == [ALL_FIT, CONFIRMED]


def test_what_the_first_problem_imports_is_not_taken_out_of_the_room(fresh_process):
    """On the meta device torch imports tens of MiB at the first addition."""
    assert (
        fresh_process(
            _confirm, MemoryLaw(MIB, MIB, 0), "grad_reduce", "torch_mean", "linear_512"
        )["fits"]
        == CONFIRMED
    )


def _room_after_freeing():
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    libc.free(libc.malloc(256 * MIB))  # the heap keeps it
    return _confirm(RIGHT, *TINY)["room_bytes"]


def test_the_room_is_what_was_asked_for_whatever_the_heap_had_kept(fresh_process):
    assert fresh_process(_room_after_freeing) == pytest.approx(ROOM, rel=0.02)


@pytest.mark.parametrize(
    "law, room_bytes",
    [
        (MemoryLaw(MIB, 0, 0), ROOM),
        (MemoryLaw(2 * ROOM, 1, 0), ROOM),
        (MemoryLaw(0, 2 * ROOM, 0), ROOM),
        (RIGHT, None),
    ],
    ids=[
        "does not grow",
        "fixed part over the room",
        "one sample over the room",
        "no limit",
    ],
)
def test_without_a_largest_batch_no_large_call_is_made_and_it_is_said_why(
    monkeypatch, law, room_bytes
):
    batches = []
    monkeypatch.setattr(memory, "room", lambda device: room_bytes)
    result = memory.confirm(
        _with_function(lambda a, b: batches.append(len(a))),
        TINY[2],
        "float32",
        law,
        "cpu",
    )
    assert list(result) == ["why_not"] and result["why_not"]
    assert batches == [1]  # to be warm


def test_memory_that_does_not_grow_is_not_said_to_leave_no_room_for_a_sample(
    monkeypatch,
):
    monkeypatch.setattr(memory, "room", lambda device: ROOM)
    fixed, too_large = (
        memory.confirm(_variant(*TINY[:2]), TINY[2], "float32", law, "cpu")["why_not"]
        for law in (MemoryLaw(MIB, 0, 0), MemoryLaw(2 * ROOM, 1, 0))
    )
    assert fixed != too_large


def test_an_error_that_is_not_about_memory_is_raised(monkeypatch):
    def broken(a, b):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(memory, "room", lambda device: MIB)
    with pytest.raises(RuntimeError, match="shapes differ"):
        memory.confirm(_with_function(broken), TINY[2], "float32", RIGHT, "cpu")


def _growth_of_unwritten():
    meta = _variant(*TINY[:2]).op.make_inputs(TINY[2], 128 * 1024, "float32", "meta")
    before = [memory._status_bytes(name) for name in ("VmData", "VmRSS")]
    tensors = memory._unwritten(meta, "cpu")
    after = [memory._status_bytes(name) for name in ("VmData", "VmRSS")]
    assert memory.storage_bytes(tensors) == 256 * MIB
    return [late - early for early, late in zip(before, after)]


def test_unwritten_inputs_are_allocated_and_take_no_memory(fresh_process):
    allocated, resident = fresh_process(_growth_of_unwritten)
    assert allocated == pytest.approx(256 * MIB, rel=0.02) and resident <= 16 * MIB


@pytest.mark.parametrize(
    "scenario", ["linear_forward", "linear_grad_input", "linear_grad_weight"]
)
def test_unwritten_inputs_lie_as_the_real_ones_do(scenario):
    op = _variant(*TINY[:2]).op
    unwritten = memory._unwritten(op.make_inputs(scenario, 3, "float16", "meta"), "cpu")
    real = op.make_inputs(scenario, 3, "float16", "cpu")
    for ours, theirs in zip(unwritten, real, strict=True):
        assert (ours.shape, ours.stride(), ours.dtype) == (
            theirs.shape,
            theirs.stride(),
            theirs.dtype,
        )
    assert memory.storage_bytes(unwritten) == memory.storage_bytes(real)


def test_a_shared_storage_stays_shared_and_counts_once():
    base = torch.empty(100, dtype=torch.float32, device="meta")
    first, last, other = memory._unwritten(
        (base[:60], base[40:], torch.empty(7, device="meta")), "cpu"
    )
    first[40:] = 1
    last[:20] += 1
    assert (first[40:] == 2).all() and last.storage_offset() == 40
    assert (
        memory.storage_bytes((first, last)) == 400
        and memory.storage_bytes((first, other, last)) == 428
    )
