"""An op's call: the variant that was measured fastest here or nearby, else a rule, the
baseline where it must be.
"""

import json
import subprocess
import sys

import pytest
import torch

from batchline import kernels
from batchline.kernels import device_files, dispatch
from batchline.kernels.dispatch import (
    BASELINE,
    DISPATCHED,
    MEASURED,
    NEARBY,
    RULE,
    Choice,
)
from batchline.kernels.op import Calls, Op, Problems, Reference, Scenario, Work


@pytest.fixture
def op(tmp_path, monkeypatch):
    """x[B,N] → x[B,N], by a baseline and three more, of which `narrow` takes no more
    than 32 columns.
    """
    found = Op(
        "elsewhere.copy",
        signature="x[B,N] → x[B,N]",
        problems=Problems(
            (Scenario("plain", "a plain one", {}),), None, {}, example=("plain", 1)
        ),
        reference=Reference(None, None),
        work=Work(None, None),
        calls=Calls(
            "base",
            describe=lambda x: (str(x.dtype).removeprefix("torch."), tuple(x.shape)),
            rule=lambda x: ("missing", "narrow"),
        ),
    )
    for name, supports in (
        ("base", None),
        ("one", None),
        ("other", None),
        ("narrow", lambda x: "over 32 columns" if x.shape[1] > 32 else None),
    ):

        def function(x):
            return (
                torch.neg(x)
                if x.dim() == 2
                else pytest.fail("a kernel got what the baseline refuses")
            )

        def baseline(x):
            if x.dim() != 2:
                raise ValueError("x[B,N] has two dimensions")
            return torch.neg(x)

        function = baseline if name == "base" else function
        function.__name__ = name
        found.variant(backend="torch", supports=supports)(function)
    found._searched = True
    monkeypatch.setattr(Op, "folder", tmp_path)
    device_files.stored.cache_clear()
    yield found
    device_files.stored.cache_clear()


def write(op, *entries, versions=None):
    path = device_files.file_for(op.folder, "dispatch", "cpu")
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "versions": versions or {"torch": dispatch._installed("torch")},
                "winners": entries,
            }
        )
    )
    device_files.stored.cache_clear()


def entry(batch, columns, **faster):
    return {"traits": "float32", "sizes": [batch, columns], "faster": faster}


@pytest.mark.parametrize(
    "entries, choice",
    [
        ([entry(8, 64, one=1.3, other=1.2)], Choice("one", MEASURED)),
        ([entry(8, 64)], Choice("base", MEASURED)),  # measured, and nothing beat it
        (
            [entry(8, 64, one=1.1), entry(16, 64, one=9)],
            Choice("one", MEASURED),
        ),  # its own entry alone counts
        ([entry(8, 64), entry(16, 64, one=9)], Choice("base", MEASURED)),
        (
            [entry(4, 64, one=1.3, other=1.2), entry(16, 64, one=1.1, other=1.5)],
            Choice("other", NEARBY),
        ),  # 1.43 and 1.8
        (
            [entry(4, 64, one=1.3), entry(16, 64, other=1.5)],
            Choice("base", NEARBY),
        ),  # nothing wins on both sides
        ([entry(4, 64, one=1.3), entry(16, 64)], Choice("base", NEARBY)),
        (
            [entry(2, 64, one=1.3)],
            Choice("one", NEARBY),
        ),  # two doublings: as far as near goes
        ([entry(1, 64, one=1.3)], Choice("base", RULE)),
        ([{**entry(8, 64, one=1.3), "traits": "float64"}], Choice("base", RULE)),
        (
            [entry(8, 64, narrow=9.0, gone=5.0, one=1.1)],
            Choice("one", MEASURED),
        ),  # what can't take it is passed over
        ([entry(8, 64, narrow=9.0)], Choice("base", MEASURED)),
    ],
)
def test_look_up(op, entries, choice):
    write(op, *entries)
    x = torch.ones(8, 64)
    assert op.dispatch.look_up(x) == choice
    assert op.dispatch.function(x) is op.variants[choice.variant].function


def test_without_a_table_the_rule_decides(op):
    assert op.dispatch.look_up(torch.ones(8, 64)) == Choice("base", RULE)
    assert op.dispatch.look_up(torch.ones(8, 32)) == Choice("narrow", RULE)


class Tagged(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "x, why",
    [
        (torch.ones(8, 64, requires_grad=True), "a gradient is asked for"),
        (torch.ones(8, 64).as_subclass(Tagged), "a subclass of Tensor"),
        (torch.ones(8, 64, device="meta"), "tensors on meta"),
        (torch.ones(8), "it refuses these inputs"),
    ],
)
def test_the_baseline_where_pytorch_must_see_the_work(op, x, why):
    write(op, entry(8, 64, one=2.0))
    choice = op.dispatch.look_up(x)
    assert choice.variant == "base" and choice.source.startswith(f"{BASELINE}: {why}")
    if x.requires_grad:
        assert op.dispatch.function(x) is op.variants["base"].function
        with torch.no_grad():
            assert op.dispatch.function(x) is op.variants["one"].function
    if x.dim() == 1:
        with pytest.raises(ValueError, match="has two dimensions"):
            op(x)


def test_under_autocast_the_baseline_decides_what_is_cast(op):
    write(op, entry(8, 64, one=2.0))
    x = torch.ones(8, 64)
    with torch.autocast("cpu"):
        assert op.dispatch.function(x) is op.variants["base"].function
    assert op.dispatch.function(x) is op.variants["one"].function


@pytest.mark.parametrize("bad", [(), (3,), ([1.0],)])
def test_what_is_no_tensor_is_the_baselines_to_refuse(op, bad):
    assert op.dispatch.function(*bad) is op.variants["base"].function


def test_a_table_of_other_libraries_is_not_used(op):
    write(op, entry(8, 64, one=2.0), versions={"torch": "1.0", "numpy": "0"})
    assert op.dispatch.look_up(torch.ones(8, 64)) == Choice("base", RULE)
    assert dispatch.why_stale({"versions": {"torch": "1.0"}}).startswith(
        "measured with torch 1.0, and 2."
    )
    assert dispatch.why_stale({"versions": {"numpy": "0"}}) is None


def test_a_damaged_table_is_an_error_that_names_it(op):
    write(op)
    path = device_files.file_for(op.folder, "dispatch", "cpu")
    path.write_text('{"winners": ')
    with pytest.raises(
        ValueError, match=f"{path.name} is not a dispatch file.*batchline dispatch"
    ):
        op(torch.ones(8, 64))


def test_what_was_found_is_remembered_for_its_shape_and_no_more_than_fits(
    op, monkeypatch
):
    write(op, entry(8, 64, one=2.0))
    assert op.dispatch.function(torch.ones(8, 64)) is op.variants["one"].function
    with monkeypatch.context() as patch:
        patch.setattr(
            op.dispatch, "look_up", lambda *inputs: pytest.fail("looked up again")
        )
        assert op.dispatch.function(torch.zeros(8, 64)) is op.variants["one"].function
    monkeypatch.setattr(dispatch, "_MOST_REMEMBERED", 2)
    for size in range(1, 10):
        op.dispatch.function(torch.ones(size, 3))
        assert len(op.dispatch._known) <= 2


def test_only_ways_that_keep_the_ops_own_bound_are_chosen_from():
    candidates = kernels.ops["wgrad_stats"].dispatch.candidates
    assert {"torch_rank_one", "numba_cpu_fused", "triton_fused"} <= set(candidates)
    assert not {
        "torch_materialize",
        "torch_ghost",
        "torch_mean_gradient",
        "dispatched",
    } & {*candidates}
    assert not {"opacus_ghost", "backpack_batch_l2"} & {*candidates}
    assert not {"torch_compiled"} & set(kernels.ops["bmm"].dispatch.candidates)


@pytest.mark.parametrize("op", kernels.ops.values(), ids=kernels.ops)
def test_the_baseline_takes_the_examples_of_every_op(op):
    inputs = op.make_inputs(op.example[0], 2, "float32", "cpu")
    assert op.dispatch._why_baseline(inputs) is None


@pytest.mark.parametrize(
    "name, inputs, variant",
    [
        ("bmm", lambda: (torch.ones(40, 2, 3), torch.ones(40, 3, 4)), "numba_cpu_tiny"),
        (
            "bmm",
            lambda: (torch.ones(4, 64, 64), torch.ones(1, 64, 64).expand(4, -1, -1)),
            "torch_folded",
        ),
        ("bmm", lambda: (torch.ones(4, 64, 64), torch.ones(4, 64, 64)), "torch_bmm"),
        (
            "wgrad_stats",
            lambda: (torch.ones(3, 1, 8), torch.ones(3, 1, 9)),
            "torch_rank_one",
        ),
        (
            "wgrad_stats",
            lambda: (torch.ones(3, 4, 8), torch.ones(3, 4, 9)),
            "numba_cpu_fused",
        ),
    ],
)
def test_the_rules(name, inputs, variant, monkeypatch):
    op = kernels.ops[name]
    monkeypatch.setattr(op.dispatch, "table", lambda device: {})
    assert op.dispatch.look_up(*inputs()) == Choice(variant, RULE)


def test_shapes_that_do_not_fit_never_reach_a_kernel():
    bmm = kernels.ops["bmm"]
    with pytest.raises(RuntimeError):
        bmm(torch.ones(40, 2, 3), torch.ones(40, 5, 4))


def test_a_compiled_caller_sees_the_baseline():
    bmm = kernels.ops["bmm"]
    a, b = torch.ones(40, 2, 3), torch.ones(40, 3, 4)
    call = torch.compile(lambda a, b: bmm(a, b), backend="eager", fullgraph=True)
    assert torch.equal(call(a, b), torch.bmm(a, b))


@pytest.mark.commands
def test_a_compiled_caller_may_be_the_first_one():
    """Finding an op's files is no part of the graph."""
    program = """
import torch
from batchline.kernels.bmm import bmm
a, b = torch.ones(40, 2, 3), torch.ones(40, 3, 4)
call = torch.compile(lambda a, b: bmm(a, b), backend="eager", fullgraph=True)
assert torch.equal(call(a, b), torch.bmm(a, b))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("op", kernels.ops.values(), ids=kernels.ops)
def test_a_call_is_held_to_the_bound_of_the_baseline_that_it_may_call(op):
    assert op.variants[DISPATCHED].tolerance is op.variants[op.baseline].tolerance
