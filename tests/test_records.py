"""The frontier: what is stored is what is read, and what is not ours is refused in a
line.
"""

import dataclasses
import json

import pytest

from batchline.bench.errors import UsageError
from batchline.bench.stats.roofline import Waves
from batchline.bench.statuses import MEASURED, NOT_HERE
from batchline.bench.store import formats, load, run_json
from batchline.bench.store.records import (
    AuditRow,
    CompiledKernel,
    Forecast,
    InvarianceRow,
    Noise,
    Record,
    Study,
    WavesRow,
)
from tests.noise_evidence import noise
from tests.runs import save_document


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


def test_a_run_is_read_into_records(tmp_path):
    save_document(tmp_path, document())
    run = run_json.load(tmp_path)
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
    assert run.plan.limits.bytes == 2**24 and run.plan.effort.precision == 0.03
    assert run.plan.left_out == (("bmm", "tiny_16", "float32", 4096),)
    assert run.ops["bmm"].scenarios["tiny_16"].title == "many 16x16 matrices"
    assert run.baselines == {"bmm": "torch_bmm"}
    assert run.compiled.kernels[0].matrix_instruction == "wgmma.mma_async"


def test_what_is_saved_is_loaded(tmp_path):
    run = run_json.parse(document())
    path = run_json.save(tmp_path, run)
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["format"] == formats.RUN.number
    assert run_json.load(tmp_path) == load(tmp_path) == load(str(tmp_path)) == run
    assert not list(tmp_path.glob("*.partial"))


def test_a_record_can_not_be_changed():
    run = run_json.parse(document())
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.partial = True
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.plan.profile = "full"


def test_a_row_is_read_by_name_too():
    (kernel,) = run_json.parse(document()).compiled.kernels
    assert kernel["registers"] == kernel.registers == 110
    assert kernel.get("error") is None and kernel.get("nonsense", 3) == 3
    assert dict(kernel)["loads"] == {"16": 24} and len(kernel) == 23
    with pytest.raises(KeyError):
        kernel["nonsense"]


def test_a_compressed_run_is_read_as_it_is(tmp_path):
    run = run_json.parse(document())
    path = run_json.save(tmp_path, run)
    compressed = tmp_path / "run.json.gz"
    run_json.write_json(compressed, json.loads(path.read_text(encoding="utf-8")))
    path.unlink()
    assert run_json.path_in(tmp_path) == compressed and load(tmp_path) == run
    before = compressed.read_bytes()
    assert run_json.rewrite(tmp_path) == compressed
    assert compressed.read_bytes() == before and not path.exists()
    compressed.write_bytes(before[:-9])
    with pytest.raises(UsageError, match="run.json.gz is damaged"):
        load(tmp_path)


def test_one_sample_has_quartiles():
    assert Record("o", "v", "s", "d", 1, MEASURED, samples_s=(2.0,)).quartiles_s == (
        2.0,
        2.0,
    )


def test_a_planned_case_without_a_time_is_never_missing(tmp_path):
    stored = document()
    stored["batchline"]["cases"][0]["status"] = "wrong"
    save_document(tmp_path, stored)
    assert [
        (record.status, record.samples_s) for record in run_json.load(tmp_path).records
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
        (json.dumps({"format": "2"}), "its format is '2'"),
        (json.dumps({"format": 2, "nonsense": 1}), "Run has no nonsense"),
        (json.dumps({"format": 2, "started": 3}), "3 is of the type int"),
        (json.dumps({"format": 2, "partial": 1}), "1 is of the type int"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, text, words):
    if text is not None:
        (tmp_path / run_json.FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match=words):
        run_json.load(tmp_path)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"status": "nonsense"}, "has the status 'nonsense'"),
        ({"samples_s": []}, "was measured and has no sample"),
        ({"samples_s": [0.0]}, "has a sample that is no time"),
        ({"samples_s": [float("inf")]}, "has a sample that is no time"),
    ],
)
def test_a_record_that_is_none_is_refused(changes, words):
    stored = run_json.parse(document()).records[0].to_json()
    with pytest.raises(ValueError, match=words):
        Record.from_json({**stored, **changes})


def test_a_study_is_stored_and_loaded(tmp_path):
    study = Study(
        machine={"device_name": "Some CPU"},
        started="2026-01-02",
        profile="quick",
        noise=Noise(**noise()),
    )
    path = run_json.save_study(tmp_path, study)
    assert json.loads(path.read_text())["format"] == formats.STUDY.number
    loaded = load(tmp_path)
    assert loaded == dataclasses.replace(study, noise=loaded.noise)
    assert loaded.noise["seconds"] == study.noise.seconds
    assert loaded.noise.workloads.keys() == study.noise.workloads.keys()


def test_what_is_measured_has_its_place_in_the_records():
    """A field that a measurement gains and its record lacks would end every run."""
    from batchline.bench.measure.checking import audit, steadiness
    from batchline.bench.measure.compiled.compiler import Compiled
    from batchline.bench.running import budget

    names = {
        kind: {one.name for one in dataclasses.fields(kind)}
        for kind in (Compiled, CompiledKernel, Waves, WavesRow, Forecast)
    }
    assert names[Compiled] <= names[CompiledKernel]
    assert names[Waves] <= names[WavesRow]
    subject = audit.Subject(
        "op", "variant", "ours", None, ("d", "mean", "n", "noise_scale")
    )
    audited = formats.from_json(AuditRow, audit.row(subject, "float32"))
    assert dict(audited) == audit.row(subject, "float32")
    looked_at = steadiness.row("op", "variant", "scenario", "float32", [1, 4])
    assert formats.from_json(InvarianceRow, looked_at).batches == (1, 4)
    forecast = budget.Forecast({}, frozenset(), 1.0, 2.0, 3.0)
    assert set(forecast.as_dict()) == names[Forecast]
