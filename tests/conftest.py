"""What test files share."""

import json
import os
import sys

# Before torch is imported: a thread of OpenMP's that waits for others sleeps. Two
# processes whose threads spin take each other's cores: products of many small matrices
# then take 20 times as much processor time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Many tests start a process, and each would compile all sources again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import pytest  # noqa: E402
import torch  # noqa: E402

from batchline.bench.measure import busy, catalogue, stand_in  # noqa: E402
from batchline.kernels.backends import interpreted  # noqa: E402
from tests import gpu_sessions  # noqa: E402

LONGEST = "test_interpreters.py"  # a minute and more for each of its tests
os.environ[busy.VARIABLE] = (
    "1"  # the machine is busy with these tests; those of the rule itself unset it
)
if interpreted("numba_cuda"):
    stand_in.quicken_the_simulator()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Two without a GPU: more would take each other's cores in what is timed."""
    return gpu_sessions.processes()


def pytest_collection_modifyitems(items):
    """The longest first, so that the others go on beside them in another process; GPU
    tests before, by risk.
    """
    items.sort(key=lambda item: item.path.name != LONGEST)
    gpu_sessions.order(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    done = yield
    gpu_sessions.leave_if_lost(item)
    return done


@pytest.fixture(scope="session", autouse=True)
def read_once():
    """What there is to measure here takes seconds to read, and stays the same: each
    request is read once.
    """
    read, kept = catalogue.read, {}

    def read_or_kept(request=None, deadline_s=catalogue.LONGEST_S, tree=None):
        asked = json.dumps(request, sort_keys=True)
        if tree or asked not in kept:
            found = read(request, deadline_s, tree)
            return found if tree else kept.setdefault(asked, found)
        return kept[asked]

    catalogue.read = read_or_kept
    yield
    catalogue.read = read


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other make small products slow wherever cores are
    shared.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
