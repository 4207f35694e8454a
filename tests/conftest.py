"""What test files share. The interpreters' runs take minutes: they begin with the session, beside its other tests."""
import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from bench.measure import busy, catalogue
from tests.interpreting import Child

WAITS = "test_interpreters.py"
os.environ[busy.VARIABLE] = "1"  # the machine is busy with these tests; those of the rule itself unset it


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name == WAITS)


@pytest.fixture(scope="session", autouse=True)
def interpreted(request, tmp_path_factory):
    """(backend, file, marks) → the tests.interpreting.Child that runs the file's tests, interpreting that backend.

    Only where this session waits for them.
    """
    children = sorted({item.callspec.params["child"] for item in request.session.items if _waits(item)})
    if not children:
        yield {}
        return
    folder = tmp_path_factory.mktemp("interpreted")
    with (folder / "errors").open("w") as errors:
        runner = subprocess.Popen([sys.executable, "-m", "tests.interpreting", str(folder),
                                   *(word for child in children for word in child)],
                                  stdout=errors, stderr=errors, start_new_session=True)
    yield {child: Child(runner, folder, number) for number, child in enumerate(children)}
    with contextlib.suppress(ProcessLookupError):
        os.killpg(runner.pid, signal.SIGKILL)
    runner.wait()


@pytest.fixture(scope="session", autouse=True)
def read_once():
    """What there is to measure here takes seconds to read, and stays the same: each request is read once."""
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
    """Threads that wait for each other make small products slow wherever cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _waits(item):
    return (item.path.name == WAITS and hasattr(item, "callspec")
            and not any(mark.args[0] for mark in item.iter_markers("skipif")))
