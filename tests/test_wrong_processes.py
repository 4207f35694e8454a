"""What kernels do to their process is seen by its parent: each is refused for it, and
the honest neighbour is measured.

By a real worker, which measures a copy of `kernels` with the wrong ones dropped in.
"""

import contextlib
import importlib

import pytest

from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker.isolation import Isolation
from batchline.bench.measure.worker.task import Task
from batchline.bench.statuses import MEASURED
from tests.trees import copy_sources, drop_in

pytestmark = pytest.mark.slow
NAMES = (
    "exits_in_a_call",
    "stops_its_process",
    "closes_every_descriptor",
    "answers_for_its_worker",
    "answers_with_the_number",
    "raises_60_mb",
    "rewrites_a_neighbour",
)
DEADLINE_S = 5


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Of one task of them all, with an honest one at each end."""
    tree = copy_sources(tmp_path_factory.mktemp("tree"))
    for name in NAMES:
        drop_in(tree, name)
    effort = Effort(precision=0.5, seconds=0.01)
    entries = tuple((name, name) for name in ("torch_bmm", *NAMES, "torch_einsum"))
    with contextlib.closing(Isolation("cpu", DEADLINE_S, tree)) as isolation:
        yield isolation.measure(
            Task(
                "bmm",
                "tiny_16",
                "float32",
                4,
                entries,
                ("host",),
                effort,
                effort,
                0.001,
            )
        )


@pytest.mark.parametrize("name", NAMES)
def test_it_is_refused_for_what_it_does(outcomes, name):
    wrong = importlib.import_module(f"tests.wrong_kernels.{name}")
    assert (outcomes[name].status, wrong.REFUSED_FOR in outcomes[name].reason) == (
        wrong.STATUS,
        True,
    ), outcomes[name]
    assert len(outcomes[name].reason) < 700 and "::error::" not in outcomes[name].reason


@pytest.mark.parametrize("name", ["torch_bmm", "torch_einsum"])
def test_the_honest_are_measured_together(outcomes, name):
    assert outcomes[name].status == MEASURED, outcomes[name]
    assert "alone" not in outcomes[name].facts
