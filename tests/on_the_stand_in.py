"""What the stand-in for a GPU does where CUDA bites. tests/test_stand_in.py runs this
in a process that has it.
"""

import copy
import functools
import gc

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.machine import memory
from batchline.bench.measure.stand_in.devices import host_only
from batchline.bench.measure.stand_in.memory import CAPACITY_BYTES
from batchline.bench.measure.stand_in.timeline import CONTEXT, KERNEL_S
from batchline.bench.measure.timing import clocks
from batchline.bench.measure.timing.clocks import make_clock
from batchline.bench.measure.worker import probe_once
from batchline.bench.measure.worker.preparing import slower

NAIVE = kernels.ops["bmm"].variants["triton_naive"]
NUMBA = kernels.ops["bmm"].variants["numba_cuda_tiny"]


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    CONTEXT.why_lost = None
    torch.cuda.set_device(0)
    torch.cuda.set_stream(torch.cuda.default_stream())
    torch.cuda.synchronize()


def operands(device="cuda", batch=1, size=4):
    return tuple(
        torch.ones(batch, size, size, dtype=torch.float16, device=device) for _ in "ab"
    )


def in_memory(tensor):
    """What lies there now, whoever has to write it yet."""
    with host_only():
        return tensor.clone()


@pytest.mark.parametrize("variant", [NAIVE, NUMBA], ids=lambda variant: variant.name)
def test_a_kernel_is_computed_when_it_is_waited_for(variant):
    c = variant(*operands())
    assert in_memory(c).isnan().all()
    torch.cuda.synchronize()
    assert (in_memory(c) == 4).all()
    c = variant(*operands())
    assert bool(
        (c == 4).all()
    )  # an operation of torch's on the same stream comes after it


def test_another_stream_does_not_wait_for_it():
    a, b = operands()
    torch.cuda.synchronize()
    other = torch.cuda.Stream()
    c = NAIVE(a, b)
    with torch.cuda.stream(other):
        early = c + 0
        other.wait_stream(torch.cuda.default_stream())
        late = c + 0
        other.synchronize()
    assert in_memory(early).isnan().all() and (in_memory(late) == 4).all()


def test_events_pass_when_their_stream_has_come_to_them():
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(2_000_000)
    start.record()
    NAIVE(*operands())
    end.record()
    assert not start.query() and not end.query()
    with pytest.raises(RuntimeError, match="not ready"):
        start.elapsed_time(end)
    end.synchronize()
    assert start.query() and start.elapsed_time(end) > 1


def test_a_replay_writes_into_what_the_capture_gave_and_the_capture_computes_nothing():
    a, b = operands()
    counted = torch.zeros(1, device="cuda")
    given = []

    def launch():
        given[:] = [NAIVE(a, b) + 1]
        counted.add_(1)

    replay = clocks.hardware("cuda").capture(launch, 1)
    (result,) = given
    assert in_memory(result).isnan().all() and float(counted) == 0
    replay()
    assert in_memory(result).isnan().all()
    torch.cuda.synchronize()
    assert (in_memory(result) == 5).all() and float(counted) == 1
    a.fill_(2)
    assert replay() is None
    assert bool((result == 9).all()) and float(counted) == 2


def test_a_replay_that_does_not_write_an_output_leaves_nan_in_it():
    x, given = torch.ones(2, device="cuda"), []

    def launch():
        out = torch.empty(2, device="cuda")
        out[:1].copy_(x[:1])
        given[:] = [out]

    replay = clocks.hardware("cuda").capture(launch, 1)
    given[0].fill_(7)
    replay()
    assert given[0].cpu().isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    "breaks",
    [
        lambda a, b: float(a.sum()),
        lambda a, b: torch.cuda.synchronize(),
        lambda a, b: a.copy_(torch.zeros(1, 4, 4)),
        lambda a, b: a.cpu(),
        lambda a, b: torch.equal(a, b),
        lambda a, b: a[a > 0],
    ],
    ids=["item", "synchronize", "pageable", "cpu", "equal", "mask"],
)
def test_a_capture_fails_on_what_waits(breaks):
    a, b = operands()
    before = torch.cuda.current_stream()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(
        RuntimeError, match="previous error during capture|stream is capturing"
    ):
        with torch.cuda.graph(graph):
            breaks(a, b)
    assert torch.cuda.current_stream() != before  # as torch.cuda.graph leaves it
    torch.cuda.set_stream(before)
    with pytest.raises(RuntimeError, match="capture"):
        clocks.hardware("cuda").capture(lambda: breaks(a, b), 1)
    assert torch.cuda.current_stream() == before


def test_memory_is_nan_when_it_is_handed_out_and_again_when_it_was_freed():
    first = torch.empty(1000, device="cuda")
    assert first.isnan().all()
    address = first.fill_(1).data_ptr()
    before = torch.cuda.memory_allocated()
    del first
    gc.collect()
    assert torch.cuda.memory_allocated() < before
    again = torch.empty(1000, device="cuda")
    assert again.data_ptr() == address and again.isnan().all()


def test_memory_runs_out():
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        torch.empty(CAPACITY_BYTES + 1, dtype=torch.uint8, device="cuda")
    assert torch.cuda.mem_get_info()[1] == CAPACITY_BYTES


def test_a_peak_is_what_a_call_took():
    x = torch.ones(2**18, device="cuda")
    peak = memory.peak_of(lambda: (x + 1).sum() + (x * 2).sum(), "cuda")
    assert 2**20 <= peak.bytes < 1.1 * 2**20


def test_devices_do_not_mix():
    here, there = torch.ones(4, device="cuda:0"), torch.ones(4, device="cuda:1")
    assert (
        there.device == torch.device("cuda", 1)
        and there.is_cuda
        and not here.cpu().is_cuda
    )
    for other in (there, torch.ones(4)):
        with pytest.raises(
            RuntimeError, match="Expected all tensors to be on the same device"
        ):
            here + other
    assert (there.to(here.device) + here).device == here.device
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        here.numpy()


def test_a_backward_pass_in_python_is_on_the_device_too():
    seen = []

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return 2 * x

        @staticmethod
        def backward(context, gradient):
            seen.append((gradient.is_cuda, gradient.device))
            return torch.empty(3, device=gradient.device).fill_(2)

    x = torch.ones(3, device="cuda", requires_grad=True)
    Doubled.apply(x).sum().backward()
    assert (
        seen == [(True, torch.device("cuda", 0))]
        and x.grad.is_cuda
        and (x.grad == 2).all()
    )
    y = torch.ones(3, device="cuda", requires_grad=True)
    for _ in range(2):
        y.sum().backward()  # the gradient is an expanded one, which torch copies
    assert y.grad.is_cuda and (y.grad == 2).all()


def test_a_kernel_on_the_wrong_device_breaks_the_context():
    from batchline.kernels.bmm.triton_naive import triton_naive

    unguarded = getattr(triton_naive, "__wrapped__", triton_naive)
    unguarded(*operands("cuda:1"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match="illegal memory access"):  # for good
        torch.ones(1, device="cuda").add_(1)


def variants_of_our_own():
    for op in kernels.ops.values():
        for variant in op.variants.values():
            if variant.backend in ("triton", "numba_cuda") and not variant.slow_start:
                yield pytest.param(variant, id=variant.id)


@pytest.mark.parametrize("variant", list(variants_of_our_own()))
def test_every_launch_is_on_the_device_of_its_tensors(variant):
    """The device that is current is another one: on CUDA the kernel would be launched
    there.
    """
    probes = [
        name
        for name, make in variant.op.probes.items()
        if variant.op.flops(*make(torch.float16, "meta", 0)) < 2e3
    ]
    for name in probes:
        inputs = variant.op.probes[name](torch.float16, "cuda:1", 0)
        if variant.why_unsupported(*inputs) is None and any(
            tensor.numel() for tensor in inputs
        ):
            outputs = variant(*inputs)
            torch.cuda.synchronize(1)
            first = outputs[0] if isinstance(outputs, tuple) else outputs
            assert (
                first.device == torch.device("cuda", 1)
                and torch.cuda.current_device() == 0
            )
            return
    pytest.skip("it takes no probe that is small enough here")


def test_an_ops_call_chooses_a_kernel():
    """The stand-in sees torch's operations by modes, and where a mode watches a call is
    the baseline's.
    """
    op = kernels.ops["bmm"]
    traits, sizes = op.describe(*operands())
    entry = {"traits": traits, "sizes": list(sizes), "faster": {NAIVE.name: 2.0}}
    assert (
        op.dispatch.by_table({"winners": [entry]}).look_up(*operands()).variant
        == NAIVE.name
    )


def test_what_is_planted_takes_so_much_more_on_the_device():
    machine = clocks.hardware("cuda")

    def seconds(variant):
        clock = make_clock(
            "device_cold",
            machine,
            [functools.partial(variant, *operands())],
            1e-2,
            1e-2,
        )
        return min(clock.sample() for _ in range(5))

    assert seconds(slower(NAIVE, 0.5, machine)) == pytest.approx(
        1.5 * seconds(NAIVE), rel=0.05
    )


def test_a_cold_sample_has_nothing_in_it_that_the_flush_wrote():
    """What lies in the L2 unwritten is written back in the time of the kernel that
    comes next.
    """
    machine = clocks.hardware("cuda")
    launch = functools.partial(NAIVE, *operands())
    alone = copy.copy(machine)
    alone.flush = machine.flush_by_writing

    def cold_s(on):
        clock = make_clock("device_cold", on, [launch], 1e-2, 1e-2)
        return min(clock.sample() for _ in range(5))

    assert (
        cold_s(machine) == pytest.approx(KERNEL_S, rel=0.02)
        and cold_s(alone) > 1.5 * KERNEL_S
    )


@pytest.mark.parametrize(
    "name, shape",
    [
        ("grad_reduce", (300, 2**17)),
        ("grad_stats", (300, 2**17)),
        ("grad_reduce_multi", (300, 2**17)),
        ("bmm", (150, 256, 512)),
        ("wgrad_stats", (150, 256, 512)),
    ],
)
def test_a_reference_needs_little_memory_besides(name, shape):
    """All of the inputs in fp64 would be four times their size, and more than there is
    on a GPU from B=1024 on.
    """
    op = kernels.ops[name]
    inputs = [
        torch.ones(shape, dtype=torch.float16, device="cuda")
        for _ in range(2 if len(shape) == 3 else 1)
    ]
    if name == "bmm":
        inputs[1] = inputs[1].mT
    own = sum(tensor.nbytes for tensor in inputs)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = op.reference(*inputs)
    op.tolerance(results, *inputs)
    outputs = sum(
        tensor.nbytes
        for tensor in (results if isinstance(results, tuple) else (results,))
    )
    assert torch.cuda.max_memory_allocated() - before < 1.5 * own + 4 * outputs + 2**27


def test_a_capture_writes_nothing_to_an_output_that_it_is_given():
    a, b = operands()
    total = torch.full((1, 4, 4), 5.0, device="cuda")
    replay = clocks.hardware("cuda").capture(
        lambda: torch.baddbmm(total, a, b, out_dtype=torch.float32, out=total), 1
    )
    assert (in_memory(total) == 5).all()
    replay()
    torch.cuda.synchronize()
    assert (in_memory(total) == 9).all()


def test_a_kernel_that_counts_its_programs_is_right_again_and_again():
    one_launch = kernels.ops["grad_stats"].variants["triton_one_launch"]
    g = torch.arange(12000.0, device="cuda").view(4, 3000).remainder_(7)
    expected = g.square().sum(1)
    given = []

    def launch():
        given[:] = [one_launch(g)[1]]

    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            assert all(torch.equal(one_launch(g)[1], expected) for _ in range(3))
            stream.synchronize()
    replay = clocks.hardware("cuda").capture(launch, 1)
    for _ in range(2):
        replay()
        assert torch.equal(one_launch(g)[1], expected)
        assert torch.equal(given[0], expected)


@pytest.mark.parametrize("variant", [NAIVE, NUMBA], ids=lambda variant: variant.name)
def test_what_a_sanitizer_watches_is_one_right_call_of_one_probe(
    variant, monkeypatch, capsys
):
    launched = []
    monkeypatch.setattr(
        type(variant),
        "__call__",
        lambda self, *inputs: launched.append(1) or self.function(*inputs),
    )
    assert probe_once.main(variant.id) == 0 and launched == [1]
    assert "right on " in capsys.readouterr().out


def test_of_a_kernel_that_is_wrong_on_it_the_sanitizer_hears(monkeypatch, capsys):
    monkeypatch.setattr(
        type(NAIVE), "__call__", lambda self, *inputs: self.function(*inputs) + 1
    )
    assert probe_once.main(NAIVE.id) == 1 and "wrong: on " in capsys.readouterr().out
