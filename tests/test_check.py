"""The checker that guards the benchmark refuses each usual way to be wrong, and says which it was."""
import importlib
import pkgutil

import pytest
import torch

from bench.measure.check import Poison, check_outputs, check_variant, expect
from bench.records import WRONG, NotMeasured
from kernels.bmm import bmm
from kernels.op import Variant
from tests import wrong_kernels

WRONG_KERNELS = [module.name for module in pkgutil.iter_modules(wrong_kernels.__path__)
                 if wrong_kernels.refused_by_the_checker(module.name)]


@pytest.mark.parametrize("name", WRONG_KERNELS)
def test_wrong_kernel_is_refused(name):
    module = importlib.import_module(f"tests.wrong_kernels.{name}")
    variant = Variant(module.OP, getattr(module, name), backend="torch")
    with pytest.raises(NotMeasured) as refusal:
        check_variant(variant, getattr(module, "DTYPE", torch.float32), "cpu")
    assert refusal.value.status == WRONG
    assert module.REFUSED_FOR in refusal.value.reason


def test_usual_ways_to_be_wrong_are_all_there():
    assert {"drops_k_tail", "ignores_a_stride", "returns_its_inputs_buffer", "leaves_output_unwritten",
            "caches_by_address", "accumulates_in_fp16"} <= set(WRONG_KERNELS)


def _judge(returned, a=torch.ones(2, 3, 4), b=torch.ones(2, 4, 5)):
    return check_outputs(returned, (a, b), expect(bmm, (a, b)), "here")


@pytest.mark.parametrize("returned, words", [
    (torch.full((2, 3, 4), 4.0), "shape (2, 3, 4), not (2, 3, 5)"),
    (torch.full((2, 3, 5), 4.0, dtype=torch.float64), "torch.float64 on cpu, not torch.float32"),
    (None, "returned NoneType"),
    ((torch.full((2, 3, 5), 4.0),) * 2, "returned tuple, not 1 tensor(s)"),
    (torch.full((2, 3, 5), 5.0), "30 of 30 elements are wrong"),
    (torch.full((2, 3, 5), float("inf")), "30 of 30 elements are wrong"),
])
def test_broken_contract_is_named(returned, words):
    with pytest.raises(NotMeasured, match="here: ") as refusal:
        _judge(returned)
    assert words in refusal.value.reason


def test_the_worst_element_is_named():
    result = torch.full((2, 3, 5), 4.0)
    result[1, 2, 3] = 7
    with pytest.raises(NotMeasured, match=r"1 of 30 elements are wrong, the worst at \(1, 2, 3\): 7 against 4"):
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
        for tensor in (torch.empty(3), torch.empty_like(torch.ones(3)), torch.ones(1).new_empty(3),
                       torch.empty_strided((3,), (2,))):
            assert tensor.isnan().all()
        assert (torch.empty(3, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()
        assert (torch.zeros(3) == 0).all()


def rounded_to_bf16(a, b):
    return torch.bmm(a.bfloat16().float(), b.bfloat16().float())


def _within(roundoff):
    """The op's tolerance, wider by `roundoff` of |A||B|."""
    def tolerance(c, a, b):
        return bmm.tolerance(c, a, b) + 1.01 * roundoff * bmm.reference(a.abs(), b.abs())
    return tolerance


def test_a_variant_is_held_to_the_tolerance_that_it_declares():
    """Two factors rounded to 8 bits are a product within 2·2⁻⁸, and no closer."""
    def check(tolerance):
        check_variant(Variant(bmm, rounded_to_bf16, "torch", tolerance=tolerance), torch.float32, "cpu", ["ragged"])

    check(_within(2 * 2.0**-8))
    for declared in (None, _within(2.0**-11)):
        with pytest.raises(NotMeasured, match="times the tolerance"):
            check(declared)
