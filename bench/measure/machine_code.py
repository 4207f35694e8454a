"""A variant's kernels as machine code for one problem, compiled without a GPU: their
facts, and their instructions.
"""

from __future__ import annotations

from batchline.bench.measure import codegen, sass, static_facts
from batchline.bench.measure.codegen import Compiled
from batchline.bench.measure.hot_loop import Instruction, instructions
from batchline.bench.measure.static_facts import never_written
from batchline.bench.case_ids import parse_case_id
from batchline.kernels.op import Variant
from batchline.kernels.target import compiling_for


def code_of_case(
    case: str, architecture: int
) -> list[tuple[Compiled, list[Instruction]]]:
    """As `machine_code`, of a case by its id: for a process that may import the
    variant's file.
    """
    parts = parse_case_id(case)
    variant = static_facts.variant_of(f"{parts['op']}/{parts['variant']}")
    return machine_code(
        variant, parts["scenario"], parts["dtype"], parts["batch"], architecture
    )


def machine_code(
    variant: Variant, scenario: str, dtype: str, batch: int, architecture: int
) -> list[tuple[Compiled, list[Instruction]]]:
    """Each kernel that the variant launches on the problem.

    Raises:
        ValueError: if it is no GPU kernel, or its compiler is not installed, or it does
        not take the problem. RuntimeError: if it launched nothing. What the compiler
        raises passes through.
    """
    if why := codegen.why_cannot_compile(variant.backend):
        raise ValueError(f"{variant.id} has no GPU code here: {why}")
    shapes = variant.op.make_inputs(scenario, batch, dtype, "meta")
    with compiling_for(architecture):
        why = variant.why_unsupported(*shapes)
    if why:
        raise ValueError(f"{variant.id} does not take this problem: {why}")
    launches = codegen.launches_of(variant, never_written(shapes), architecture)
    return [
        (compiled, instructions(sass.listing(launch.cubin, architecture)))
        for compiled, launch in zip(codegen.read(launches), launches)
    ]
