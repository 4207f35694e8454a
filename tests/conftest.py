"""What test files share. The interpreters' runs take minutes: they begin with the session, beside its other tests."""
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bench.measure import busy, catalogue
from kernels import backends

WAITS = "test_interpreters.py"
os.environ[busy.VARIABLE] = "1"  # the machine is busy with these tests; those of the rule itself unset it


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name == WAITS)


@pytest.fixture(scope="session", autouse=True)
def interpreted(request, tmp_path_factory):
    """(backend, file) → the future of a child process that runs the file's tests interpreting that backend's kernels:
    (its exit code, what it printed). Only where this session waits for them."""
    children = {item.callspec.params["child"] for item in request.session.items if _waits(item)}
    folder, started = tmp_path_factory.mktemp("interpreted"), []
    environment = dict(os.environ)  # as it is now: a test that is at it when a child starts may have changed it

    def run(backend, file):
        with (folder / f"{len(started)}").open("w+") as output:
            started.append(subprocess.Popen(
                [sys.executable, "-m", "pytest", file, "-p", "no:cacheprovider", "--no-header", "-rN"],
                env=environment | backends.interpreter_environment(backend), stdout=output, stderr=output))
            code = started[-1].wait()
            output.seek(0)
            return code, output.read()

    pool = ThreadPoolExecutor(1)
    yield {child: pool.submit(run, *child) for child in sorted(children)}
    pool.shutdown(wait=False, cancel_futures=True)
    for child in started:
        child.kill()


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
