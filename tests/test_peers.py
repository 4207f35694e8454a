"""Peers: other libraries' ways beside ours. They may give less or be absent, and
nothing of ours waits for them.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from batchline.bench.measure.checking.check import check_variant
from batchline.bench.measure.compiled import compiler
from batchline.bench.report.findings import Findings
from batchline.bench.report.sections import ladder
from batchline.bench.statuses import NotMeasured
from batchline.kernels import backends
from batchline.kernels.op import Variant
from batchline.kernels.wgrad_stats import wgrad_stats
from tests.documents import in_markdown
from tests.runs import run_of

REPOSITORY = Path(__file__).resolve().parents[1]
PEERS = {
    variant.backend: variant
    for variant in wgrad_stats.variants.values()
    if variant.backend in backends.PEERS
}


def test_both_are_there_whether_or_not_they_can_be_imported():
    assert set(PEERS) == set(backends.PEERS)
    assert all(variant.gives == 2 and variant.tolerance for variant in PEERS.values())
    assert not [name for name in PEERS if compiler.why_cannot_compile(name) is None]


@pytest.mark.parametrize("name", backends.PEERS)
def test_a_peer_that_is_absent_says_so(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    assert PEERS[name].why_not_here("cpu").startswith(f"{name} can't be imported (")


@pytest.mark.parametrize("name", backends.PEERS)
def test_a_peer_declines_what_it_would_round(name):
    inputs = wgrad_stats.make_inputs("linear_512_T16", 2, "bfloat16", "meta")
    assert "bfloat16 is not among its dtypes" in PEERS[name].why_unsupported(*inputs)


@pytest.mark.commands
def test_finding_the_variants_imports_no_peer():
    program = (
        "import sys; from batchline import kernels; [op.variants for op in kernels.ops.values()]; "
        f"sys.exit(any(name in sys.modules for name in {backends.PEERS!r}))"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0
    )


def _first_two(x, dy):
    return wgrad_stats(x, dy)[:2]


def _second_wrong(x, dy):
    mean, n, _ = wgrad_stats(x, dy)
    return mean, n * 1.01


def _check(function, gives):
    check_variant(
        Variant(wgrad_stats, function, "torch", gives=gives),
        torch.float32,
        "cpu",
        ["ragged", "empty_batch"],
    )


def test_a_variant_is_held_to_the_outputs_that_it_gives():
    _check(_first_two, gives=2)
    with pytest.raises(NotMeasured, match="returned tuple, not 3 tensor"):
        _check(_first_two, gives=None)
    with pytest.raises(NotMeasured, match="returned tuple, not 2 tensor"):
        _check(wgrad_stats, gives=2)
    with pytest.raises(NotMeasured, match="3 of 3 elements are wrong"):
        _check(_second_wrong, gives=2)


def test_the_ladder_says_what_is_not_given():
    facts = {
        "idea": "an idea",
        "backend": "x",
        "builds_on": None,
        "own_tolerance": False,
    }
    run = run_of(
        {
            "variants": {
                "wgrad_stats/all": facts,
                "wgrad_stats/some": facts | {"gives": 2},
            },
            "signatures": {"wgrad_stats": wgrad_stats.signature},
            "compiled": [],
        },
        {},
        (),
    )
    table = in_markdown(ladder.rungs(run, Findings(run), "wgrad_stats", compiled=False))
    assert "| an idea (gives ḡ, n only) |" in table and table.count("only") == 1


def test_what_is_measured_is_pinned():
    lines = (REPOSITORY / "requirements-peers.txt").read_text().splitlines()
    pinned = [line.partition("==")[0] for line in lines if not line.startswith("#")]
    assert {"opacus", "backpack-for-pytorch"} <= set(pinned)
