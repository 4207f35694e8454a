"""What test files share."""

import gc
import importlib.util
import json
import os
import resource
import sys

# Before torch is imported: a thread of OpenMP's that waits for others sleeps. Two
# processes whose threads spin take each other's cores: products of many small matrices
# then take 20 times as much processor time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# As wide as where there is no terminal, whatever the tests are started from.
os.environ["COLUMNS"] = "100"
# Many tests start a process, and each would compile all sources again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import pytest  # noqa: E402
import torch  # noqa: E402

from batchline.bench import catalogue  # noqa: E402
from batchline.bench.measure.machine import state  # noqa: E402
from batchline.kernels.backends import interpreted  # noqa: E402
from tests import gpu_sessions, handlers, shared  # noqa: E402

# Compilers make so much that lives on that collecting garbage takes a tenth of their
# time.
gc.set_threshold(100_000, 20, 20)
# Begun first: each of their tests takes many seconds.
LONGEST = ("test_stand_in.py", "test_run.py", "test_emulator_variants.py")
# Begun next, one after another, and so in one process: what Numba has compiled for the
# CPU is had again in the same process alone.
COMPILED_BY_NUMBA = (
    "test_variants.py",
    "test_properties.py",
    "test_statistics.py",
    "test_values.py",
    "test_audit.py",
    "test_calls.py",
    "test_fence.py",
    "test_cpu_assembly.py",
    "test_autograd.py",
    "test_ceilings.py",
    "test_grad_reduce_multi.py",
    "test_meter_foreign.py",
    "test_noise_meter.py",
    "test_problem.py",
)
_PLACES = {name: place for place, name in enumerate((*LONGEST, *COMPILED_BY_NUMBA))}
os.environ[state.VARIABLE] = (
    "1"  # the machine is busy with these tests; those of the rule itself unset it
)
if interpreted("numba_cuda") and importlib.util.find_spec("greenlet"):
    from tests import simulator

    simulator.install()
_read_catalogue, _catalogues = catalogue.read, {}


def _read_once(request=None, deadline_s=catalogue.LONGEST_S, tree=None):
    """What there is to measure here takes seconds to read, and stays the same: each
    request is read once, by one of the processes.
    """
    if tree:
        return _read_catalogue(request, deadline_s, tree)
    asked = json.dumps(request, sort_keys=True)
    if asked not in _catalogues:
        _catalogues[asked] = shared.make_once(
            f"catalogue {asked}", lambda folder: _read_catalogue(request, deadline_s)
        )
    return _catalogues[asked]


catalogue.read = _read_once


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # of pytest-xdist, which has its parent's
        folder = shared.open_folder()
        config.add_cleanup(folder.cleanup)
        if getattr(config.option, "numprocesses", None):
            handlers.compile_first()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Two without a GPU: more would take each other's cores in what is timed."""
    return gpu_sessions.processes()


def pytest_collection_modifyitems(items):
    """The longest first, so that the others go on beside them in another process, then
    those that share what is compiled; GPU tests before, by risk.
    """
    items.sort(key=lambda item: _PLACES.get(item.path.name, len(_PLACES)))
    gpu_sessions.order(items)


def pytest_collection_finish():
    """What is imported and collected by now stays: no collection of garbage looks at it
    again.
    """
    gc.freeze()


def pytest_sessionfinish():
    """Nothing is to be had of what is left: pytest collects garbage ten times more, each
    a third of a second.
    """
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    allowed = resource.getrlimit(resource.RLIMIT_DATA)
    done = yield
    # What a test measures in this process may have taken memory from all after it.
    resource.setrlimit(resource.RLIMIT_DATA, allowed)
    gpu_sessions.leave_if_lost(item)
    return done


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other make small products slow wherever cores are
    shared.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
