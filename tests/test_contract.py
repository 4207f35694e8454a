"""Outputs are plain tensors in memory of their own; a window of a larger buffer is one."""

import pytest
import torch

from batchline.bench.measure.checking.accuracy import plain_outputs, require_own_memory
from batchline.bench.statuses import WRONG, NotMeasured

INPUT = torch.ones(6)
BUFFER = torch.zeros(4, 6)


def judge(*outputs):
    require_own_memory(
        plain_outputs(outputs, (INPUT,), len(outputs), "here"), (INPUT,), "here"
    )


def shrunk():
    tensor = torch.ones(100)
    tensor.untyped_storage().resize_(8)
    return tensor


@pytest.mark.parametrize(
    "outputs",
    [
        (torch.ones(3),),
        (BUFFER[1, 2:4],),
        (BUFFER[0], BUFFER[1]),
        (BUFFER[:, 0], BUFFER[:, 1]),
        (BUFFER.T,),
        (BUFFER[::2, ::3],),
        (torch.empty(0), torch.empty(0)),
        (torch.ones(1, 1, 3),),
        (torch.tensor(1.0),),
    ],
)
def test_memory_of_their_own_may_be_part_of_a_larger_one(outputs):
    judge(*outputs)


@pytest.mark.parametrize(
    "outputs, words",
    [
        ((INPUT[2:4],), "lies in an input's memory"),
        ((torch.from_numpy(INPUT.numpy()[3:]),), "lies in an input's memory"),
        ((torch.ones(1).expand(5),), "several elements of the result"),
        ((torch.ones(9).as_strided((4, 4), (1, 1)),), "several elements of the result"),
        ((BUFFER[0], BUFFER[0, 3:]), "two results"),
        ((BUFFER[:, ::2], BUFFER[:, 2]), "two results"),
        ((torch.nn.Parameter(torch.ones(2)),), "it is a Parameter"),
        ((torch._neg_view(torch.ones(2)),), "its negative bit is set"),
        ((torch.ones(2, dtype=torch.cfloat).conj(),), "its conjugate bit is set"),
        ((torch._efficientzerotensor(3),), "its zero bit is set"),
        ((torch.ones(2, 2).to_sparse(),), "its layout is torch.sparse_coo"),
        ((shrunk(),), "its memory has 8 bytes, and its elements need 400"),
        ((torch.ones(2).requires_grad_(),), "requires a gradient"),
        (
            (torch.func.vmap(lambda row: row, randomness="error")(torch.ones(2)), None),
            "it returned tuple",
        ),
    ],
)
def test_what_is_no_plain_tensor_with_memory_of_its_own_is_refused(outputs, words):
    with pytest.raises(NotMeasured) as refusal:
        judge(*outputs)
    assert refusal.value.status == WRONG and words in refusal.value.reason


def test_a_gradient_may_be_asked_for_where_an_input_asks():
    asked = torch.ones(3, requires_grad=True)
    plain_outputs(asked * 2, (asked,), 1, "here")


def test_what_hides_inside_a_transformation_is_refused():
    escaped = []
    torch.func.vmap(lambda row: escaped.append(row) or row)(torch.ones(2, 3))
    with pytest.raises(NotMeasured, match="inside a transformation"):
        plain_outputs(escaped[0], (INPUT,), 1, "here")


def test_a_tuple_that_computes_when_it_is_read_is_read_as_a_tuple():
    class Lazy(tuple):
        def __iter__(self):
            raise AssertionError("asked")

        __len__ = __iter__

    assert (
        len(plain_outputs(Lazy((torch.ones(1), torch.ones(1))), (INPUT,), 2, "here"))
        == 2
    )
