"""Peak memory: outputs and workspace, never inputs, whoever allocates them; and running
out of it.
"""

import contextlib
import json
import platform
import resource
import subprocess
import sys
import types

import pytest
import torch

from batchline.bench.measure.machine import memory

pytestmark = pytest.mark.commands

MIB = 2**20


def _run(program):
    """What a program prints in JSON, in a process of its own: what it does to the heap
    and the limit stays there.
    """
    program = (
        "import ctypes, json, resource, torch\nfrom batchline.bench.measure.machine import memory\n"
        + program
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def peaks():
    """The peaks of some warm calls, by name, in a process that has done nothing else."""
    found = _run("""
import numpy
MIB = 2 ** 20
a, b = torch.randn(4, 512, 512), torch.randn(4, 512, 512)

def with_workspace():
    workspace = torch.ones(8 * MIB, dtype=torch.uint8)
    return workspace[:MIB].clone()

calls = {"output": lambda: torch.bmm(a, b), "numpy": lambda: numpy.ones(16 * MIB, numpy.uint8),
         "python": lambda: bytearray(16 * MIB), "workspace": with_workspace, "nothing": lambda: None}
for call in calls.values():
    call()
print(json.dumps({name: memory.peak_of(call, "cpu").bytes for name, call in calls.items()}))
""")
    if None in found.values():
        pytest.skip("peaks can't be measured here")
    return found


def test_output_counts_and_inputs_do_not(peaks):
    assert peaks["output"] == pytest.approx(4 * MIB, rel=0.05)


@pytest.mark.parametrize("allocator", ["numpy", "python"])
def test_every_allocator_is_seen(peaks, allocator):
    assert peaks[allocator] == pytest.approx(16 * MIB, rel=0.05)


def test_workspace_that_is_freed_again_counts(peaks):
    assert peaks["workspace"] == pytest.approx(9 * MIB, rel=0.05)


def test_where_the_heap_keeps_what_is_freed_a_peak_is_still_the_output_alone():
    """Its free pages must not hide an allocation, nor inputs join it."""
    peaks = _run("""
a, b = torch.randn(16, 512, 512), torch.randn(16, 512, 512)
memory.keep_freed_memory()
for _ in range(20):
    torch.bmm(a, b)
print(json.dumps([memory.peak_of(lambda: torch.bmm(a, b), "cpu").bytes for _ in range(2)]))
""")
    if None in peaks:
        pytest.skip("peaks can't be measured here")
    assert peaks == pytest.approx([16 * MIB] * 2, rel=0.02)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc",
    reason="only glibc's heap can be told to keep its memory",
)
def test_calls_that_reuse_freed_memory_take_no_page_faults():
    """After some calls: a block can't be reused at the same size until the free space
    around it has grown a little.
    """
    faults = _run("""
memory.keep_freed_memory()

def faults_a_call(size, calls):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(calls):
        torch.ones(size, dtype=torch.uint8)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / calls

sizes = [16 * 2 ** 20, 48 * 2 ** 20]  # over 32 MiB glibc never keeps a block by itself
print(json.dumps([(faults_a_call(size, 25), faults_a_call(size, 10))[1] for size in sizes]))
""")
    assert max(faults) <= 16  # of 256 a MiB


def test_the_room_is_what_the_limit_leaves_and_what_the_heap_has_free():
    at_first, with_one_kept, after_it, with_free_heap, refused = _run("""
torch.ones(1)
memory.limit_to(512 * 2 ** 20)
seen = [memory.room("cpu")]
kept = torch.empty(384 * 2 ** 20, dtype=torch.uint8)
seen.append(memory.room("cpu"))
del kept
seen.append(memory.room("cpu"))
memory.keep_freed_memory()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.free(libc.malloc(256 * 2 ** 20))
seen.append(memory.room("cpu"))
try:
    torch.empty(640 * 2 ** 20, dtype=torch.uint8)
except RuntimeError as error:
    seen.append(memory.is_out_of_memory(error))
print(json.dumps(seen))
""")
    assert [at_first, after_it, with_free_heap] == pytest.approx(
        [512 * MIB] * 3, rel=0.02
    )
    assert with_one_kept == pytest.approx(128 * MIB, rel=0.08) and refused is True


def test_without_a_limit_there_is_no_room_to_name(monkeypatch):
    monkeypatch.setattr(
        resource,
        "getrlimit",
        lambda what: (resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    )
    assert memory.room("cpu") is None


def test_a_call_that_allocates_nothing(peaks):
    assert peaks["nothing"] <= 64 * 1024


def test_more_memory_than_there_is_fails_as_an_error():
    """60% of what is free is asked for twice and kept."""
    assert _run("""
memory.limit_to_available()
free = memory._kibibytes(open("/proc/meminfo").read(), "MemAvailable")
kept = []
try:
    for _ in range(2):
        kept.append(torch.empty(free * 6 // 10, dtype=torch.uint8))
except Exception as error:
    print(json.dumps([len(kept), memory.is_out_of_memory(error)]))
""") == [1, True]


def test_in_a_container_the_room_is_what_its_limit_leaves(monkeypatch):
    """On made-up files, for the limit itself is the kernel's."""
    limits = []
    monkeypatch.setattr(memory, "limit_to", limits.append)
    for allowed in (None, 2**20, 2**60):
        monkeypatch.setattr(memory.cgroups, "memory_room", lambda: allowed)
        memory.limit_to_available()
    assert limits[1] == 2**20 * 9 // 10 and limits[0] == pytest.approx(
        limits[2], rel=0.1
    )


@pytest.mark.parametrize(
    "error, is_one",
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"
            ),
            True,
        ),
        (RuntimeError("CUDA_ERROR_OUT_OF_MEMORY"), True),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_ways_to_say_it(error, is_one):
    assert memory.is_out_of_memory(error) is is_one


def test_where_the_mark_cannot_be_lowered_the_peak_is_unknown_and_says_why(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "no" / "such")
    peak = memory.peak_of(lambda: None, "cpu")
    assert peak.bytes is None and peak.method.startswith(
        "not measured: needs glibc and a writable "
    )


class FakeDevice:
    """A GPU of 1 GiB behind torch.cuda: torch's allocator in blocks of 20 MiB, and what
    others take beside it.
    """

    TOTAL, BLOCK = 1024 * MIB, 20 * MIB

    def __init__(self, monkeypatch):
        self.allocated, self.peak, self.reserved, self.outside = (
            100 * MIB,
            400 * MIB,
            100 * MIB,
            50 * MIB,
        )
        self.freed_later = None
        for name, value in {
            "synchronize": lambda: None,
            "empty_cache": lambda: None,
            "reset_peak_memory_stats": self._reset,
            "memory_allocated": lambda: self.allocated,
            "max_memory_allocated": lambda: self.peak,
            "memory_reserved": lambda: self.reserved,
            "mem_get_info": lambda: (self.free, self.TOTAL),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setitem(
            sys.modules,
            "numba.cuda",
            types.SimpleNamespace(defer_cleanup=self._defer_cleanup),
        )

    @property
    def free(self):
        return self.TOTAL - self.reserved - self.outside

    def _reset(self):
        self.peak = self.allocated

    def torch_takes(self, size):
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        while self.reserved < self.allocated:
            self.reserved += self.BLOCK

    def torch_frees(self, size):
        self.allocated -= size  # and keeps it reserved

    def numba_frees(self, size):
        if self.freed_later is None:
            self.outside -= size
        else:
            self.freed_later += size

    @contextlib.contextmanager
    def _defer_cleanup(self):
        self.freed_later = 0
        yield
        self.outside -= self.freed_later
        self.freed_later = None


@pytest.fixture
def device(monkeypatch):
    return FakeDevice(monkeypatch)


def _device_peak(call):
    return memory.peak_of(call, "cuda").bytes


def test_on_a_device_what_torch_takes_counts_to_the_byte_and_not_its_blocks(device):
    assert _device_peak(lambda: device.torch_takes(10 * MIB + 512)) == 10 * MIB + 512


def test_on_a_device_workspace_that_is_freed_again_counts(device):
    def call():
        device.torch_takes(8 * MIB)
        device.torch_takes(4 * MIB)
        device.torch_frees(8 * MIB)

    assert _device_peak(call) == 12 * MIB


@pytest.mark.parametrize("frees", [False, True], ids=["kept", "freed"])
def test_on_a_device_what_others_than_torch_take_counts_even_where_they_free_it_again(
    device, frees
):
    def call():
        device.torch_takes(10 * MIB)
        device.outside += 6 * MIB
        if frees:
            device.numba_frees(6 * MIB)

    assert _device_peak(call) == 16 * MIB
    assert device.outside == (50 if frees else 56) * MIB


def test_on_a_device_what_another_process_frees_takes_nothing_off(device):
    def call():
        device.torch_takes(10 * MIB)
        device.outside -= 40 * MIB

    assert _device_peak(call) == 10 * MIB


def test_on_a_device_a_program_without_numba_is_measured_too(device, monkeypatch):
    monkeypatch.delitem(sys.modules, "numba.cuda")
    assert _device_peak(lambda: device.torch_takes(MIB)) == MIB


def test_a_device_has_room_for_what_is_free_on_it(device):
    assert memory.room("cuda") == device.free == (1024 - 150) * MIB
