"""The files that `batchline new` writes: an op that is right as it is, and variants."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from types import MappingProxyType

TEMPLATE_SIGNATURE = "x[B,P], s[B] → y[B,P]"  # of the op below
BASELINE = "torch_broadcast"

OP = '''"""Rows scaled: x[B,P], s[B] → y[B,P] = s_b·x_b. Write your own op's definition instead."""

from batchline.kernels.draw import Draw, with_infinities, with_nan
from batchline.kernels.elements import distinct_bytes, subnormal_step, unit_roundoff
from batchline.kernels.op import Calls, Op, Problems, Reference, Scenario, Work


def inputs(scenario, batch, dtype, device, seed):
    """The inputs of a scenario at a batch size."""
    draw = Draw(dtype, device, seed)
    return draw.normal(batch, scenario.sizes["P"]), draw.uniform(batch)


def tolerance(y, x, s):
    """The largest error of correct arithmetic: one rounding of the product to x's
    dtype. Derive yours from the arithmetic; never tune it until a kernel passes.
    """
    return 1.01 * unit_roundoff(x.dtype) * y.abs() + subnormal_step(x.dtype)


def probe(batch, parameters, change=lambda x: x):
    """Inputs that every variant is checked on before it is timed."""

    def make(dtype, device, seed):
        draw = Draw(dtype, device, seed)
        return change(draw.uniform(batch, parameters)), draw.uniform(batch)

    return make


PROBES = {
    "ragged": probe(7, 261),
    "sliced": probe(8, 90, lambda x: x[:, 3:77]),
    "nan": probe(9, 131, with_nan),
    "infinite": probe(9, 131, with_infinities),
    "empty": probe(0, 9),
}
SCENARIOS = (Scenario("linear_64", "one 64x64 linear layer", {"P": 4096}),)

{op} = Op(
    __name__,
    signature="{signature}",
    problems=Problems(SCENARIOS, inputs, PROBES, example=("linear_64", 64)),
    reference=Reference(lambda x, s: x.double() * s.double()[:, None], tolerance),
    work=Work(
        flops=lambda x, s: x.numel(),
        least_bytes=lambda x, s: 2 * distinct_bytes(x) + distinct_bytes(s),
    ),
    calls=Calls("{baseline}"),
)
'''

TORCH_BASELINE = '''"""One product that broadcasts the scales over the parameters (the baseline)."""

from . import {op}


@{op}.variant(backend="torch")
def {baseline}(x, s):
    return x * s[:, None]
'''

ANY = '''"""The same as {baseline}: write here what your idea is, in a line."""

from . import {op}
from .{baseline} import {baseline}


# A kernel of your own declares backend="triton", "numba_cuda" or "numba_cpu", what it
# `needs` ("cuda" or "cpu"), and imports its compiler from batchline.kernels.backends.
@{op}.variant(backend="torch", builds_on="{baseline}"{declares})
def {variant}({parameters}):
    return {baseline}({parameters})
'''

TRITON = '''"""One program for a block of {block} of a row's parameters: one read of x, one write of y."""

import torch

from batchline.kernels.backends import tl, triton

from . import {op}

BLOCK = {block}


@triton.jit
def _kernel(x_ptr, s_ptr, y_ptr, parameters, stride_xb, stride_xp, stride_s, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offs < parameters
    x = tl.load(x_ptr + row * stride_xb + offs * stride_xp, mask=inside)
    s = tl.load(s_ptr + row * stride_s)
    tl.store(y_ptr + row * parameters + offs, x * s, mask=inside)


@{op}.variant(
    backend="triton",
    dtypes=("float32", "float16", "bfloat16"),
    needs="cuda",
    builds_on="{baseline}",
)
def {variant}(x, s):
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, parameters = x.shape
    if y.numel():
        grid = rows, triton.cdiv(parameters, BLOCK)
        _kernel[grid](x, s, y, parameters, *x.stride(), *s.stride(), BLOCK)
    return y
'''

NUMBA_CPU = '''"""A loop over rows and parameters, compiled by Numba, on one thread."""

import torch

from batchline.kernels._cpu.jit import njit

from . import {op}


@njit()
def _kernel(x, s, y):
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            y[row, column] = x[row, column] * s[row]


@{op}.variant(
    backend="numba_cpu",
    dtypes=("float32", "float64"),
    needs="cpu",
    builds_on="{baseline}",
)
def {variant}(x, s):
    y = torch.empty(x.shape, dtype=x.dtype)
    _kernel(x.detach().numpy(), s.detach().numpy(), y.numpy())
    return y
'''

# Of the op above, by what a variant's name begins with.
_OF_TEMPLATE = (("triton_", TRITON), ("numba_cpu_", NUMBA_CPU))
# A text filled with them is Python.
_ANY_NAMES = MappingProxyType(
    {
        "op": "_op",
        "variant": "_variant",
        "baseline": BASELINE,
        "signature": TEMPLATE_SIGNATURE,
        "block": "1024",
    }
)


def op_files(op: str) -> dict[str, str]:
    """The text of each file of a new op, by name."""
    names = {"op": op, "baseline": BASELINE}
    return {
        "__init__.py": _filled(OP, names | {"signature": TEMPLATE_SIGNATURE}),
        f"{BASELINE}.py": _filled(TORCH_BASELINE, names),
    }


def variant_file(
    op: str,
    variant: str,
    signature: str,
    baseline: str,
    parameters: str,
    declares: str,
) -> str:
    """The text of a new variant's file: a kernel where the op is still as `op_files`
    has it, else what calls the baseline.
    """
    names = {"op": op, "variant": variant, "baseline": baseline, "block": "1024"}
    if signature == TEMPLATE_SIGNATURE:
        for prefix, text in _OF_TEMPLATE:
            if variant.startswith(prefix):
                return _filled(text, names)
    return _filled(ANY, names | {"parameters": parameters, "declares": declares})


def names_in_use() -> frozenset[str]:
    """The names that the files of the op above import or define: no op can have one."""
    names = set()
    for text in (OP, TORCH_BASELINE, TRITON, NUMBA_CPU):
        for node in ast.parse(_filled(text, _ANY_NAMES)).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Assign):
                names |= {target.id for target in node.targets}
    return frozenset(names - {_ANY_NAMES["op"], _ANY_NAMES["variant"]})


def _filled(text: str, names: Mapping[str, str]) -> str:
    """The text with each {name} replaced; other braces stay."""
    for name, value in names.items():
        text = text.replace(f"{{{name}}}", value)
    return text
