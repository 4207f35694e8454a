"""Peers: other libraries' ways beside ours. They may give less or be absent, and
nothing of ours waits for them.
"""

import configparser
import email
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from batchline.bench import cases
from batchline.bench.declared import Declared
from batchline.bench.measure.checking.check import check_variant
from batchline.bench.measure.compiled import compiler
from batchline.bench.measure.machine import environment
from batchline.bench.report.findings import Findings
from batchline.bench.report.sections import ladder
from batchline.bench.statuses import MEASURED, NotMeasured
from batchline.bench.store.records import Record
from batchline.bench.verdicts import ranking
from batchline.kernels import backends
from batchline.kernels.bmm import bmm, tilelang_gemm
from batchline.kernels.dispatch import is_candidate
from batchline.kernels.op import Variant
from batchline.kernels.wgrad_stats import wgrad_stats
from tests.documents import in_markdown
from tests.runs import run_of
from tests.test_ranking import measured

REPOSITORY = Path(__file__).resolve().parents[1]
PEERS = {
    variant.backend: variant
    for op in (bmm, wgrad_stats)
    for variant in op.variants.values()
    if variant.backend in backends.PEERS
}
OF_PRODUCTS = ("helion", "tilelang")


def test_all_are_there_whether_or_not_they_can_be_imported():
    assert set(PEERS) == set(backends.PEERS)
    of_statistics = [PEERS[name] for name in ("opacus", "backpack")]
    assert all(variant.gives == 2 and variant.tolerance for variant in of_statistics)
    of_products = [PEERS[name] for name in OF_PRODUCTS]
    assert not any(variant.gives or variant.tolerance for variant in of_products)
    assert not [name for name in PEERS if compiler.why_cannot_compile(name) is None]


@pytest.mark.parametrize("name", backends.PEERS)
def test_a_peer_that_is_absent_says_so(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    assert PEERS[name].why_not_here("cpu").startswith(f"{name} can't be imported (")


@pytest.mark.parametrize("name", OF_PRODUCTS)
def test_a_peer_of_kernels_needs_a_gpu_where_its_library_is_there(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: object())
    assert PEERS[name].why_not_here("cpu") == "needs CUDA"


@pytest.mark.parametrize("backend, is_peer", [("opacus", True), ("torch", False)])
def test_a_peer_is_measured_and_never_ranked(backend, is_peer, monkeypatch):
    def fast(a, b):
        return torch.bmm(a, b)

    monkeypatch.setattr(backends, "why_absent", lambda backend: None)
    module = SimpleNamespace(
        __name__="theirs.fast", OP=bmm, fast=fast, DECLARES={"backend": backend}
    )
    _, outcome = measured(monkeypatch, module, batch=1)
    assert outcome.status == MEASURED, outcome.reason
    facts = outcome.facts
    assert facts["is_peer"] is is_peer
    timed = Record("bmm", "fast", "tiny_16", "float32", 1, MEASURED, facts=facts)
    assert ranking.may_be_chosen(timed) is not is_peer
    assert (ranking.why_unranked(timed) or "").startswith("a peer") is is_peer


@pytest.mark.parametrize("name", backends.PEERS)
def test_an_ops_own_call_never_goes_to_a_peer(name):
    assert not is_candidate(PEERS[name])


@pytest.mark.parametrize(
    "fields, named",
    [
        (["License-Expression: MIT", "License: other"], "MIT"),
        (["License: Apache-2.0"], "Apache-2.0"),
        (["License: Copyright\n Neither the name of"], "BSD-3-Clause"),
        (["Classifier: License :: OSI Approved :: MIT License"], "MIT License"),
        (["License: a text of more than four words"], "licence not named"),
    ],
)
def test_the_row_of_a_peer_names_its_version_and_its_licence(
    fields, named, monkeypatch
):
    text = "\n".join(["Name: helion", "Version: 1.5.1", *fields, "", ""])
    read = email.message_from_string(text)
    monkeypatch.setattr(importlib.metadata, "metadata", lambda package: read)
    peers = environment.machine("cpu")["peers"]
    assert peers["helion"] == f"helion 1.5.1, {named}"
    assert set(peers) == set(backends.PEERS)


def test_a_peer_that_is_not_installed_is_named_so(monkeypatch):
    def absent(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "metadata", absent)
    peers = environment.machine("cpu")["peers"]
    assert peers["tilelang"] == "tilelang, not installed"


@pytest.mark.parametrize("name", ["opacus", "backpack"])
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
        {"peers": {"x": "library 1.2, MIT"}},
        (),
    )
    table = in_markdown(ladder.rungs(run, Findings(run), "wgrad_stats", compiled=False))
    assert table.count("(library 1.2, MIT)") == 2
    assert (
        "| an idea (gives ḡ, n only) (library 1.2, MIT) |" in table
        and table.count("only") == 1
    )


def _numbers(version):
    return [int(part) for part in version.split(".")]


def test_what_is_measured_is_pinned_and_the_extra_is_in_step():
    lines = (REPOSITORY / "requirements-peers.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg")
    extra = settings["options.extras_require"]["peers"].split("\n")[1:]
    least = dict(line.partition(" ;")[0].split(" >=") for line in extra)
    assert set(least) == set(backends.PEERS.values()) <= set(pinned)
    assert all(_numbers(pinned[name]) >= _numbers(least[name]) for name in least)
    assert not {"torch", "triton", "numpy", "nvidia-cutlass-dsl"} & set(pinned)


def test_a_tilelang_product_declines_what_its_copies_can_not_read():
    variant, dtype = PEERS["tilelang"], torch.float16
    a, b = (torch.zeros(2, 16, 16, dtype=dtype) for _ in range(2))
    assert variant.why_unsupported(a, b) is None
    assert variant.why_unsupported(a.mT, b.mT) is None
    assert variant.why_unsupported(a, b[:1].expand(2, -1, -1)) is None
    wide = torch.zeros(2, 16, 32, dtype=dtype)
    assert "B is not dense" in variant.why_unsupported(a, wide[:, :, :16])
    shifted = torch.zeros(2 * 256 + 1, dtype=dtype)[1:].view(2, 16, 16)
    assert "A does not start" in variant.why_unsupported(shifted, b)
    assert "float32" in variant.why_unsupported(a.float(), b.float())


def test_a_helion_product_declines_what_helion_can_not_compile():
    a, b = torch.zeros(2, 1, 16), torch.zeros(2, 16, 1)
    assert "one row and one column" in PEERS["helion"].why_unsupported(a, b)
    assert PEERS["helion"].why_unsupported(a, b.expand(-1, -1, 2)) is None


def test_tilelang_leaves_the_paths_of_the_process_as_they_were(monkeypatch):
    def imported(problem, architecture):
        sys.path.append("theirs")
        os.environ["PYTHONPATH"] = "theirs"
        return lambda a, b, c: c.zero_()

    fake = SimpleNamespace(Problem=SimpleNamespace, compile_product=imported)
    name = "batchline.kernels.bmm._tilelang_product"
    monkeypatch.setitem(sys.modules, name, fake)
    for cached in ("_language", "_compiled"):
        uncached = getattr(tilelang_gemm, cached).__wrapped__
        monkeypatch.setattr(tilelang_gemm, cached, uncached)
    monkeypatch.setenv("PYTHONPATH", "ours")
    path = list(sys.path)
    inputs = (torch.zeros(1, 16, 16, dtype=torch.float16) for _ in range(2))
    PEERS["tilelang"](*inputs)
    assert sys.path == path and os.environ["PYTHONPATH"] == "ours"


@pytest.mark.parametrize("name", OF_PRODUCTS)
def test_the_stand_in_is_no_device_of_a_peer(name, monkeypatch):
    monkeypatch.setattr(cases.stand_in, "is_on", lambda: True)
    peer = Declared("bmm", "peer", REPOSITORY, backend=name, needs="cuda")
    monkeypatch.setattr(Declared, "why_not_here", lambda *asked: None)
    _, why = cases._not_here(peer, cases.PROFILES["full"], "cuda", "float16")
    assert why == f"stand-in: {name} asks CUDA itself, past torch.cuda"
