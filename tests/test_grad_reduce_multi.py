"""Several parameters' gradients reduced at once: what is asked, one launch for all, and
a table that is never stale.
"""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.bench.measure.checking.check import Poison, check_outputs, expect
from batchline.bench.measure.compiled.compiler import why_cannot_compile
from batchline.bench.measure.compiled.static_facts import grids_of
from batchline.kernels import backends
from batchline.kernels.draw import Draw
from batchline.kernels.grad_reduce import grad_reduce
from batchline.kernels.grad_reduce_multi import _table, grad_reduce_multi
from batchline.kernels.grad_reduce_multi._table import table_of

GPU = [
    name
    for name, variant in grad_reduce_multi.variants.items()
    if variant.needs == "cuda"
]
HERE = [
    name
    for name, variant in grad_reduce_multi.variants.items()
    if not variant.why_not_here("cpu")
]
SIZES = (130, 1, 0, 64, 7)


@pytest.fixture(autouse=True)
def no_tables(monkeypatch):
    monkeypatch.setattr(_table, "_tables", {})
    monkeypatch.setattr(_table, "_captured", {})


def _gradients(batch=5, sizes=SIZES, dtype=torch.float32):
    draw = Draw(dtype, "cpu", 3)
    return tuple(draw.normal(batch, size) for size in sizes)


def _check(name, *gs):
    returned = grad_reduce_multi.variants[name](*gs)
    check_outputs(returned, gs, expect(grad_reduce_multi, gs), "here")
    return returned


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9),
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.integers(0, 2**32),
)
def test_the_reference_is_numpys(batch, sizes, seed):
    draw = Draw(torch.float32, "cpu", seed)
    gs = [draw.normal(batch, size) for size in sizes]
    means = grad_reduce_multi.reference(*gs)
    assert isinstance(means, tuple) and len(means) == len(gs)
    for mean, g in zip(means, gs):
        np.testing.assert_allclose(
            mean.numpy(), g.numpy().astype(np.float64).mean(0), atol=1e-14
        )


def test_each_is_what_grad_reduce_asks():
    gs = _gradients()
    means = grad_reduce_multi.reference(*gs)
    tolerances = grad_reduce_multi.tolerance(means, *gs)
    for g, mean, tolerance in zip(gs, means, tolerances, strict=True):
        assert torch.equal(tolerance, grad_reduce.tolerance(mean, g))
    assert grad_reduce_multi.flops(*gs) == 5 * sum(SIZES)
    assert grad_reduce_multi.least_bytes(*gs) == 4 * (5 + 1) * sum(SIZES)


def test_a_lone_mean_may_come_bare():
    (g,) = _gradients(sizes=(9,))
    (bare,) = grad_reduce_multi.tolerance(grad_reduce.reference(g), g)
    assert torch.equal(
        bare, grad_reduce_multi.tolerance(grad_reduce_multi.reference(g), g)[0]
    )


def test_the_scenarios_are_real_shapes():
    digits = grad_reduce_multi.make_inputs("digits", 3, "float32", "cpu")
    assert [tuple(g.shape) for g in digits] == [(3, 8192), (3, 128), (3, 1280), (3, 10)]
    assert {g.stride() for g in digits} == {(9610, 1)}
    assert len({g.untyped_storage().data_ptr() for g in digits}) == 1
    block, norms = (
        grad_reduce_multi.scenarios[name].sizes
        for name in ("gpt2_block", "layer_norms")
    )
    assert (
        len(block) == 12
        and sum(block.values()) == grad_reduce.scenarios["transformer_block"].sizes["P"]
    )
    assert len(norms) == 50 and set(norms.values()) == {768}


@pytest.mark.parametrize("name", HERE)
def test_there_is_a_mean_for_each_in_order(name):
    returned = _check(name, *_gradients())
    assert isinstance(returned, tuple) and [len(mean) for mean in returned] == list(
        SIZES
    )
    assert isinstance(_check(name, *_gradients(sizes=(5,))), tuple)


@pytest.mark.compiled
@pytest.mark.parametrize("count", [1, 4, 50, 70])
@pytest.mark.parametrize("name", GPU)
def test_one_kernel_is_launched_however_many_tensors(name, count):
    variant = grad_reduce_multi.variants[name]
    if why_cannot_compile(variant.backend) is not None or backends.interpreted(
        variant.backend
    ):
        pytest.skip("needs the compiler itself")
    for batch in (0, 3, 5000):
        (grid,) = grids_of(
            variant,
            _gradients(batch, [1 + 700 * (number % 3) for number in range(count)]),
        )
        x, y, z = grid.blocks
        assert x >= count and (y, z) == (1, 1)
    assert grids_of(variant, _gradients(3, [0] * count)) == []


@pytest.mark.skipif(
    bool(backends.why_absent("numba_cpu")), reason="Numba is not installed"
)
@pytest.mark.parametrize("batch", [3, 5000])
def test_one_parallel_region_however_many_tensors(monkeypatch, batch):
    from batchline.kernels.grad_reduce_multi import numba_cpu_one_launch as module

    regions, run = [], module.run
    monkeypatch.setattr(
        module, "run", lambda *args: (regions.append(args[2]), run(*args))
    )
    _check(
        "numba_cpu_one_launch",
        *_gradients(batch, [1 + number % 3 for number in range(70)])
    )
    assert regions == [
        min(70, backends.numba.get_num_threads()) if batch == 5000 else 1
    ]


@pytest.mark.skipif("numba_cpu_one_launch" not in HERE, reason="Numba is not installed")
def test_the_bits_do_not_depend_on_the_number_of_threads():
    gs, variant = (
        _gradients(300, (1000, 70, 1, 333)),
        grad_reduce_multi.variants["numba_cpu_one_launch"],
    )
    threads, together = backends.numba.get_num_threads(), variant(*gs)
    try:
        backends.numba.set_num_threads(1)
        alone = variant(*gs)
    finally:
        backends.numba.set_num_threads(threads)
    assert all(map(torch.equal, together, alone))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_outputs_share_a_buffer_and_start_on_16_bytes(dtype):
    gs = _gradients(dtype=dtype)
    buffer, means = table_of(gs, _of_64).outputs(gs[0])
    assert buffer.data_ptr() % 16 == 0
    spans = [(mean.storage_offset() * dtype.itemsize, mean.nbytes) for mean in means]
    assert [nbytes for _, nbytes in spans] == [size * dtype.itemsize for size in SIZES]
    assert not any(start % 16 for start, _ in spans)
    assert all(
        start + nbytes <= following
        for (start, nbytes), (following, _) in zip(spans, spans[1:])
    )
    assert 0 <= buffer.nbytes - sum(spans[-1]) < 16


def _of_64(*gs):
    return 64


def test_a_table_is_found_again_by_its_numbers_alone():
    gs = _gradients()
    table = table_of(gs, _of_64)
    assert (table.blocks, table.width, table.columns) == (3 + 1 + 0 + 1 + 1, 8, 64)
    assert table.numbers[0].tolist() == [
        3,
        4,
        4,
        5,
        6,
        7,
        7,
        7,
    ]  # where each tensor's blocks end
    assert table_of(tuple(g.view(g.shape) for g in gs), _of_64) is table
    for others in (
        gs[:4],
        gs[::-1],
        (gs[0][:, 1:], *gs[1:]),
        (gs[0][::2], *(g[:3] for g in gs[1:])),
    ):
        assert table_of(others, _of_64) is not table


@pytest.mark.parametrize("name", HERE)
def test_values_changed_in_place_are_seen(name):
    gs = _gradients()
    first = [mean.clone() for mean in _check(name, *gs)]
    for g in gs:
        g.add_(1)
    assert not any(
        torch.equal(mean, before)
        for mean, before in zip(_check(name, *gs), first)
        if len(mean)
    )


@pytest.mark.parametrize("name", HERE)
def test_memory_used_again_for_another_shape_or_dtype_has_another_table(name):
    memory = torch.linspace(-1, 1, 240)
    for rows, columns in ((4, 60), (60, 4), (5, 48), (4, 60)):
        _check(name, memory.view(rows, columns), memory.view(columns, rows).T)
    for dtype in (torch.float16, torch.float64):
        if grad_reduce_multi.variants[name].why_unsupported(memory.to(dtype)) is None:
            memory.view(dtype).copy_(
                torch.linspace(-1, 1, 240 * 4 // dtype.itemsize, dtype=dtype)
            )
            _check(name, memory.view(dtype).view(4, -1))


def test_only_so_many_tables_are_kept(monkeypatch):
    monkeypatch.setattr(_table, "_MOST", 3)
    memory = torch.zeros(2, 40)
    tables = [table_of((memory[:, :size],), _of_64) for size in range(1, 7)]
    assert list(_table._tables.values()) == tables[-3:]


def test_another_stream_has_a_copy_of_its_own(monkeypatch):
    gs = _gradients()
    monkeypatch.setattr(_table, "_stream_of", lambda device: (1, False))
    first = table_of(gs, _of_64)
    monkeypatch.setattr(_table, "_stream_of", lambda device: (2, False))
    second = table_of(gs, _of_64)
    assert second is not first and table_of(gs, _of_64) is second
    assert torch.equal(first.numbers, second.numbers)


def test_a_capture_takes_the_table_that_is_there_and_keeps_it(monkeypatch):
    warm, cold = _gradients(), _gradients(batch=6)
    monkeypatch.setattr(_table, "_stream_of", lambda device: (1, False))
    before = table_of(warm, _of_64)
    monkeypatch.setattr(_table, "_stream_of", lambda device: (2, True))
    assert table_of(warm, _of_64) is before
    of_the_graph = table_of(cold, _of_64)
    assert set(_table._captured) == {before, of_the_graph}
    monkeypatch.setattr(_table, "_stream_of", lambda device: (2, False))
    assert (
        table_of(cold, _of_64) is not of_the_graph
    )  # which nothing has filled before the first replay


def test_a_table_is_whole_where_allocations_are_poisoned():
    gs = _gradients()
    with Poison():
        poisoned = table_of(gs, _of_64)
    again = dataclasses.replace(poisoned, numbers=_table._made(gs, 64, 0).numbers)
    assert torch.equal(poisoned.numbers, again.numbers)
