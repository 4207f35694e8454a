"""`batchline profile`: the machine code where there is no GPU; ncu, or else proton, where
there is one (made up here).
"""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from batchline.bench.commands import profile as command
from batchline.bench.commands.profile import kernel_times
from batchline.bench.declared import Declared
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.measure.machine import environment

CASE = "bmm/triton_tiled/square_256/float16/B4"
PROFILE = [
    {
        "frame": {"name": "ROOT", "type": "function"},
        "metrics": {"time (ns)": 0, "count": 0},
        "children": [
            {
                "frame": {"name": "_product"},
                "metrics": {"time (ns)": 3000, "count": 20},
                "children": [],
            },
            {
                "frame": {"name": "outer"},
                "metrics": {},
                "children": [
                    {
                        "frame": {"name": "_sums"},
                        "metrics": {"time (ns)": 1000, "count": 20},
                        "children": [],
                    },
                    {
                        "frame": {"name": "_product"},
                        "metrics": {"time (ns)": 1000, "count": 5},
                        "children": [],
                    },
                ],
            },
        ],
    },
    {"CUDA": {"0": {"arch": "90"}}},
]


def test_the_times_of_a_proton_profile():
    product, sums = kernel_times(PROFILE)
    assert (product.name, product.calls, product.seconds, product.share) == (
        "_product",
        25,
        pytest.approx(4e-6),
        0.8,
    )
    assert (sums.name, sums.share) == ("_sums", 0.2)
    assert (
        kernel_times([{"frame": {"name": "ROOT"}, "metrics": {}, "children": []}]) == []
    )


@pytest.mark.commands
def test_without_a_gpu_the_hot_loop_is_shown(capsys):
    if why := Declared("bmm", "triton_tiled", Path("kernels"), "triton").why_not_here(
        "cuda"
    ):
        pytest.skip(why)
    assert command.profile(CASE, "cpu", 80) == ExitCode.CLEAN
    text = capsys.readouterr().out
    assert (
        "this is what the compiler made of it for sm_80, not yet run"
        in text.replace("\n  ", " ")
    )
    assert (
        "Hot loop: " in text
        and "← tensor core" in text
        and "← global load, 16 B" in text
    )


@pytest.mark.commands
@pytest.mark.parametrize(
    "case, words",
    [
        ("", "say which case: batchline profile "),
        ("bmm/triton_tiled", "no case 'bmm/triton_tiled'"),
        ("bmm/gone/square_256/float16/B4", "no case"),
        ("bmm/triton_tiled/gone/float16/B4", "no case"),
        (
            "bmm/triton_tiled/digits_forward/float8_e4m3fn/B4",
            "digits_forward is not defined in float8_e4m3fn",
        ),
    ],
)
def test_what_is_no_case(case, words):
    with pytest.raises(UsageError, match=words):
        command.profile(case, "cpu", 90)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(
        UsageError, match="sm_70 is none of sm_80, sm_86, sm_89, sm_90, sm_100, sm_120"
    ):
        command.profile(CASE, "cpu", 70)


@pytest.mark.commands
def test_what_runs_on_the_cpu_has_no_machine_code_here(capsys):
    assert (
        command.profile("bmm/torch_bmm/square_256/float32/B4", "cpu", 90)
        == ExitCode.NOT_MEASURED
    )
    said = capsys.readouterr().err.replace("\n  ", " ")
    assert (
        "torch is not a GPU compiler" in said
        and "batchline explain bmm/torch_bmm" in said
    )


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine that has a GPU, and only the programs that the test makes."""
    monkeypatch.setattr(environment, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr(Declared, "why_not_here", lambda self, device, dtype=None: None)
    monkeypatch.setenv("PATH", str(tmp_path))

    def ncu(body):
        path = tmp_path / "ncu"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return ncu


@pytest.mark.commands
def test_ncu_is_given_the_case(gpu, capsys):
    gpu('for word in "$@"; do echo "$word"; done')
    assert command.profile(CASE, "auto", 90) == ExitCode.CLEAN
    assert (
        capsys.readouterr().out.split()[-4:]
        == [
            command.sys.executable,
            "-m",
            "batchline.bench.measure.worker.one_call",
            CASE,
        ][-4:]
    )


@pytest.mark.commands
@pytest.mark.parametrize(
    "body, why",
    [
        (
            "echo '==ERROR== ERR_NVGPUCTRPERM - no permission'; exit 1",
            "ncu may not read the counters",
        ),
        ("echo 'broken' >&2; exit 3", "ncu failed: broken"),
        (None, "ncu is not in the PATH"),
    ],
)
def test_where_ncu_can_not_proton_does(gpu, monkeypatch, capsys, body, why):
    if body:
        gpu(body)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: True)
    run = subprocess.run

    def by_proton(arguments, **how):
        if arguments[0] == "ncu":
            return run(arguments, **how)
        command.Path(arguments[-1]).with_suffix(".hatchet").write_text(
            command.json.dumps(PROFILE)
        )
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(command.subprocess, "run", by_proton)
    assert command.profile(CASE, "auto", 90) == ExitCode.CLEAN
    told = capsys.readouterr()
    assert (
        why in told.err.replace("\n  ", " ")
        and "_product" in told.out
        and "80%" in told.out
    )


@pytest.mark.commands
def test_where_neither_can_it_says_both(gpu, monkeypatch, capsys):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.profile(CASE, "auto", 90) == ExitCode.NOT_MEASURED
    assert (
        "ncu is not in the PATH, and Triton's proton is not installed"
        in capsys.readouterr().err
    )


@pytest.mark.commands
def test_a_proton_that_fails_is_a_failure(gpu, monkeypatch, capsys):
    monkeypatch.setattr(
        command, "_ONE_CALL", ("/bin/sh", "-c", "echo 'no context' >&2; exit 4")
    )
    assert (
        os.path.exists("/bin/sh")
        and command.profile(CASE, "auto", 90) == ExitCode.FAULT
    )
    assert "proton failed: no context" in capsys.readouterr().err
