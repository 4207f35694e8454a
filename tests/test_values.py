"""New values: in the same buffers, all sets of them; outputs move beyond any tolerance;
what must be there is known.
"""

from types import SimpleNamespace

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.timing import sampling
from batchline.bench.measure.timing.values import Values, twins
from batchline.bench.measure.worker import watch
from batchline.kernels import digits

CASES = [
    ("bmm", "tiny_16", 16),
    ("bmm", "digits_forward", 3),
    ("bmm", "linear_forward", 3),
    ("grad_reduce", "digits", 64),
    ("grad_reduce", "layer_norm", 4096),
    ("grad_reduce_multi", "digits", 16),
    ("grad_stats", "layer_norm", 256),
    ("wgrad_stats", "linear_512_T4", 3),
]


def _values(op="bmm", scenario="tiny_16", batch=4, dtype="float32"):
    def draw(seed):
        return kernels.ops[op].make_inputs(scenario, batch, dtype, "cpu", seed)

    return Values(kernels.ops[op], draw(1), draw)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_new_values_move_the_outputs_beyond_twice_the_tolerance(case, dtype):
    values = _values(*case, dtype)
    first = values.expected()
    moved = []
    for _ in range(10):
        values.renew()
        now = values.expected()
        moved.append(
            max(
                float(((one - other).abs() / torch.maximum(*both)).max())
                for one, other, *both in zip(
                    first.outputs, now.outputs, first.tolerances, now.tolerances
                )
            )
        )
        assert values.are_intact()
    assert (
        sum(share > 4 for share in moved) >= 8
    )  # on real data a value may meet zeros alone


def test_every_set_of_buffers_follows():
    values = _values("grad_reduce_multi", "digits", 4)
    one, other = values.sets(2)
    before = [tensor.clone() for tensor in one]
    for change in (values.renew, values.renew, values.redraw, values.renew):
        change()
        assert all(map(torch.equal, one, other)) and all(
            map(torch.equal, one, values.true)
        )
        assert not all(map(torch.equal, one, before))
    assert (
        one[0].untyped_storage().data_ptr() == one[1].untyped_storage().data_ptr()
    )  # windows of one tensor, still


def test_a_few_values_change_at_a_time_and_come_back():
    values = _values()
    first = twins(values.inputs)
    for _ in range(5):
        values.renew()
        changed = sum(
            int((one != other).sum()) for one, other in zip(values.inputs, first)
        )
        assert 1 <= changed <= 2


def test_the_same_values_can_be_written_again_and_known_ones_recalled():
    values = _values()
    values.renew()
    known, expected = twins(values.inputs), values.expected()
    values.rewrite()
    assert (
        all(map(torch.equal, values.inputs, known))
        and values.expected() is expected
        and values.knows_new
    )
    values.renew()
    assert not all(map(torch.equal, values.inputs, known))
    assert (
        values.recall()
        and all(map(torch.equal, values.inputs, known))
        and values.expected() is expected
    )
    values.redraw()
    assert not values.recall()


@pytest.mark.parametrize("scenario, batch", [("tiny_16", 4), ("linear_grad_input", 4)])
def test_what_a_variant_wrote_is_seen_and_undone(scenario, batch):
    values = _values(scenario=scenario, batch=batch)
    values.inputs[1][-1, -1, -1] += 1
    assert not values.are_intact()
    values.restore()
    assert values.are_intact() and values.look_intact()
    values.inputs[0].zero_()
    assert not values.look_intact()


def test_what_the_op_keeps_for_itself_is_not_written_to():
    weight = digits.hidden_weight(torch.float32, "cpu")
    before = weight.clone()
    values = _values("bmm", "digits_forward", 2)
    for _ in range(20):
        values.renew()
    assert torch.equal(weight, before)


def test_one_of_the_checks_that_each_launch_gets_looks_at_all_its_calls(monkeypatch):
    """By the last call of a sample alone a launch that skips every second call is right
    by luck.
    """
    monkeypatch.setattr(watch.SECRET, "random", lambda: 0.9, raising=False)
    problem = SimpleNamespace(values=None)
    watching = watch.Watch(problem, {"one": None}, None, sampling.Ledger())
    watching._is_checking = True
    watching._expected = SimpleNamespace(output_bytes=4)
    clock = SimpleNamespace(takes_calls=True, iterations=3, launch=lambda: None)
    looks = [
        look
        for _ in range(watch.LEAST_CHECKS)
        for look in watching.plan("one", clock, 2)
        if look
    ]
    assert [look.is_timed for look in looks] == [True, False]
    assert len(looks[-1]._calls) >= 2
