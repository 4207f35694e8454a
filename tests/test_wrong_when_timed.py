"""Kernels that only a whole measurement can refuse: each is wrong for its own reason,
and its neighbour is unharmed.
"""

import importlib
import pkgutil
import re

import pytest

from batchline.bench.statuses import MEASURED, WRONG
from tests import wrong_kernels
from tests.measured import HONEST, measured

NAMES = [
    module.name
    for module in pkgutil.iter_modules(wrong_kernels.__path__)
    if getattr(
        importlib.import_module(f"{wrong_kernels.__name__}.{module.name}"),
        "REFUSED_BY",
        "",
    )
    == "timing"
]


pytestmark = pytest.mark.commands  # a process of its own measures each


# Three seconds each: every second one is left to `make test-slow`, and `python -m tests.wrong_run`
# has them all.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if number % 2 else [])
        for number, name in enumerate(NAMES)
    ],
)
def test_it_is_refused_and_its_neighbour_is_not(name):
    words = importlib.import_module(f"{wrong_kernels.__name__}.{name}").REFUSED_FOR
    outcomes, (whose, reason) = measured(name)
    if outcomes:
        assert outcomes[name].status == WRONG and re.search(
            words, outcomes[name].reason
        ), outcomes[name]
        assert outcomes[HONEST].status == MEASURED, outcomes[HONEST]
    else:
        assert whose != HONEST and re.search(words, reason), (whose, reason)
