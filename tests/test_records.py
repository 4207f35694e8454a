"""The frontier: what is stored is what is read, and what is not ours is refused in a
line.
"""

import json

import pytest

from batchline.bench import records
from batchline.bench.records import MEASURED, NOT_HERE, Record


def compiled_row(**changes):
    """A kernel's static facts, as a run stores them."""
    return {
        "variant": "bmm/triton_tiled",
        "dtype": "float16",
        "scenario": "tiny_16",
        "batch": 4,
        "example": True,
        "architecture": 90,
        "kernel": "_kernel",
        "config": "BLOCK_M=128, 8 warps, 3 stages",
        "threads": 256,
        "registers": 110,
        "stack_bytes": 0,
        "shared_bytes": 98304,
        "code_bytes": 5120,
        "spills": 0,
        "barriers": 6,
        "matrix_instruction": "wgmma.mma_async",
        "matrix": 4,
        "loads": {"16": 24},
        "stores": {"16": 8},
        "warp_specialized": False,
    } | changes


def document():
    """A run of one measured case and one that can't run here, as `batchline run` stores it."""
    return {
        "machine_info": {
            "batchline": {
                "device_name": "Some CPU",
                "cpu": "Some CPU",
                "cpu_cores": 2,
                "cpu_threads_of_torch": 2,
                "memory_bytes": 2**34,
                "system": "Linux 6",
                "python": "3.11.7",
                "versions": {"torch": "2.13.0"},
                "revision": {"commit": "abc", "dirty": False},
            }
        },
        "commit_info": {},
        "datetime": "2026-01-02T03:04:05",
        "version": "5.3.1",
        "benchmarks": [
            {
                "param": "bmm/torch_bmm/tiny_16/float32/B4",
                "stats": {"data": [4e-6, 2e-6, 3e-6, 1e-6], "iterations": 7},
                "extra_info": {
                    "clock": "host",
                    "backend": "torch",
                    "peak_bytes": 4096,
                    "memory_method": "resident set",
                    "input_bytes": 8192,
                    "output_bytes": 4096,
                    "flops": 32768,
                    "least_bytes": 12288,
                    "error_of_tolerance": 0.1,
                    "own_tolerance": False,
                    "precision": 0.02,
                    "discarded": 3,
                    "state": {"others_share": 0.04, "stolen_share": 0.01},
                    "clocks": {
                        "host": {"median_s": 2.5e-6, "precision": 0.02},
                        "host_cold": {"median_s": 9e-6, "precision": 0.11},
                    },
                },
            }
        ],
        "batchline": {
            "profile": "smoke",
            "started": "2026-01-02T03:04:05+00:00",
            "seconds": 12.0,
            "partial": False,
            "selection": "",
            "signatures": {"bmm": "A, B → C"},
            "baselines": {"bmm": "torch_bmm"},
            "scenarios": {"bmm": {"tiny_16": "many 16x16 matrices"}},
            "variants": {
                name: {
                    "idea": idea,
                    "backend": backend,
                    "builds_on": None,
                    "own_tolerance": False,
                }
                for name, idea, backend in (
                    ("bmm/torch_bmm", "the vendor's", "torch"),
                    ("bmm/triton_tiled", "tiles", "triton"),
                )
            },
            "effort": {"precision": 0.03, "seconds": 0.05},
            "room_bytes": 2**34,
            "capacity": [],
            "ceilings": {
                "copy_bytes_per_s": 2e10,
                "read_bytes_per_s": 2.5e10,
                "cache_bytes_per_s": 1e11,
                "cache_bytes": 2**25,
                "matmul_flops_per_s": {"float32": 1e11},
                "fma_flops_per_s": {},
                "launch_s": {"host": 1e-6, "host_cold": 5e-6},
                "best": {},
            },
            "why_no_ceilings": None,
            "limits": {"flops": 2e8, "bytes": 2**24},
            "left_out": [["bmm", "tiny_16", "float32", 4096]],
            "compiled": [compiled_row()],
            "not_compiled": None,
            "cases": [
                {
                    "id": "bmm/torch_bmm/tiny_16/float32/B4",
                    "status": MEASURED,
                    "reason": "",
                },
                {
                    "id": "bmm/triton_tiled/tiny_16/float32/B4",
                    "status": NOT_HERE,
                    "reason": "needs CUDA",
                },
            ],
        },
    }


def test_what_is_saved_is_loaded(tmp_path):
    records.save(tmp_path, document())
    run = records.load(tmp_path)
    measured, refused = run.records
    assert measured == Record(
        "bmm",
        "torch_bmm",
        "tiny_16",
        "float32",
        4,
        MEASURED,
        "",
        (4e-6, 2e-6, 3e-6, 1e-6),
        7,
        document()["benchmarks"][0]["extra_info"],
    )
    assert measured.median_s == pytest.approx(
        2.5e-6
    ) and measured.quartiles_s == pytest.approx((1.75e-6, 3.25e-6))
    assert (refused.status, refused.reason, refused.samples_s) == (
        NOT_HERE,
        "needs CUDA",
        (),
    )
    assert list(run.groups()) == [("bmm", "tiny_16", "float32")]
    assert not list(tmp_path.glob("*.partial"))


def test_one_sample_has_quartiles():
    assert Record("o", "v", "s", "d", 1, MEASURED, samples_s=(2.0,)).quartiles_s == (
        2.0,
        2.0,
    )


def test_a_planned_case_without_a_time_is_never_missing(tmp_path):
    stored = document()
    stored["batchline"]["cases"][0]["status"] = "wrong"
    records.save(tmp_path, stored)
    assert [
        (record.status, record.samples_s) for record in records.load(tmp_path).records
    ] == [
        ("wrong", ()),
        (NOT_HERE, ()),
    ]  # also where its rounds are still in the file


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "no run in .*: No such file"),
        ("{", "run.json is damaged: JSONDecodeError"),
        ("[]", "run.json is damaged, or of another version"),
        (json.dumps({"benchmarks": []}), "KeyError: 'batchline'"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, text, words):
    if text is not None:
        (tmp_path / records.FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match=words):
        records.load(tmp_path)
