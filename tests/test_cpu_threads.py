"""Calls from several Python threads at once, and in forked children: right, whatever
layer Numba's threads are of.
"""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import pytest

from batchline import kernels
from batchline.kernels._cpu import tasks as cpu_tasks

pytestmark = pytest.mark.commands

LAYERS = [
    pytest.param(layer, marks=pytest.mark.slow) for layer in ("workqueue", "omp", "tbb")
]

FIRST_CALLS = """
    import threading
    import torch
    from batchline import kernels

    def first_calls(op):
        inputs = op.make_inputs(op.example[0], 1, "float32", "meta")
        together, errors = threading.Barrier(4), []

        def call():
            together.wait()
            try:
                op(*inputs)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, (op.name, errors)
        assert len(op.variants) > 2

    for name in kernels.ops:
        first_calls(kernels.ops[name])
        print(name)
"""

# The shapes are large enough for every kernel to share them out over its threads.
TOGETHER = """
    import sys
    import threading
    import torch
    import numba
    from batchline import kernels

    sys.setswitchinterval(1e-5)
    torch.set_num_threads(1)
    numba.set_num_threads(2)
    a, b, g = torch.randn(64, 40, 96), torch.randn(64, 96, 48), torch.randn(40, 20000)
    x, dy = torch.randn(8, 32, 64), torch.randn(8, 32, 96)
    problems = {"bmm": (a, b), "grad_reduce": (g,), "grad_reduce_multi": (g, g[:, :9000]), "grad_stats": (g,),
                "wgrad_stats": (x, dy)}
    variants = [(variant, problems[op.name], op.variants[op.baseline](*problems[op.name]))
                for op in kernels.ops.values() for variant in op.variants.values()
                if variant.backend == "numba_cpu" and variant.why_unsupported(*problems[op.name]) is None]
    assert len(variants) >= len(kernels.ops)
    together, errors = threading.Barrier(2), []

    def call(order):
        try:
            for variant, inputs, expected in order * 3:
                together.wait(60)
                for _ in range(4):
                    torch.testing.assert_close(variant(*inputs), expected, rtol=1e-3, atol=1e-3)
        except BaseException as error:
            errors.append(error)
            together.abort()

    threads = [threading.Thread(target=call, args=(order,)) for order in (variants, variants[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    print(numba.threading_layer())
"""

FORKED = """
    import json
    import sys
    import torch

    before, subjects = json.loads(sys.argv[1])
    torch.set_num_threads(2)
    torch.bmm(torch.ones(64, 99, 99), torch.ones(64, 99, 99))  # by PyTorch's own threads

    def prepare(name, kernel, probe):
        # The op, a CPU kernel, and inputs for which the kernel is said to have won.
        from batchline import kernels

        op = kernels.ops[name]
        inputs = op.probes[probe](torch.float32, "cpu", 0)
        traits, sizes = op.describe(*inputs)
        winner = {"traits": traits, "sizes": list(sizes), "faster": {kernel: 2.0}}
        op.dispatch.table = lambda device: {"winners": [winner]}
        return op, op.variants[kernel], inputs

    class Called(torch.utils.data.Dataset):
        def __len__(self):
            return len(subjects)

        def __getitem__(self, index):
            op, kernel, inputs = prepare(*subjects[index])
            assert op.dispatch.look_up(*inputs).source.startswith("the baseline: this process was forked")
            return op(*inputs)

    for subject in subjects if before != "nothing" else ():
        op, kernel, inputs = prepare(*subject)
        if before == "a kernel ran":
            import numba
            numba.set_num_threads(2)
            assert op.dispatch.function(*inputs) is kernel.function
            op(*inputs)
    results = torch.utils.data.DataLoader(Called(), batch_size=None, num_workers=1, multiprocessing_context="fork",
                                          timeout=60)
    for subject, result in zip(subjects, results, strict=True):
        op, kernel, inputs = prepare(*subject)
        for one, other in zip(torch.utils._pytree.tree_leaves(result), torch.utils._pytree.tree_leaves(op(*inputs)),
                              strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
        assert op.dispatch.function(*inputs) is kernel.function
        print(kernel.id)
"""
TILED = [("bmm", "numba_cpu_tiled", "many_tiles")]
PARALLEL = [
    ("bmm", "numba_cpu_blocked", "many_tiles"),
    ("grad_reduce", "numba_cpu_together", "wide"),
    ("grad_reduce_multi", "numba_cpu_one_launch", "tiny_and_large"),
    ("grad_stats", "numba_cpu_one_read", "wide"),
    ("wgrad_stats", "numba_cpu_fused", "many_tiles"),
]

IN_A_CHILD = """
    import os
    import sys
    import numba
    import torch
    from batchline import kernels
    from batchline.kernels._cpu import tasks as cpu_tasks

    bmm = kernels.ops["bmm"]
    a, b = torch.randn(64, 40, 96), torch.randn(64, 96, 48)
    expected = [float(variant(a, b).sum()) for variant in map(bmm.variants.get, sys.argv[1:])]
    assert cpu_tasks.why_no_threads() is None
    torch.set_num_threads(1)
    child = os.fork()
    if not child:
        try:
            for name, sum_of_all in zip(sys.argv[1:], expected):
                try:
                    assert abs(float(bmm.variants[name](a, b).sum()) - sum_of_all) < 1
                    print(name, "is right", flush=True)
                except RuntimeError as error:
                    print(name, error, flush=True)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def run(program, *arguments, **environment):
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), *arguments],
        timeout=240,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def needs(layer):
    if layer == "tbb" and not importlib.util.find_spec("tbb"):
        pytest.skip("TBB is not installed")


def test_four_threads_make_the_first_call_at_once():
    assert run(FIRST_CALLS).split() == list(kernels.ops)


@pytest.mark.parametrize("layer", LAYERS)
def test_two_threads_run_parallel_kernels_at_once(layer):
    needs(layer)
    assert run(TOGETHER, NUMBA_THREADING_LAYER=layer).strip() == layer


@pytest.mark.parametrize(
    "before, subjects",
    [
        ("a kernel ran", PARALLEL[:1]),
        *(
            pytest.param(before, subjects, marks=pytest.mark.slow)
            for before, subjects in (
                ("nothing", PARALLEL[:1]),
                ("the op was loaded", PARALLEL[:1]),
                ("a kernel ran", PARALLEL[1:]),
                ("a kernel ran", TILED),
            )
        ),
    ],
)
def test_a_data_loaders_worker_gets_right_results(before, subjects):
    printed = run(FORKED, json.dumps([before, subjects]))
    assert printed.split() == [f"{op}/{kernel}" for op, kernel, _ in subjects]


@pytest.mark.parametrize("layer", LAYERS[:2])
def test_a_variant_called_in_a_forked_child_is_right_or_says_why_not(layer):
    printed = run(
        IN_A_CHILD,
        "numba_cpu_blocked",
        "numba_cpu_tiled",
        "numba_cpu_naive",
        NUMBA_THREADING_LAYER=layer,
    )
    assert "numba_cpu_blocked is right" in printed
    for name in ("numba_cpu_tiled", "numba_cpu_naive"):
        assert (
            f"{name} this process was forked, and its parent's threads did not come along: call the op"
            in printed
        )


def test_this_process_may_start_threads():
    assert cpu_tasks.why_no_threads() is None
