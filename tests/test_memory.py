"""Peak memory: outputs and workspace, never inputs, whoever allocates them; and running out of it."""
import subprocess
import sys

import numpy as np
import pytest
import torch

from bench.measure import memory

MIB = 2 ** 20


def _peak(call):
    call()
    peak = memory.peak_of(call, "cpu")
    if peak.bytes is None:
        pytest.skip(peak.method)
    return peak.bytes


def test_output_counts_and_inputs_do_not():
    a, b = torch.randn(4, 512, 512), torch.randn(4, 512, 512)
    assert _peak(lambda: torch.bmm(a, b)) == pytest.approx(4 * MIB, rel=0.05)


@pytest.mark.parametrize("allocate", [lambda: np.ones(16 * MIB, np.uint8), lambda: bytearray(16 * MIB)],
                         ids=["numpy", "python"])
def test_every_allocator_is_seen(allocate):
    assert _peak(allocate) == pytest.approx(16 * MIB, rel=0.05)


def test_workspace_that_is_freed_again_counts():
    def call():
        workspace = torch.ones(8 * MIB, dtype=torch.uint8)
        return workspace[:MIB].clone()

    assert _peak(call) == pytest.approx(9 * MIB, rel=0.05)


def test_a_call_that_allocates_nothing():
    assert _peak(lambda: None) <= 64 * 1024


def test_more_memory_than_there_is_fails_as_an_error():
    """In a process of its own: the limit stays. 90% of what is free is asked for twice and kept."""
    program = """
import torch
from bench.measure import memory
memory.limit_to_available()
free = memory._kibibytes(open("/proc/meminfo").read(), "MemAvailable")
kept = []
try:
    for _ in range(2):
        kept.append(torch.empty(free * 6 // 10, dtype=torch.uint8))
except Exception as error:
    print(len(kept), memory.is_out_of_memory(error))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "1 True\n", done.stderr


@pytest.mark.parametrize("error, is_one", [
    (MemoryError(), True), (torch.OutOfMemoryError("x"), True),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"), True),
    (RuntimeError("CUDA_ERROR_OUT_OF_MEMORY"), True), (RuntimeError("shapes differ"), False)])
def test_ways_to_say_it(error, is_one):
    assert memory.is_out_of_memory(error) is is_one


def test_where_the_mark_cannot_be_lowered_the_peak_is_unknown_and_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "no" / "such")
    peak = memory.peak_of(lambda: None, "cpu")
    assert peak.bytes is None and peak.method.startswith("not measured: needs glibc and a writable ")
