"""A variant as a task launches it: with a configuration of its own, and not where a
call takes too long.
"""

import contextlib

import pytest

from batchline import kernels
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker.isolation import Isolation
from batchline.bench.measure.worker.preparing import Problem
from batchline.bench.measure.worker.task import Task
from batchline.bench.statuses import MEASURED, NOT_HERE, NotMeasured

EFFORT = Effort(precision=0.5, seconds=0.01)
BLOCKED = kernels.ops["bmm"].variants["numba_cpu_blocked"]
INPUTS = BLOCKED.op.make_inputs("tiny_16", 4, "float32", "cpu")


def _task(entries, **more):
    return Task(
        "bmm",
        "tiny_16",
        "float32",
        4,
        entries,
        ("host",),
        EFFORT,
        EFFORT,
        warm_up_s=0.001,
        **more
    )


@pytest.fixture(scope="module")
def isolation():
    with contextlib.closing(Isolation("cpu", 60)) as found:
        yield found


@pytest.mark.commands
def test_a_call_over_the_longest_is_a_row(isolation):
    outcome = isolation.measure(_task((("it", "torch_bmm"),), longest_call_s=1e-9))[
        "it"
    ]
    assert outcome.status == NOT_HERE and outcome.reason.endswith(
        "PROFILE=full times it"
    )


@pytest.mark.commands
@pytest.mark.skipif(BLOCKED.why_not_here("cpu") is not None, reason="needs Numba")
def test_a_task_times_the_configurations_that_it_names(isolation):
    configs = {
        name: {"rows": 3, "columns": columns, "depth": 5, "pack": False}
        for name, columns in (("a", 7), ("b", 9))
    }
    outcomes = isolation.measure(
        _task(tuple((name, "numba_cpu_blocked") for name in configs), configs=configs)
    )
    assert {
        name: outcome.status for name, outcome in outcomes.items()
    } == dict.fromkeys(configs, MEASURED)
    assert (
        outcomes["a"].facts["config"] == configs["a"]
        and outcomes["a"].facts["config_source"] == "asked for"
    )


def test_bits_that_were_right_are_compared_with_plain_tensors_alone():
    problem, baseline = (
        Problem(BLOCKED.op, _task(()), "cpu"),
        BLOCKED.op.variants["torch_bmm"],
    )
    output = baseline(*problem.inputs)
    problem.require_right("it", baseline, output, "again")

    class Later(tuple):
        def __iter__(self):
            return iter((output,))

    with pytest.raises(NotMeasured, match="it returned Later, not 1 tensor"):
        problem.require_right("it", baseline, Later((None,)), "again")
    with pytest.raises(NotMeasured, match="elements are wrong"):
        problem.require_right("it", baseline, output + 1, "again")


def test_a_variant_of_one_configuration_has_none_to_show():
    assert kernels.ops["bmm"].variants["torch_bmm"].configuration(INPUTS) == {}
    assert BLOCKED.configuration(INPUTS)["config_source"] in (
        "tuned",
        "tuned nearby",
        "rule",
    )


def test_a_forced_configuration_does_not_outlive_its_call():
    before = BLOCKED.tunable.choose(*INPUTS)
    forced = BLOCKED.with_config({"rows": 2, "columns": 16, "depth": 4, "pack": True})
    assert forced(*INPUTS).shape == (4, 16, 16)
    assert BLOCKED.tunable.choose(*INPUTS) == before


@pytest.mark.commands
def test_an_ops_call_goes_by_a_table_that_is_not_stored():
    dispatched = kernels.ops["bmm"].variants["dispatched"]
    traits, sizes = kernels.ops["bmm"].describe(*INPUTS)
    for name in ("numba_cpu_tiled", "torch_bmm"):
        table = {"winners": [{"traits": traits, "sizes": sizes, "faster": {name: 2.0}}]}
        stored = dispatched.configuration(INPUTS)
        assert dispatched.configuration(INPUTS, {"table": table})["config"] == {
            "variant": name
        }
        assert dispatched.with_config({"table": table})(*INPUTS).shape == (4, 16, 16)
        behind = {"variant": "torch_bmm", "table": table}
        assert dispatched.configuration(INPUTS, behind)["config_source"] == "asked for"
        assert dispatched.with_config(behind)(*INPUTS).shape == (4, 16, 16)
        assert dispatched.configuration(INPUTS) == stored
