"""One GPU variant, called once on one small probe and held against fp64: what
compute-sanitizer watches.

`python -m batchline.bench.measure.worker.probe_once OP/VARIANT` ends with 0 where it is right,
1 where it is wrong or raises, and NO_PROBE where it takes none.
"""

from __future__ import annotations

import sys

import torch

from batchline import kernels
from batchline.bench import texts
from batchline.bench.measure.checking import check
from batchline.bench.statuses import NotMeasured
from batchline.kernels.op import Variant

NO_PROBE = 3
PREFERRED = "ragged"  # several blocks, and edges that are masked
_ALL_DTYPES = ("float16", "float32", "bfloat16")


def chosen(variant: Variant) -> tuple[str, torch.dtype] | None:
    """The probe, and the dtype, or None: PREFERRED where the variant takes it, else of
    those that it takes the one with the fewest FLOPs.
    """
    for dtype in (getattr(torch, name) for name in variant.dtypes or _ALL_DTYPES):
        flops = {}
        for name, make in variant.op.probes.items():
            inputs = make(dtype, "meta", 0)
            if (
                all(tensor.numel() for tensor in inputs)
                and variant.why_unsupported(*inputs) is None
            ):
                flops[name] = variant.op.flops(*inputs)
        if flops:
            return (
                PREFERRED if PREFERRED in flops else min(flops, key=flops.__getitem__)
            ), dtype
    return None


def main(variant_id: str) -> int:
    op, _, name = variant_id.partition("/")
    variant = kernels.ops[op].variants[name]
    probe = chosen(variant)
    if probe is None:
        print("it takes no probe")
        return NO_PROBE
    probe_name, dtype = probe
    inputs = variant.op.probes[probe_name](dtype, "cuda", 0)
    expected = check.expect(variant.op, inputs)
    try:
        check.checked_call(
            variant,
            inputs,
            expected,
            f"on {probe_name} in {str(dtype).removeprefix('torch.')}",
        )
        torch.cuda.synchronize()
    except NotMeasured as wrong:
        print(texts.clean_line(wrong))
        return 1
    except (
        Exception
    ) as error:  # whatever the variant, the compiler or the driver raised
        print(texts.error_line(error))
        return 1
    print(f"right on {probe_name} in {str(dtype).removeprefix('torch.')}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
