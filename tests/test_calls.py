"""An op's call does what the baseline does, in PyTorch's hands, with every kind of
tensor, transform and mode.
"""

import functools

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from batchline import kernels
from batchline.bench.measure.checking.check import Poison
from batchline.kernels import plain
from batchline.kernels.dispatch import BASELINE
from tests.kinds_of_calls import KINDS, TENSORS, integers, mkldnn, no_memory


def name_of(value):
    return getattr(value, "__name__", None)


def inputs_of(op, seed):
    """The smallest of the op's probes that has 100 numbers, in fp64: Hessians of it are
    taken.
    """

    def size(probe):
        return sum(x.numel() for x in probe(torch.float64, "meta", 0))

    probe = min((probe for probe in op.probes.values() if size(probe) >= 100), key=size)
    return probe(torch.float64, "cpu", seed)


HAVE_CPU_KERNELS = {
    name: op
    for name, op in kernels.ops.items()
    if any(variant.startswith("numba_cpu") for variant in op.variants)
}


@pytest.fixture(params=HAVE_CPU_KERNELS.values(), ids=HAVE_CPU_KERNELS)
def op(request, monkeypatch):
    """An op that runs a CPU kernel on the inputs of `inputs_of` as they are, and
    remembers that.
    """
    op = request.param
    xs = inputs_of(op, 0)
    kernel = next(
        variant
        for variant in op.dispatch.candidates.values()
        if variant.backend == "numba_cpu" and variant.why_unsupported(*xs) is None
    )
    traits, sizes = op.describe(*xs)
    winner = {"traits": traits, "sizes": list(sizes), "faster": {kernel.name: 2.0}}
    monkeypatch.setattr(op.dispatch, "table", lambda device: {"winners": [winner]})
    op.dispatch._known.clear()
    assert op.dispatch.function(*xs) is kernel.function
    yield op
    op.dispatch._known.clear()


def outcome(kind, call, op):
    """What comes of it, or the type of the error."""
    try:
        result = kind(call, inputs_of(op, 0), inputs_of(op, 1))
    except Exception as error:
        return type(error)
    return tree_map(
        lambda leaf: (
            leaf + 0
            if isinstance(leaf, torch.Tensor) and leaf._is_zerotensor()
            else leaf
        ),
        result,
    )


@functools.cache
def baseline_outcome(kind, op):
    """What two tests look at, and some kinds compile for."""
    return outcome(kind, op.variants[op.baseline].function, op)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_a_call_is_what_the_baseline_is(op, kind):
    expected, got = baseline_outcome(kind, op), outcome(kind, op, op)
    leaves, expected_leaves = tree_leaves(got), tree_leaves(expected)
    assert len(leaves) == len(expected_leaves), (got, expected)
    for leaf, expected_leaf in zip(leaves, expected_leaves):
        if isinstance(expected_leaf, torch.Tensor):
            torch.testing.assert_close(
                leaf, expected_leaf, rtol=1e-9, atol=1e-12, equal_nan=True
            )
        else:
            assert leaf == expected_leaf


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", (*TENSORS, no_memory), ids=name_of)
def test_a_look_up_says_why(op, kind):
    def look_up(*xs):
        source = op.dispatch.look_up(*xs).source
        assert source.startswith(f"{BASELINE}: ") or kind is integers, source
        assert op.dispatch.function(*xs) is op.variants[op.baseline].function
        return ()

    kind(look_up, inputs_of(op, 0), inputs_of(op, 1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_most_kinds_work_with_some_op(kind):
    """So that what is compared above is seldom two errors."""
    made = [baseline_outcome(kind, op) for op in kernels.ops.values()]
    assert kind is mkldnn or not all(isinstance(one, type) for one in made)


def test_an_op_is_checked_with_the_kernel_that_it_calls(op):
    xs = inputs_of(op, 0)
    chosen = op.dispatch.function(*xs)
    with Poison():
        assert (
            op.dispatch.function(*xs) is chosen
            and chosen is not op.variants[op.baseline].function
        )
        op.dispatch._known.clear()
        assert op.dispatch.function(*xs) is chosen


def test_plain_tensors_of_every_make_are_plain():
    x = torch.ones(4, 4)
    with torch.inference_mode():
        made = torch.ones(4)
    for tensor in (
        x,
        x.T,
        x[1:, ::2],
        x.expand(3, 4, 4),
        torch.nn.Parameter(x),
        made,
        torch.from_numpy(x.numpy()),
        x.bfloat16(),
        x.to(torch.float8_e4m3fn),
        x.long(),
        torch.complex(x, x).imag,
    ):
        assert plain.why_not_plain(tensor) is None
    assert plain.why_watched() is None
