"""What holds for every batched product, on drawn problems: wherever a variant can run,
as in test_variants.py.

It is right inside its tolerance, exactly right on integers, leaves NaN where it was,
gives the same bits when it is called again, and 2ᵏ times the result for 2ᵏ times A;
under every configuration that it would be timed with.
"""

import contextlib
import importlib
import zlib
from dataclasses import dataclass, field, replace

import numpy
import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st

from batchline.bench.measure.checking.check import checked_call, expect
from batchline.bench.statuses import WRONG, NotMeasured
from batchline.kernels.backends import DISPATCH
from batchline.kernels.bmm import bmm
from batchline.kernels.elements import dtype_name, unit_roundoff
from batchline.kernels.op import FP8, Variant
from batchline.kernels.tuning import Tunable
from tests import problems
from tests.problems import EDGES, MANY, MODERATE, Problem, scale
from tests.test_check import WRONG_KERNELS
from tests.test_variants import DEVICES, DTYPES, INTERPRETED, _takes

SETTINGS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
LEAST_TAKEN = 0.25  # of the examples, or the variant went unchecked


@dataclass(frozen=True)
class Reach:
    """How many examples are walked in seconds, and of what size."""

    examples: int
    most: dict
    explicit: tuple[Problem, ...] = EDGES


NATIVE = Reach(
    25, {"most_flops": 4e6}, (*EDGES, Problem(MANY, 2, 3, 5, "stepped", "columns"))
)
REACHES = {
    "cuda": Reach(
        30,
        {
            "most_flops": 4e9,
            "sizes": (*problems.SIZES, 127, 128, 129, 256, 300, 511, 600),
            "depths": (1027, 2048, 8200),
            "batches": (2, 1, 3, 5, 100, MANY),
        },
        NATIVE.explicit,
    ),
    # A simulated block is a Python thread for each of its threads: up to a second.
    "numba_cuda": Reach(
        2,
        {
            "most_flops": 2e4,
            "most_results": 70,
            "sizes": (17, 5, 16, 1, 33, 3),
            "depths": (40,),
            "batches": (2, 1),
        },
        (
            Problem(0, 3, 4, 5),
            Problem(1, 1, 2, 0),
            Problem(2, 3, 17, 5, "stepped", "window", "nan"),
            Problem(2, 5, 3, 17, "columns", "shared_columns", "integers"),
            Problem(2, 1, 3, 16, "columns"),
        ),
    ),
    "triton": Reach(12, {"most_flops": 1e6}),
    "numba_cpu": NATIVE,
    "torch": NATIVE,
}


def reach_of(variant, dtype, device):
    """How far a variant is walked. What is about indices and layouts is the same in
    each dtype: float32 has all that is drawn, the others a third, and every edge.
    """
    if device == "cuda":
        return REACHES["cuda"]
    whole = REACHES[variant.backend]
    if dtype == "float32":
        return whole
    return replace(whole, examples=-(-whole.examples // 3))


@dataclass
class Tally:
    """What became of the examples: how many were checked, and why the others were
    declined.
    """

    taken: int = 0
    declined: list[str] = field(default_factory=list)


def walk(variant, dtype, device, reach, phases=tuple(Phase)):
    """Check the properties on the drawn problems and the explicit ones.

    Raises:
        NotMeasured: WRONG, on the smallest problem that was found.
    """
    tally = Tally()

    @seed(zlib.crc32(f"{variant.id}-{dtype}".encode()))
    @settings(SETTINGS, max_examples=reach.examples, phases=phases)
    @given(problem=problems.problems(**reach.most), candidate=st.integers(0, 15))
    def holds(problem, candidate):
        check(variant, problem, getattr(torch, dtype), device, candidate, tally)

    for problem in reversed(reach.explicit):
        holds = example(problem=problem, candidate=0)(holds)
    holds()
    return tally


def check(variant, problem, dtype, device, candidate, tally):
    for kin in problem.kin():
        a, b = kin.inputs(dtype, device)
        declined = variant.why_unsupported(a, b)
        if declined is None:
            tally.taken += 1
            with configured(variant, (a, b), candidate):
                return _check(variant, kin, a, b)
        assert (
            isinstance(declined, str) and len(declined) > 10
        ), f"{declined!r} is no reason"
    tally.declined.append(declined)


@contextlib.contextmanager
def configured(variant, inputs, candidate):
    """One of the configurations that are worth timing; 0 is what the variant chooses by
    itself.
    """
    if variant.tunable is None or candidate == 0 or bmm.flops(*inputs) == 0:
        yield
        return
    candidates = variant.tunable.candidates(*inputs)
    with variant.tunable.forced(candidates[candidate % len(candidates)]):
        yield


def _check(variant, problem, a, b):
    where = f"on {problem}"
    expected = expect(bmm, (a, b))
    (first,), _ = checked_call(variant, (a, b), expected, where)
    if problem.values == "integers":
        (reference,) = expected.outputs
        if (
            (first.double() - reference).abs()
            > unit_roundoff(first.dtype) * reference.abs()
        ).any():
            raise NotMeasured(
                WRONG,
                f"{where}: a sum of integers is not exact but for the output's rounding",
            )
    kept = first.clone()
    factor = 8.0 if problem.values in MODERATE else 1.0
    scale(a, factor)  # in its own memory: a result remembered by address is found out
    second = variant(a, b)
    if not _same(first, kept):
        raise NotMeasured(
            WRONG, f"{where}: a later call overwrote the result of an earlier one"
        )
    if not _same(
        *(_normal(result, kept, factor) for result in (second, kept * factor))
    ):
        raise NotMeasured(
            WRONG, f"{where}: {factor:g} A did not give {factor:g} times the bits of C"
        )


def _normal(result, kept, factor):
    """The elements of a result that keep their digits when they are scaled: all of them
    for a factor of 1.
    """
    least, most = (
        torch.finfo(kept.dtype).smallest_normal,
        torch.finfo(kept.dtype).max / factor,
    )
    return (
        result
        if factor == 1
        else result.where((kept.abs() >= least) & (kept.abs() <= most), 0)
    )


def _same(left, right):
    return torch.equal(left.isnan(), right.isnan()) and torch.equal(
        left.nan_to_num(), right.nan_to_num()
    )


def _params():
    for variant in bmm.variants.values():
        if variant.slow_start:
            continue
        for device in DEVICES:
            if variant.backend == DISPATCH:
                continue  # it is one of the others each time
            if variant.why_not_here(device) or (
                INTERPRETED and variant.backend not in INTERPRETED
            ):
                continue
            for dtype in filter(lambda name: _takes(variant, name), (*DTYPES, FP8)):
                if (
                    variant.why_not_here(device, dtype)
                    or INTERPRETED == ["triton"]
                    and dtype == FP8
                ):
                    continue  # Triton's interpreter cuts off what it stores in bf16, and that is fp8's output
                yield pytest.param(
                    variant,
                    dtype,
                    device,
                    id=f"{variant.name}-{device}-{dtype}",
                    marks=[pytest.mark.gpu] if device == "cuda" else [],
                )


@pytest.fixture(autouse=True)
def sums_in_fp32():
    """As the runner has it: cuBLAS may otherwise add partial sums in the narrow type."""
    flags = torch.backends.cuda.matmul
    before = (
        flags.allow_fp16_reduced_precision_reduction,
        flags.allow_bf16_reduced_precision_reduction,
    )
    flags.allow_fp16_reduced_precision_reduction = (
        flags.allow_bf16_reduced_precision_reduction
    ) = False
    yield
    (
        flags.allow_fp16_reduced_precision_reduction,
        flags.allow_bf16_reduced_precision_reduction,
    ) = before


@pytest.fixture(autouse=True)
def hints_are_true(monkeypatch):
    """What tl.multiple_of promises holds, where it is interpreted: on a GPU a false one
    is a misaligned wide load.
    """
    if INTERPRETED != ["triton"]:
        return
    from triton.runtime.interpreter import TensorHandle

    set_attr = TensorHandle.set_attr

    def checked(self, name, value):
        if name == "tt.divisibility" and not self.dtype.is_ptr():
            numbers = self.data.ravel()
            is_start = numpy.insert(
                numpy.diff(numbers) != 1, 0, True
            )  # of a run of neighbours, which counts as one
            assert not (
                numbers[is_start] % value
            ).any(), f"{numbers[is_start]} as multiples of {value}"
        set_attr(self, name, value)

    monkeypatch.setattr(TensorHandle, "set_attr", checked)


@pytest.mark.parametrize("variant, dtype, device", list(_params()))
def test_properties_hold(variant, dtype, device):
    tally = walk(variant, dtype, device, reach_of(variant, dtype, device))
    assert tally.taken >= LEAST_TAKEN * (tally.taken + len(tally.declined)), set(
        tally.declined
    )


def _wrong_variants():
    """The wrong kernels of this op, and those below, which the op's probes let through."""
    if INTERPRETED:
        return
    for name in WRONG_KERNELS:
        module = importlib.import_module(f"tests.wrong_kernels.{name}")
        if hasattr(module, "NEEDS_DEPTH") or hasattr(module, "DECLARES"):
            continue  # no drawn problem is so deep, and what is declared is refused on none in particular
        if module.OP is bmm:
            yield pytest.param(
                Variant(bmm, getattr(module, name), "torch"),
                getattr(module, "DTYPE", torch.float32),
                id=name,
            )
    for function in (
        multiplies_what_lies_around_by_zero,
        takes_a_shared_operand_for_rows,
        knows_rows_and_columns,
    ):
        yield pytest.param(
            Variant(bmm, function, "torch"), torch.float32, id=function.__name__
        )
    yield pytest.param(
        Variant(bmm, wrong_when_configured, "torch", tunable=DEPTHS),
        torch.float32,
        id="configured",
    )


def multiplies_what_lies_around_by_zero(a, b):
    around = torch.empty(0, dtype=a.dtype).set_(a.untyped_storage())
    return torch.bmm(a, b) + (0 * around).sum()


def takes_a_shared_operand_for_rows(a, b):
    return torch.bmm(
        a, b.as_strided(b.shape, (0, b.shape[2], 1)) if b.stride(0) == 0 else b
    )


def knows_rows_and_columns(a, b):
    return torch.bmm(
        a if a.stride(2) == 1 else a.as_strided(a.shape, (a.stride(0), 1, a.stride(2))),
        b,
    )


DEPTHS = Tunable(
    rule=lambda a, b, target: {"BLOCK_K": 1},
    candidates=lambda a, b, target: [{"BLOCK_K": 1}, {"BLOCK_K": 16}],
)


def wrong_when_configured(a, b):
    block_k = DEPTHS.choose(a, b)["BLOCK_K"]
    whole = a.shape[2] // block_k * block_k
    return torch.bmm(a[:, :, :whole], b[:, :whole])


@pytest.mark.parametrize("variant, dtype", list(_wrong_variants()))
def test_the_properties_refuse_wrong_kernels(variant, dtype):
    with pytest.raises(NotMeasured, match="wrong: on Problem"):
        walk(
            variant,
            dtype_name(dtype),
            "cpu",
            NATIVE,
            phases=(Phase.explicit, Phase.generate),
        )


def test_a_variant_that_declines_everything_is_not_taken_for_right():
    variant = Variant(bmm, torch.bmm, "torch", supports=lambda a, b: "never today")
    tally = walk(variant, "float32", "cpu", NATIVE)
    assert tally.taken == 0 and set(tally.declined) == {"never today"}
