"""Calls of device functions in emulation."""

import inspect

import pytest
import torch

import triton
import triton.language as tl
from batchline import kernels
from batchline.bench.measure.compiled.compiler import why_cannot_compile
from batchline.bench.measure.emulator import execution
from batchline.bench.measure.emulator.capture import emulate_call
from batchline.bench.measure.emulator.ptx import UnknownOpcode
from batchline.kernels.op import Variant
from batchline.tests.emulated import buffer, faults, run, twins

MODULE = """
.extern .func (.param .b32 r) elsewhere (.param .b32 x);
.extern .func (.param .b32 r) vprintf (.param .b32 x);
.extern .func __assertfail (.param .b32 x);
.func (.param .b32 r) twice (.param .b32 x);
.func (.param .b32 r) triple (.param .b32 x)
{
    .reg .b32 %r<3>;
    ld.param.b32 %r1, [x];
    {
    .param .b32 given;
    .param .b32 got;
    st.param.b32 [given], %r1;
    call.uni (got), twice, (given);
    ld.param.b32 %r2, [got];
    }
    add.u32 %r1, %r1, %r2;
    st.param.b32 [r], %r1;
    ret;
}
.func (.param .b32 r) twice (.param .b32 x)
{
    .reg .b32 %r<3>;
    .local .align 4 .b8 kept[4];
    ld.param.b32 %r1, [x];
    st.local.b32 [kept], %r1;
    ld.local.b32 %r2, [kept];
    add.u32 %r1, %r1, %r2;
    st.param.b32 [r], %r1;
    ret;
}
.func (.param .b32 r) factorial (.param .b32 x)
{
    .reg .b32 %r<3>;
    .reg .pred %p<2>;
    ld.param.b32 %r1, [x];
    mov.b32 %r2, 1;
    Again:
    setp.le.u32 %p1, %r1, 1;
    @%p1 bra Done;
    mul.lo.u32 %r2, %r2, %r1;
    sub.u32 %r1, %r1, 1;
    bra Again;
    Done:
    st.param.b32 [r], %r2;
    ret;
}
.func (.param .b32 r) early (.param .b32 x)
{
    .reg .b32 %r<3>;
    .reg .pred %p<2>;
    ld.param.b32 %r1, [x];
    st.param.b32 [r], 100;
    setp.lt.u32 %p1, %r1, 5;
    @%p1 ret;
    st.param.b32 [r], %r1;
}
.func (.param .b32 r) itself (.param .b32 x)
{
    { .param .b32 a; .param .b32 b; call.uni (b), itself, (a); }
    ret;
}
.func (.param .b32 r) by_register (.reg .b32 x) { ret; }
.func (.param .align 8 .b8 r[16]) pair (.param .align 8 .b8 x[16])
{
    .reg .b64 %d<3>;
    ld.param.b64 %d1, [x];
    ld.param.b64 %d2, [x+8];
    st.param.v2.b64 [r+0], {%d2, %d1};
    ret;
}
.func nothing () { ret; }
"""


def call(name, given="%l", got="%r1", guard=""):
    return f"""
    {{
    .param .b32 given;
    .param .b32 got;
    st.param.b32 [given], {given};
    {guard} call.uni (got), {name}, (given);
    ld.param.b32 {got}, [got];
    }}
    """


def results_of(body):
    result = buffer(32)
    done = run(f"{body} st.global.u32 [%g0], %r1;", result, module=MODULE)
    assert not done.findings, [str(one) for one in done.findings]
    return result.tolist()


def test_a_function_gives_what_it_computes():
    assert results_of(call("twice")) == [2 * lane for lane in range(32)]


def test_what_is_printed_is_dropped():
    assert results_of(call("vprintf")) == [0] * 32


def test_an_assertion_that_fails_is_found():
    body = """
    setp.{}.u32 %p0, %l, 31;
    @%p0 bra Right;
    {{ .param .b32 given; st.param.b32 [given], 1; call.uni __assertfail, (given); }}
    Right:
    """
    assert faults(run(body.format("lt"), module=MODULE)) == {"trap"}
    assert not run(body.format("le"), module=MODULE).findings


def test_a_function_calls_another():
    assert results_of(call("triple")) == [3 * lane for lane in range(32)]


def test_each_call_has_its_own_registers():
    body = call("twice", got="%r2") + call("triple", "%r2")
    assert results_of(body) == [6 * lane for lane in range(32)]


def test_lanes_leave_a_loop_of_a_function_one_after_another():
    body = "and.b32 %r5, %l, 7;" + call("factorial", "%r5")
    factorials = [1, 1, 2, 6, 24, 120, 720, 5040]
    assert results_of(body) == factorials * 4


def test_lanes_return_early():
    expected = [100 if lane < 5 else lane for lane in range(32)]
    assert results_of(call("early")) == expected


def test_a_call_in_a_loop():
    body = f"""
    mov.u32 %r1, 1;
    mov.u32 %r7, 0;
    Loop:
    {call("twice", "%r1")}
    add.u32 %r7, %r7, 1;
    setp.lt.u32 %p0, %r7, 4;
    @%p0 bra Loop;
    """
    assert results_of(body) == [16] * 32


@pytest.mark.parametrize("guard, is_called", [("@%p1", True), ("@!%p1", False)])
def test_a_call_is_made_by_the_lanes_of_its_guard(guard, is_called):
    body = f"""
    setp.lt.u32 %p1, %l, 8;
    {{
    .param .b32 given;
    .param .b32 got;
    st.param.b32 [given], %l;
    st.param.b32 [got], 7;
    {guard} call (got), twice, (given);
    ld.param.b32 %r1, [got];
    }}
    """
    expected = [2 * lane if (lane < 8) == is_called else 7 for lane in range(32)]
    assert results_of(body) == expected


def test_an_array_is_passed_by_value():
    body = """
    cvt.u64.u32 %d0, %l;
    {
    .param .align 8 .b8 given[16];
    .param .align 8 .b8 got[16];
    st.param.b64 [given], 5;
    st.param.b64 [given+8], %d0;
    call.uni (got), pair, (given);
    ld.param.v2.b64 {%d1, %d2}, [got];
    }
    sub.u64 %d1, %d1, %d2;
    cvt.u32.u64 %r1, %d1;
    call.uni nothing;
    call.uni nothing, ();
    """
    assert results_of(body) == [(lane - 5) % 2**32 for lane in range(32)]


def test_a_parameter_that_was_not_given_is_found():
    body = call("twice").replace(
        "st.param.b32 [given], %l;", "<||st.param.b32 [given], %l;>"
    )
    for side, found in zip(twins(body), ({"uninitialised-local"}, set())):
        assert faults(run(side, module=MODULE)) == found


@pytest.mark.parametrize(
    "body, why",
    [
        (call("elsewhere"), "a call of elsewhere, whose code is not there"),
        (call("itself"), "recursion, as of itself"),
        (call("by_register"), "a call of by_register with values in registers"),
        (
            "P: .callprototype _ (.param .b32 x); call %d0, P;",
            "a call through a register, %d0",
        ),
    ],
)
def test_what_has_no_text_is_refused_by_name(body, why):
    with pytest.raises(UnknownOpcode, match=f"does not know {why}"):
        run(body, module=MODULE)


# --- what compilers make ------------------------------------------------------------

needs_triton = pytest.mark.skipif(
    why_cannot_compile("triton") is not None, reason="needs Triton's compiler"
)
needs_numba = pytest.mark.skipif(
    why_cannot_compile("numba_cuda") is not None, reason="needs Numba's compiler"
)


@triton.jit(noinline=True)
def _row_sum(x_ptr, row, n, REACH: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    row_sum = tl.load(x_ptr + row * n + offsets, mask=offsets < n + REACH, other=0.0)
    return tl.sum(row_sum, axis=0)


@triton.jit
def _sums_of_rows(x_ptr, out_ptr, n, REACH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    first = _row_sum(x_ptr, row, n, REACH, BLOCK)
    again = _row_sum(x_ptr, row, n, REACH, BLOCK)
    tl.store(out_ptr + row, first + 2 * again)


def executions(function, backend, *inputs):
    """What a launcher returns, and the execution of each of its launches."""
    variant = Variant(kernels.ops["bmm"], function, backend)
    call_made = emulate_call(variant, inputs, 90, execution.execute)
    for launch, _ in call_made.launches:
        assert "call" in launch.ptx
    return call_made.returned, [done for _, done in call_made.launches]


def sums_of_rows(x, reach):
    out = torch.empty(len(x))
    _sums_of_rows[(len(x),)](x, out, x.shape[1], REACH=reach, BLOCK=128, num_warps=4)
    return out


@needs_triton
def test_a_function_of_triton_that_is_not_inlined():
    x = torch.randn(3, 100)
    sums, (done,) = executions(lambda x: sums_of_rows(x, 0), "triton", x)
    assert not done.findings, [str(one) for one in done.findings]
    torch.testing.assert_close(sums, 3 * x.sum(dim=1))


@needs_triton
def test_what_a_function_does_wrong_is_found_at_its_own_line():
    x = torch.randn(3, 100)
    _, (done,) = executions(lambda x: sums_of_rows(x, 28), "triton", x)
    lines, first = inspect.getsourcelines(_row_sum.fn)
    (place,) = [number for number, line in enumerate(lines) if "tl.load" in line]
    (found,) = {one.source for one in done.findings if one.word == "out-of-bounds"}
    assert found == f"test_emulator_calls.py:{first + place}"


@needs_numba
def test_functions_of_numba_that_are_not_inlined():
    from numba import cuda

    debugged = {"debug": True, "opt": False, "lto": False}

    @cuda.jit(device=True, **debugged)
    def products(x, first, n):
        total = x[first]
        for i in range(n):
            total += x[first + i] * x[n - i]
        return total, total * 2

    @cuda.jit(**debugged)
    def kernel(x, out):
        i = cuda.grid(1)
        a, b = products(x, i, 4)
        c, d = products(x, i + 1, 3)
        out[i] = a + b + c + d

    def launch(x):
        out = torch.empty(32)
        kernel[1, 32](x.numpy(), out.numpy())
        return out

    def expected(x, first, n):
        return 3 * (x[first] + sum(x[first + i] * x[n - i] for i in range(n)))

    x = torch.randn(40)
    out, (done,) = executions(launch, "numba_cuda", x)
    assert not done.findings, [str(one) for one in done.findings]
    wanted = [expected(x, i, 4) + expected(x, i + 1, 3) for i in range(32)]
    torch.testing.assert_close(out, torch.stack(wanted))
