"""The library's products that need CUDA, on the stand-in: right, captured, and refused
as CUDA refuses them.
"""

import math

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.checking import check
from batchline.bench.measure.timing import clocks
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker.runner import Runner
from batchline.bench.measure.worker.task import Task
from batchline.bench.statuses import MEASURED
from tests.on_tensor_cores import ON_TENSOR_CORES


@pytest.mark.parametrize("op, name, dtype", ON_TENSOR_CORES)
def test_the_librarys_ways_on_tensor_cores_are_right_and_can_be_captured(
    op, name, dtype
):
    variant = kernels.ops[op].variants[name]
    probes = {
        "bmm": ["ragged", "aligned_nt", "empty_batch", "one_element"],
        "wgrad_stats": ["ragged", "one_token", "sliced"],
    }[op]
    assert check.check_variant(variant, getattr(torch, dtype), "cuda", probes) >= 1
    inputs = variant.op.probes[probes[1]](getattr(torch, dtype), "cuda", 0)
    given = []
    replay = clocks.hardware("cuda").capture(
        lambda: given.append(check.as_tuple(variant(*inputs))), 1
    )
    for _ in range(2):  # what is added to a product is added once each time
        replay()
        torch.cuda.synchronize()
        check.check_outputs(
            given[-1],
            inputs,
            check.held_to(variant, inputs, check.expect(variant.op, inputs)),
            name,
        )


@pytest.mark.parametrize(
    "name", ["triton_persistent_tma", "gluon_ping_pong", "gluon_cluster"]
)
def test_kernels_are_given_descriptors(name):
    """Triton's own, and Gluon's, which have a layout."""
    variant = kernels.ops["bmm"].variants[name]
    assert check.check_variant(variant, torch.float16, "cuda", ["aligned_nt"]) == 1


def test_fp8_on_a_real_problem_goes_the_whole_way():
    """No scenario that the grouped product takes is as small as what `batchline run` takes
    here.
    """
    names = ("torch_upcast", "torch_scaled_mm", "torch_scaled_grouped_mm")
    effort = Effort(precision=0.5, seconds=0.01, least=2)
    outcomes = Runner("cuda").measure(
        Task(
            "bmm",
            "attention_scores",
            "float8_e4m3fn",
            1,
            tuple(zip(names, names)),
            ("device_cold",),
            effort,
            effort,
            warm_up_s=0.001,
            probes=False,
        )
    )
    for name in names:
        assert outcomes[name].status == MEASURED, outcomes[name].reason
        assert all(
            "median_s" in clock for clock in outcomes[name].facts["clocks"].values()
        ), name


def fp8(*shape, offset=0):
    flat = torch.ones(math.prod(shape) + offset, device="cuda").to(torch.float8_e4m3fn)
    return flat[offset:].view(shape)


@pytest.mark.parametrize(
    "a, b, refused",
    [
        (
            lambda: fp8(2, 8, 32),
            lambda: fp8(2, 32, 16),
            "Expected mat2 to be transposed",
        ),
        (
            lambda: fp8(2, 32, 16).mT,
            lambda: fp8(2, 16, 32).mT,
            "Expected mat1 to not be transposed",
        ),
        (lambda: fp8(2, 8, 24), lambda: fp8(2, 16, 24).mT, "multiple of 16 bytes"),
        (lambda: fp8(2, 8, 32), lambda: fp8(2, 8, 32).mT, "divisible by 16"),
        (
            lambda: fp8(2, 8, 32, offset=4),
            lambda: fp8(2, 16, 32).mT,
            "aligned to 16 bytes",
        ),
        (
            lambda: fp8(1024, 1, 16),
            lambda: fp8(1024, 16, 16).mT,
            "more than 1024 groups",
        ),
    ],
)
def test_a_grouped_product_refuses_what_cuda_refuses_and_the_variant_declines_it_first(
    a, b, refused
):
    from batchline.kernels.bmm.torch_scaled_grouped_mm import torch_scaled_grouped_mm

    operands = a(), b()
    assert (
        kernels.ops["bmm"]
        .variants["torch_scaled_grouped_mm"]
        .why_unsupported(*operands)
    )
    with pytest.raises((RuntimeError, ValueError), match=refused):
        torch_scaled_grouped_mm(*operands)
