"""The checker that guards the benchmark refuses each usual way to be wrong, and says
which it was.
"""

import importlib
import pkgutil

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.checking.check import (
    Poison,
    check_outputs,
    check_variant,
    expect,
    held_to,
    tolerance_multiple,
)
from batchline.bench.statuses import WRONG, NotMeasured
from batchline.kernels.bmm import bmm
from batchline.kernels.draw import Draw
from batchline.kernels.grad_reduce import grad_reduce
from batchline.kernels.grad_stats import grad_stats
from batchline.kernels.op import Variant
from tests import wrong_kernels

WRONG_KERNELS = [
    module.name
    for module in pkgutil.iter_modules(wrong_kernels.__path__)
    if wrong_kernels.refused_by_the_checker(module.name)
]


@pytest.mark.parametrize("name", WRONG_KERNELS)
def test_wrong_kernel_is_refused(name):
    module = importlib.import_module(f"tests.wrong_kernels.{name}")
    variant = Variant(
        module.OP,
        getattr(module, name),
        backend="torch",
        **getattr(module, "DECLARES", {}),
    )
    with pytest.raises(NotMeasured) as refusal:
        check_variant(variant, getattr(module, "DTYPE", torch.float32), "cpu")
    assert refusal.value.status == WRONG
    assert module.REFUSED_FOR in refusal.value.reason


def test_usual_ways_to_be_wrong_are_all_there():
    assert {
        "drops_k_tail",
        "ignores_a_stride",
        "returns_its_inputs_buffer",
        "leaves_output_unwritten",
        "caches_by_address",
        "accumulates_in_fp16",
    } <= set(WRONG_KERNELS)


def _judge(returned, a=torch.ones(2, 3, 4), b=torch.ones(2, 4, 5)):
    return check_outputs(returned, (a, b), expect(bmm, (a, b)), "here")


@pytest.mark.parametrize(
    "returned, words",
    [
        (torch.full((2, 3, 4), 4.0), "shape (2, 3, 4), not (2, 3, 5)"),
        (
            torch.full((2, 3, 5), 4.0, dtype=torch.float64),
            "torch.float64 on cpu, not torch.float32",
        ),
        (None, "returned NoneType"),
        ((torch.full((2, 3, 5), 4.0),) * 2, "returned tuple, not 1 tensor(s)"),
        (torch.full((2, 3, 5), 5.0), "30 of 30 elements are wrong"),
        (torch.full((2, 3, 5), float("inf")), "30 of 30 elements are wrong"),
    ],
)
def test_broken_contract_is_named(returned, words):
    with pytest.raises(NotMeasured, match="here: ") as refusal:
        _judge(returned)
    assert words in refusal.value.reason


def test_the_worst_element_is_named():
    result = torch.full((2, 3, 5), 4.0)
    result[1, 2, 3] = 7
    with pytest.raises(
        NotMeasured,
        match=r"1 of 30 elements are wrong, the worst at \(1, 2, 3\): 7 against 4",
    ):
        _judge(result)


def test_accuracy_of_a_right_result():
    accuracy = _judge(torch.full((2, 3, 5), 4.0))
    assert accuracy.error == 0 and accuracy.error_of_tolerance == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_judging_leaves_the_outputs_as_they_are(dtype):
    a, b = torch.ones(2, 3, 4, dtype=dtype), torch.ones(2, 4, 5, dtype=dtype)
    result = torch.full((2, 3, 5), 4.0, dtype=dtype)
    _judge(result, a, b)
    assert (result == 4).all()


def test_poison_fills_what_is_not_initialised():
    with Poison():
        for tensor in (
            torch.empty(3),
            torch.empty_like(torch.ones(3)),
            torch.ones(1).new_empty(3),
            torch.empty_strided((3,), (2,)),
        ):
            assert tensor.isnan().all()
        assert (torch.empty(3, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()
        assert (torch.zeros(3) == 0).all()


def rounded_to_bf16(a, b):
    return torch.bmm(a.bfloat16().float(), b.bfloat16().float())


def _within(roundoff):
    """The op's tolerance, wider by `roundoff` of |A||B|."""

    def tolerance(c, a, b):
        return bmm.tolerance(c, a, b) + 1.01 * roundoff * bmm.reference(
            a.abs(), b.abs()
        )

    return tolerance


def test_a_variant_is_held_to_the_tolerance_that_it_declares():
    """Two factors rounded to 8 bits are a product within 2·2⁻⁸, and no closer."""

    def check(tolerance):
        check_variant(
            Variant(bmm, rounded_to_bf16, "torch", tolerance=tolerance),
            torch.float32,
            "cpu",
            ["ragged"],
        )

    check(_within(2 * 2.0**-8))
    for declared in (None, _within(2.0**-11)):
        with pytest.raises(NotMeasured, match="times the tolerance"):
            check(declared)


@pytest.mark.parametrize(
    "declared, words",
    [
        (
            lambda c, a, b: -torch.ones_like(c),
            "bounds nothing: it is -1 for 170 of 170 elements",
        ),
        (lambda c, a, b: torch.full_like(c, float("nan")), "bounds nothing: it is nan"),
        (
            lambda c, a, b: torch.ones(1),
            "has shape (1,) for a result of shape (2, 17, 5)",
        ),
    ],
)
def test_a_tolerance_that_is_no_bound_is_refused(declared, words):
    with pytest.raises(NotMeasured) as refusal:
        check_variant(
            Variant(bmm, torch.bmm, "torch", tolerance=declared),
            torch.float32,
            "cpu",
            ["ragged"],
        )
    assert refusal.value.status == WRONG and words in refusal.value.reason


def test_with_a_tolerance_of_its_own_nan_may_stand_for_an_infinity_and_a_number_may_not():
    def check(spoilt):
        def function(a, b):
            c = torch.bmm(a, b)
            return c.where(c.isfinite(), spoilt)

        check_variant(
            Variant(bmm, function, "torch", tolerance=bmm.tolerance),
            torch.float32,
            "cpu",
            ["infinite"],
        )

    check(float("nan"))
    with pytest.raises(NotMeasured, match="against -?inf"):
        check(0.0)


def test_probes_that_were_declined_or_have_no_elements_do_not_count():
    def count(*probes, **declared):
        return check_variant(
            Variant(bmm, torch.bmm, "torch", **declared), torch.float32, "cpu", probes
        )

    assert count("ragged", "sliced") == 2
    assert count("empty_batch", "empty_n") == 0
    assert count("ragged", "sliced", supports=lambda a, b: "never") == 0


def test_how_many_times_the_ops_tolerance_its_own_is():
    inputs = bmm.probes["ragged"](torch.float32, "cpu", 0)
    variant = Variant(
        bmm, torch.bmm, "torch", tolerance=lambda c, a, b: 20 * bmm.tolerance(c, a, b)
    )
    expected = expect(bmm, inputs)
    assert tolerance_multiple(
        held_to(variant, inputs, expected), expected
    ) == pytest.approx(20)
    assert tolerance_multiple(expected, expected) == 1


def _spreads(a, b):
    """A product whose first row is NaN as well, where a later one is."""
    c = torch.bmm(a, b)
    c[0, 0] = float("nan")
    return c


@pytest.mark.parametrize("backend, is_right", [("torch", True), ("triton", False)])
def test_where_the_library_spreads_a_nan_those_that_call_it_may(
    backend, is_right, monkeypatch
):
    monkeypatch.setattr(bmm, "nan_by_torch", lambda a, b: (_spreads(a, b).isnan(),))
    a, b = Draw(torch.float32, "cpu", 0).normal(1, 3, 4), torch.eye(4)[None]
    a[0, 2, 1] = float("nan")
    held = held_to(Variant(bmm, _spreads, backend), (a, b), expect(bmm, (a, b)))
    if is_right:
        check_outputs(_spreads(a, b), (a, b), held, "here")
        return
    with pytest.raises(NotMeasured, match="never written"):
        check_outputs(_spreads(a, b), (a, b), held, "here")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_what_the_library_makes_of_a_nan_is_asked_of_it(dtype):
    a, b = (one.to(dtype) for one in bmm.probes["nan"](torch.float32, "cpu", 0))
    wide = torch.float16 if dtype == torch.float16 else torch.bfloat16
    (mask,) = bmm.nan_by_torch(a, b)
    assert mask.equal(torch.bmm(a.to(wide), b.to(wide)).isnan())
    assert bmm.nan_by_torch(a.float(), b.float()) is None
    finite = (torch.ones_like(one.float()).to(dtype) for one in (a, b))
    assert bmm.nan_by_torch(*finite) is None


def _pairwise(g):
    while len(g) > 1:
        half = len(g) // 2
        g = torch.cat([g[:half] + g[half : 2 * half], g[2 * half :]])
    return g[0]


def _running(g):
    total = torch.zeros_like(g[0])
    for row in g:
        total = total + row
    return total


@pytest.mark.parametrize("of_sum", [_pairwise, _running])
def test_honest_sums_of_a_deep_batch_are_typical(of_sum):
    check_variant(
        Variant(grad_reduce, lambda g: of_sum(g) / len(g), "torch"),
        torch.float32,
        "cpu",
        ["deep", "large"],
    )


def test_one_running_sum_of_60000_squares_is_not():
    """It is inside the worst case, and many times as far off as sums of blocks are."""
    g = Draw(torch.float32, "cpu", 1).uniform(40, 60_000)
    mean, _, d = (output.float() for output in grad_stats.reference(g))
    n = _running(g.T.contiguous().square())
    with pytest.raises(NotMeasured, match="in root mean square"):
        check_outputs((mean, n, d), (g,), expect(grad_stats, (g,)), "here")
    right = g.square().sum(1)
    assert (
        check_outputs(
            (mean, right, d), (g,), expect(grad_stats, (g,)), "here"
        ).error_of_typical
        < 0.5
    )


@pytest.mark.parametrize("name", ["torch_materialize", "torch_vmap"])
def test_running_sums_over_parameters_that_are_all_alike_are_within_their_bound(name):
    """Each addition rounds the same way: n and d are off by more than sums of blocks
    may be.
    """
    op = kernels.ops["wgrad_stats"]
    inputs = tuple(torch.full((3, 1, 512), value) for value in (1.1, 1.21))
    expected = expect(op, inputs)
    outputs = op.variants[name](*inputs)
    assert (
        check_outputs(
            outputs, inputs, held_to(op.variants[name], inputs, expected), "here"
        ).error_of_tolerance
        < 1
    )
    with pytest.raises(NotMeasured, match="times the tolerance"):
        check_outputs(outputs, inputs, expected, "here")
