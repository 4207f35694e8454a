"""An op that is added is a folder of its own: everything else is as it was."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from batchline.bench.statuses import MEASURED
from batchline.bench.store import run_json
from tests.trees import copy_sources

pytestmark = pytest.mark.commands

OP = '''
    """Scaled rows: x[B,N], w[N] → y[B,N] in x's dtype, s[B] = Σ_n y_bn in fp32."""

    import torch

    from batchline.kernels.draw import Draw
    from batchline.kernels.elements import subnormal_step, unit_roundoff
    from batchline.kernels.op import (
        Audit, Calls, Control, Op, Problems, Reference, Scenario, Work
    )
    from batchline.kernels.statistics import accumulator


    def drawn(batch, n):
        def make(dtype, device, seed):
            draw = Draw(dtype, device, seed)
            return draw.uniform(batch, n), draw.uniform(n)

        return make


    def inputs(scenario, batch, dtype, device, seed):
        return drawn(batch, scenario.sizes["N"])(dtype, device, seed)


    def reference(x, w):
        y = x.double() * w.double()
        return y, y.sum(1)


    def tolerance(expected, x, w):
        y, _ = expected
        terms = x.shape[1] + 2
        off = unit_roundoff(x.dtype) * y.abs() + subnormal_step(x.dtype)
        return off, terms * unit_roundoff(torch.float32) * y.abs().sum(1)


    def in_own_dtype(x, w):
        y = x * w
        return y, y.sum(1)


    scaled_rows = Op(
        __name__,
        signature="x[B,N], w[N] → y[B,N], s[B]",
        problems=Problems(
            (Scenario("short", "rows of 96", {"N": 96}),),
            inputs,
            {"ragged": drawn(7, 61), "empty_batch": drawn(0, 9)},
            example=("short", 16),
            shared=(1,),
        ),
        reference=Reference(
            reference,
            tolerance,
            dtypes=lambda x, w: (x.dtype, accumulator(x.dtype)),
            rows=(0, 1),
        ),
        work=Work(
            flops=lambda x, w: 2 * x.numel(),
            least_bytes=lambda x, w: 2 * x.nbytes + w.nbytes + 4 * len(x),
        ),
        calls=Calls("torch_two_passes"),
        audit=Audit(
            {"well": drawn(16, 256)},
            names=("y", "s"),
            controls=(Control(in_own_dtype, dtypes=("bfloat16",)),),
        ),
    )
'''
VARIANT = '''
    """A product and a sum by PyTorch, {idea}."""

    from batchline.kernels.scaled_rows import scaled_rows
    from batchline.kernels.statistics import accumulator


    @scaled_rows.variant(backend="torch"{declares})
    def {name}(x, w):
        wide = accumulator(x.dtype)
        y = x.to(wide) * w.to(wide)
        return y.to(x.dtype), y.sum(1).to({dtype})
'''
CHECKS = """
    import json, torch
    from batchline import kernels
    from batchline.bench.measure.checking import audit, check, steadiness
    from batchline.bench.statuses import NotMeasured

    op, said = kernels.ops["scaled_rows"], {}
    for variant in op.variants.values():
        try:
            said[variant.name] = check.check_variant(variant, torch.float16, "cpu")
        except NotMeasured as refusal:
            said[variant.name] = str(refusal)
    variant = op.variants[op.baseline]
    rows = [
        *audit.audit(variant, "bfloat16", "cpu"),
        *audit.audit(audit.controls(op.name)["in_own_dtype"], "bfloat16", "cpu"),
    ]
    found = steadiness.compare_batches(variant, "short", "float16", (1, 3, 16), "cpu")
    print(json.dumps([said, rows, found]))
"""


def _command(tree, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The sources with one op more, of which one variant gives a wrong dtype."""
    root = copy_sources(tmp_path_factory.mktemp("added"), measures_ceilings=False)
    folder = root / "kernels" / "scaled_rows"
    folder.mkdir()
    (folder / "__init__.py").write_text(textwrap.dedent(OP).lstrip())
    for name, idea, declares, dtype in (
        ("torch_two_passes", "in fp32", "", "wide"),
        ("torch_narrow", "its sum narrow", ', builds_on="torch_two_passes"', "x.dtype"),
    ):
        text = VARIANT.format(name=name, idea=idea, declares=declares, dtype=dtype)
        (folder / f"{name}.py").write_text(textwrap.dedent(text).lstrip())
    return root


def test_each_output_has_its_own_dtype_and_the_op_its_own_errors(tree):
    done = _command(tree, "-c", textwrap.dedent(CHECKS))
    assert done.returncode == 0, done.stderr
    said, (ours, control), invariant = json.loads(done.stdout)
    assert said["torch_two_passes"] == said["dispatched"] == 1
    assert (
        "the result is torch.float16 on cpu, not torch.float32" in said["torch_narrow"]
    )
    assert ours["whose"] == "ours" and control["whose"] == "control"
    assert max(ours["y"], ours["s"]) < 1e-2 and ours["s"] < control["s"]
    assert invariant["rows"] is True and invariant["failed"] is None


@pytest.mark.slow
def test_it_is_measured_audited_and_reported(tree, tmp_path):
    done = _command(
        tree,
        *("-m", "batchline", "run", "-k", "scaled_rows", "--profile", "smoke"),
        *("--device", "cpu", "--out", tmp_path / "runs", "--history", tmp_path / "h"),
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    run = run_json.load(folder)
    timed = {record.variant for record in run.records if record.status == MEASURED}
    assert timed == {"torch_two_passes", "torch_narrow"}  # in fp32 both are right
    text = (folder / "README.md").read_text()
    assert "scaled_rows" in text and "in_own_dtype · bfloat16" in text
