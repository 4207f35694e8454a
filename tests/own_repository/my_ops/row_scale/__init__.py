"""Rows scaled: x[B,P], s[B] → y[B,P] = s_b·x_b. Write your own op's definition instead."""

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

row_scale = Op(
    __name__,
    signature="x[B,P], s[B] → y[B,P]",
    problems=Problems(SCENARIOS, inputs, PROBES, example=("linear_64", 64)),
    reference=Reference(lambda x, s: x.double() * s.double()[:, None], tolerance),
    work=Work(
        flops=lambda x, s: x.numel(),
        least_bytes=lambda x, s: 2 * distinct_bytes(x) + distinct_bytes(s),
    ),
    calls=Calls("torch_broadcast"),
)
