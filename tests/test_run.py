"""`python -m batchline` from the outside, in a copy of the sources with faulty variants
dropped in beside the real ones.
"""

import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from batchline.__main__ import main
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.folders import new_folder
from batchline.bench.running.benchmark import _exit_code
from batchline.bench.statuses import (
    CRASHED,
    FAILED,
    HUNG,
    INVALID,
    MEASURED,
    NOT_HERE,
    NOT_REACHED,
    OUT_OF_MEMORY,
    WRONG,
)
from batchline.bench.store import journal, records, run_json
from tests import shared
from tests.runs import run_of
from tests.test_records import document
from tests.trees import copy_sources, drop_in

pytestmark = pytest.mark.commands

REPOSITORY = Path(__file__).resolve().parents[1]
FAULTY = {
    "torch_wrong": "return torch.bmm(a, b) * 1.01",
    "torch_tires": "torch_tires.calls = getattr(torch_tires, 'calls', 0) + (a.shape[1:] == (16, 16))\n"
    "    return torch.bmm(a, b) * (1 + (torch_tires.calls > 10))",
    "torch_exits": "raise SystemExit(0)",
    "torch_raises": "raise ValueError('not on a Sunday\\nand more')",
    "torch_stalls": "while a.shape == (3, 16, 16):\n        pass\n    return torch.bmm(a, b)",
}
FATAL = ("hangs", "kills_its_process", "asks_for_10_tib", "returns_without_work")
CHOSEN = (
    "torch_bmm",
    "triton_tiled",
    "numba_cuda_tiled",
    "torch_typo",
    *FAULTY,
    *FATAL,
)


@pytest.fixture(scope="module")
def sources():
    """kernels/ and bench/ with what is pinned, and with the faulty variants and a file
    that does not load.
    """
    return shared.make_once("sources with faulty variants", _copy_with_faulty)


def _copy_with_faulty(folder):
    root = copy_sources(folder)
    shutil.copytree(
        REPOSITORY / "reports" / "baselines", root / "reports" / "baselines"
    )  # or it all compiles here
    for name, body in FAULTY.items():
        (root / "kernels" / "bmm" / f"{name}.py").write_text(
            f'"""Faulty on purpose."""\nimport torch\n\nfrom batchline.kernels.bmm import bmm\n\n\n'
            f'@bmm.variant(backend="torch")\ndef {name}(a, b):\n    {body}\n'
        )
    for name in FATAL:
        drop_in(root, name)
    (root / "kernels" / "bmm" / "torch_typo.py").write_text(
        "def torch_typo(a, b) return a\n"
    )
    return root


def bench(sources, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "batchline", *map(str, arguments)],
        cwd=sources,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def only_run(folder):
    (run_folder,) = folder.iterdir()
    return run_folder, run_json.load(run_folder)


@pytest.fixture(scope="module")
def faulty_run(sources):
    done, out = shared.make_once(
        "a run of faulty variants",
        lambda folder: (_run_faulty(sources, folder), folder),
    )
    return done, *only_run(out)


def _run_faulty(sources, out):
    return bench(
        sources,
        "run",
        "--profile",
        "smoke",
        "--device",
        "cpu",
        "--deadline",
        5,
        "--out",
        out,
        "-k",
        f"(tiny_16 or attention_scores) and ({' or '.join(CHOSEN)}) and not torch_bmm_",
    )


def test_faulty_variants_are_rows_and_stop_nobody(faulty_run):
    done, _, run = faulty_run
    assert done.returncode == 1, done.stderr
    outcomes = {}
    for record in run.records:
        outcomes.setdefault(record.variant, []).append(record.status)
    # attention_scores at B = 1, 3, then tiny_16 at B = 1, 3, 16; measured in the order
    # a1 t1 a3 t16 t3
    assert outcomes == {
        "torch_bmm": [MEASURED] * 5,
        "torch_wrong": [WRONG] * 5,
        "torch_raises": [FAILED] * 5,
        "torch_exits": [FAILED] * 5,
        "torch_typo": [FAILED] * 5,
        "torch_tires": [MEASURED] + [WRONG] * 4,
        "torch_stalls": [MEASURED] * 3 + [HUNG, MEASURED],
        "hangs": [HUNG] * 5,
        "kills_its_process": [CRASHED] * 5,
        "asks_for_10_tib": [OUT_OF_MEMORY] * 5,
        "returns_without_work": [MEASURED, WRONG, *[MEASURED] * 3],
        "triton_tiled": [NOT_HERE] * 5,
        "numba_cuda_tiled": [NOT_HERE] * 5,
    }
    reasons = {record.variant: record.reason for record in run.records if record.reason}
    for name in FATAL:
        assert (
            importlib.import_module(f"tests.wrong_kernels.{name}").REFUSED_FOR
            in reasons[name]
        )
    assert reasons["hangs"] == "not done after 5 s (probes: ragged)"
    assert reasons["torch_stalls"] == "not done after 5 s (check on tiny_16 at B=3)"
    assert reasons["torch_raises"] == "ValueError: not on a Sunday"
    assert (
        reasons["torch_wrong"].startswith("on ragged: ")
        and "times the tolerance" in reasons["torch_wrong"]
    )
    first = next(
        record
        for record in run.records
        if (record.variant, record.scenario) == ("torch_tires", "tiny_16")
        and record.reason
    )
    assert first.reason.startswith(
        "on tiny_16 at B=1, the output that was timed by host: 256 of 256 elements"
    )
    assert "torch_typo.py: it does not load: SyntaxError" in reasons["torch_typo"]
    assert "Traceback" not in done.stderr


def test_what_is_wrong_is_shown_and_never_ranked(faulty_run):
    done, folder, _ = faulty_run
    text = (folder / "README.md").read_text()
    measured = text.partition("## Without a time")[0]
    compared = [line for line in measured.splitlines() if line.startswith("| batch")]
    assert compared and not any("torch_wrong" in line for line in compared)
    assert re.search(
        r"\| torch_wrong +\| Faulty on purpose\. +\| +\| wrong +\|", measured
    )  # on the ladder
    assert "wrong" in text and re.search(
        r"\| 3 +\|.* hung ", measured
    )  # a cell in a row of others
    assert all(f"bmm/{name} " in done.stdout for name in (*FAULTY, *FATAL))
    assert done.stdout.rstrip().splitlines()[-1] == f"report: {folder}/README.md"


def test_a_measured_case_has_its_facts_and_raw_samples(faulty_run):
    _, _, run = faulty_run
    record = next(
        record
        for record in run.records
        if record.id == "bmm/torch_bmm/tiny_16/float32/B16"
    )
    assert 6 <= len(record.samples_s) <= 400 and min(record.samples_s) > 0
    facts = record.facts
    assert facts["output_bytes"] == 16 * 16 * 16 * 4 <= facts["peak_bytes"] < 2**20
    assert 0 < facts["error"] < 1e-6 and 0 < facts["error_of_tolerance"] <= 1
    assert (facts["flops"], facts["least_bytes"]) == (2 * 16**4, 3 * 4 * 16**3)
    assert facts["clock"] == "host" and facts["backend"] == "torch"
    assert set(facts["clocks"]) == {"host", "host_cold"}
    assert facts["clocks"]["host"]["median_s"] == pytest.approx(record.median_s)
    # A busy machine's interval may be wider than the median: no upper bound here.
    assert 0 < facts["precision"] < math.inf
    assert facts["input_bytes"] == 2 * 4 * 16**3
    assert facts["discarded"] == 0
    assert run.ceilings.matmul_flops_per_s["float32"] > 1e9
    machine = run.machine
    assert (
        machine["device"] == "cpu"
        and machine["versions"]["torch"]
        and machine["revision"]["commit"] == "unknown"
    )
    assert {kernel.architecture for kernel in run.compiled.kernels} == {80, 90, 100}


def test_pytest_benchmark_reads_the_file_as_its_own(faulty_run):
    _, folder, _ = faulty_run
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest_benchmark",
            "compare",
            str(folder / "benchmark.json"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "test_kernel[bmm/torch_bmm/tiny_16/float32/B16]" in done.stdout
    bench_of_it = json.loads((folder / "benchmark.json").read_text())["benchmarks"][0]
    assert {"mean", "stddev", "median", "iqr", "ops", "rounds", "data"} <= set(
        bench_of_it["stats"]
    )
    assert isinstance(
        json.loads((folder / "benchmark.json").read_text())["machine_info"]["cpu"], dict
    )  # theirs, untouched


def test_a_stored_run_is_reported_again(faulty_run, tmp_path):
    _, folder, _ = faulty_run
    again = shutil.copytree(folder, tmp_path / folder.name)
    (again / "README.md").unlink()
    assert main(["report", str(again)]) == 0
    assert (again / "README.md").read_bytes() == (folder / "README.md").read_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_cuda_side_is_timed_where_there_is_a_gpu(sources, tmp_path):
    done = bench(
        sources,
        "run",
        "--profile",
        "smoke",
        "--out",
        tmp_path,
        "-k",
        "(tiny_16 or layer_norm) and (torch_bmm or torch_mean or triton or numba)",
    )
    assert done.returncode == 0, done.stderr
    _, run = only_run(tmp_path)
    outcomes = {record.variant: record.status for record in run.records}
    assert all(
        outcomes[name] == MEASURED
        for name in (
            "torch_bmm",
            "triton_tiled",
            "numba_cuda_tiled",
            "torch_mean",
            "triton_two_stage",
            "numba_cuda_two_stage",
        )
    ), outcomes
    assert outcomes["numba_cpu_tiled"] == NOT_HERE
    timed = [record.facts for record in run.records if record.facts]
    assert {facts["clock"] for facts in timed} == {"device_cold"}
    assert all(
        set(facts["clocks"]) == {"device_cold", "device_hot", "graph", "host"}
        for facts in timed
    )


@pytest.mark.slow
def test_nothing_that_can_run_here_is_exit_3_and_still_a_report(sources, tmp_path):
    done = bench(
        sources,
        "run",
        "--profile",
        "smoke",
        "--device",
        "cpu",
        "-k",
        "numba_cuda_naive and tiny_16",
        "--out",
        tmp_path,
    )
    assert done.returncode == 3
    folder, run = only_run(tmp_path)
    assert {record.status for record in run.records} == {NOT_HERE}
    assert (folder / "README.md").exists()


@pytest.mark.slow
def test_a_run_that_is_stopped_keeps_what_was_measured(sources, tmp_path):
    """By SIGTERM, as a CI does it; Ctrl-C goes the same way, but a shell's background
    jobs ignore that.
    """
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "batchline",
            "run",
            "--profile",
            "quick",
            "--device",
            "cpu",
            "-k",
            "grad_reduce and torch_mean",
            "--out",
            str(tmp_path),
        ],
        cwd=sources,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen = []
    while not any(
        "layer_norm" in line for line in seen
    ):  # so the digits are done, and there is much left
        seen.append(process.stderr.readline())
        assert seen[-1], "".join(seen)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130
    folder, run = only_run(tmp_path)
    statuses = [record.status for record in run.records]
    assert statuses[0] == MEASURED and statuses[-1] == NOT_REACHED and run.partial
    assert "**Partial.**" in (folder / "README.md").read_text() and "PARTIAL" in output


@pytest.mark.parametrize(
    "selection, words",
    [
        ("nothing_matches", "-k 'nothing_matches' matches none of the"),
        ("tiny and (", "is not an expression that pytest -k understands"),
    ],
)
def test_a_choice_of_nothing_is_one_clear_line(tmp_path, capsys, selection, words):
    out, history = tmp_path / "runs", tmp_path / "history"
    arguments = ["--profile", "smoke", "--device", "cpu", "--out", str(out)]
    assert main(["run", *arguments, "--history", str(history), "-k", selection]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("batchline: ") and words in last
    assert not list(out.glob("*")) and not list(history.glob("*"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--profile", "fast"], "unknown profile 'fast': use smoke, quick, full"),
        (
            ["--clocks", "host,sundial"],
            "'sundial' is no clock of cpu: use host, host_cold",
        ),
        (["--device", "tpu"], "unknown device 'tpu': use auto, cpu, cuda or stand-in"),
        (
            ["--out", "/dev/null/runs"],
            "can't write to /dev/null/runs (Not a directory): name another folder with --out (OUT= of make)",
        ),
        (
            ["--history", "/dev/null/kept"],
            "can't write to /dev/null/kept (Not a directory): name another folder with "
            "--history (HISTORY= of make)",
        ),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, capsys, arguments, words):
    assert main(["run", "--device", "cpu", "--out", str(tmp_path), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("batchline: ")
        and words in line
        and not list(tmp_path.iterdir())
    )


def test_cuda_without_a_gpu_is_one_clear_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["run", "--device", "cuda", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("batchline: DEVICE=cuda, but ")


@pytest.mark.parametrize(
    "module",
    [
        "torch",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("tabulate", "sklearn", "pytest_benchmark")
        ),
    ],
)
def test_a_missing_dependency_is_one_clear_line(sources, module):
    program = (
        f"import sys; sys.modules[{module!r}] = None; "
        "from batchline.__main__ import main; sys.exit(main(['run']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=sources, capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("batchline: ") and module in line and "make install" in line


@pytest.mark.slow
def test_the_list_ends_quietly_when_its_reader_has_seen_enough(sources):
    done = subprocess.run(
        f"{sys.executable} -m batchline list | head -1",
        shell=True,
        cwd=sources,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("bmm/torch_bmm/")
    # Of the file that does not load, how many cases there are, and how it ended; nothing
    # of the pipe.
    told, counted, closing = done.stderr.splitlines()
    assert " cases, " in counted and closing.startswith("batchline list: a file is ")
    assert told.startswith(
        "bmm/torch_typo: failed: kernels/bmm/torch_typo.py: it does not load: SyntaxError"
    )


def test_a_folder_that_fails_at_the_end_costs_no_measurement(tmp_path, capsys):
    rescue = journal.store(run_json.parse(document()), tmp_path / "gone")
    assert run_json.load(rescue).records[0].status == MEASURED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"batchline: can't write to {tmp_path}/gone any more (No such file or directory): what was "
        f"measured is in {rescue}, and `python -m batchline report {rescue}` reads it"
    )
    shutil.rmtree(rescue)


def test_a_nearly_full_folder_is_refused_before_anything_is_measured(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 2**20)
    )
    with pytest.raises(UsageError, match="has 1 MiB free and a run wants 64"):
        new_folder(tmp_path, "cpu")


BUSY = "the machine was busy: other processes took 43% of the cores, three times"


@pytest.mark.parametrize(
    "cases, code",
    [
        (
            [(MEASURED, ""), (INVALID, BUSY)],
            0,
        ),  # what was checked was right, and some of it timed
        ([(INVALID, BUSY)], 3),
        ([(INVALID, BUSY), (NOT_HERE, "needs CUDA")], 3),
        ([(MEASURED, ""), (INVALID, BUSY), (INVALID, "by host, it is impossible")], 1),
        ([(INVALID, BUSY), (WRONG, "on ragged: no")], 3),
        ([(MEASURED, ""), (INVALID, BUSY), (WRONG, "on ragged: no")], 1),
    ],
)
def test_a_busy_machine_alone_is_no_variants_exit_code(cases, code):
    rows = [
        records.Record("bmm", "torch_bmm", "tiny_16", "float32", 1, status, reason)
        for status, reason in cases
    ]
    assert (
        _exit_code(run_of({"audit": []}, {}, tuple(rows)), ExitCode.CLEAN, True) == code
    )


def test_a_run_never_overwrites_another(tmp_path):
    folders = {new_folder(tmp_path, "AMD EPYC (tm)") for _ in range(4)}
    assert len(folders) == 4 and all(
        "-amd-epyc-tm" in folder.name for folder in folders
    )


def test_a_run_that_is_stopped_before_its_first_case_was_stopped():
    rows = (records.Record("bmm", "torch_bmm", "tiny_16", "float32", 1, NOT_REACHED),)
    code = _exit_code(run_of({"audit": []}, {}, rows), ExitCode.STOPPED, True)
    assert code == ExitCode.STOPPED
