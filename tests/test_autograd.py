"""The product's gradients are the right ones, of any order, and cost no product that
nobody asked for.
"""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._pytree import tree_leaves

from batchline.kernels.bmm import _autograd, batched_product, bmm

SIZES = {
    "plain": (3, 4, 2, 5),
    "one": (1, 1, 1, 1),
    "no_batch": (0, 2, 3, 4),
    "no_rows": (2, 0, 3, 4),
    "no_depth": (2, 3, 4, 0),
}


def _leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def _operands(layout, batch, m, n, k):
    a = _leaf(batch, k, m).mT if layout[0] == "t" else _leaf(batch, m, k)
    b = _leaf(batch, n, k).mT if layout[1] == "t" else _leaf(batch, k, n)
    return a, b


@pytest.fixture
def products(monkeypatch):
    """The shapes of every product that is computed."""
    computed = []

    def product(a, b):
        computed.append((tuple(a.shape), tuple(b.shape), b.stride(0) == 0))
        return bmm(a, b)

    monkeypatch.setattr(_autograd, "kernels", SimpleNamespace(ops={"bmm": product}))
    return computed


@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_first_and_second_derivatives(layout, sizes):
    operands = _operands(layout, *sizes)
    assert gradcheck(batched_product, operands)
    assert gradgradcheck(batched_product, operands)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (_leaf(3, 4, 5), _leaf(5, 6)),
        lambda: (_leaf(3, 4, 5), _leaf(6, 5).T),
        lambda: (_leaf(4, 3, 5).transpose(0, 1), _leaf(5, 6)),  # folding A copies it
        lambda: (_leaf(6, 8, 10)[::2, ::2, 1:6], _leaf(3, 5, 12)[:, :, ::2]),
        lambda: (_leaf(0, 4, 5), _leaf(5, 6)),
    ],
    ids=["shared", "shared_nt", "batch_inside", "strided", "shared_no_batch"],
)
def test_shared_and_strided_operands(make):
    operands = make()
    assert gradcheck(batched_product, operands)
    assert gradgradcheck(batched_product, operands)


def test_many_tiny_entries():
    operands = _operands("nt", 40, 2, 3, 4)
    assert gradcheck(batched_product, operands, fast_mode=True)
    assert gradgradcheck(batched_product, operands, fast_mode=True)


@pytest.mark.parametrize(
    "shape_a, shape_b",
    [
        ((1, 4, 5), (5, 6)),
        ((3, 4, 5), (1, 5, 6)),
        ((1, 4, 5), (3, 5, 6)),
        ((1, 4, 5), (1, 5, 6)),
    ],
)
def test_expanded_operands(shape_a, shape_b):
    def product(a, b):
        return batched_product(
            *(
                tensor.expand(3, -1, -1) if len(tensor) == 1 else tensor
                for tensor in (a, b)
            )
        )

    assert gradcheck(product, (_leaf(*shape_a), _leaf(*shape_b)))
    assert gradgradcheck(product, (_leaf(*shape_a), _leaf(*shape_b)))


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
@pytest.mark.parametrize("shared", [False, True])
def test_one_operand_alone(needs, shared, products):
    a = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=needs[0])
    b = torch.randn(
        *(() if shared else (3,)), 5, 6, dtype=torch.float64, requires_grad=needs[1]
    )
    c = batched_product(a, b)
    assert len(c.grad_fn.saved_tensors) == 2 and [
        tensor is None for tensor in c.grad_fn.saved_tensors
    ] == list(needs)
    c.sum().backward()
    assert [a.grad is not None, b.grad is not None] == list(needs)
    assert len(products) == 2
    assert gradcheck(batched_product, (a, b)) and gradgradcheck(batched_product, (a, b))


def test_a_shared_right_side_has_one_folded_product_for_its_gradient(products):
    a, w = _leaf(3, 4, 5), _leaf(5, 6)
    batched_product(a, w).square().sum().backward()
    assert products == [
        ((3, 4, 5), (3, 5, 6), True),
        ((3, 4, 6), (3, 6, 5), True),
        ((1, 5, 12), (1, 12, 6), False),
    ]
    assert torch.allclose(w.grad, torch.einsum("bmk,bmn->kn", a, 2 * (a @ w)))


def test_nothing_is_recorded_without_grad(products):
    a, b = _leaf(3, 4, 5), _leaf(3, 5, 6)
    with torch.no_grad():
        c = batched_product(a, b)
    assert not c.requires_grad and torch.allclose(c, torch.bmm(a, b))
    assert not batched_product(a.detach(), b.detach()).requires_grad
    assert len(products) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_have_the_operands_dtype_also_under_autocast(dtype):
    a, w = (
        torch.randn(*shape).to(dtype).requires_grad_() for shape in ((2, 3, 4), (4, 5))
    )
    batched_product(a, w).sum().backward()
    plain, a.grad, w.grad = (a.grad, w.grad), None, None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batched_product(a, w).sum().backward()
    assert a.grad.dtype == w.grad.dtype == dtype
    assert all(map(torch.equal, plain, (a.grad, w.grad)))


@pytest.mark.parametrize(
    "a, b",
    [
        ((2, 3, 4), (2, 5, 6)),
        ((2, 3, 4), (3, 4, 5)),
        ((3, 4), (4, 5)),
        ((2, 3, 4), (5, 6)),
        ((2, 3, 4), (2, 4)),
    ],
)
def test_shapes_that_do_not_fit_are_named(a, b):
    with pytest.raises(
        ValueError,
        match=r"a\[B,M,K\] and b\[B,K,N\] or b\[K,N\], not a\[.*\] and b\[.*\]",
    ):
        batched_product(torch.ones(a), torch.ones(b))


def test_operands_that_differ_or_have_no_gradient_are_refused():
    with pytest.raises(
        TypeError, match="a is torch.float32 on cpu, b is torch.float64 on cpu"
    ):
        batched_product(torch.ones(1, 2, 3), torch.ones(1, 3, 4).double())
    with pytest.raises(
        TypeError, match="in float32, float16, bfloat16, float64, not in float8_e4m3fn"
    ):
        batched_product(*(torch.ones(1, 2, 2).to(torch.float8_e4m3fn) for _ in "ab"))


def test_each_product_is_dispatched_as_if_it_stood_alone(monkeypatch):
    """Within the product's own passes no gradient is recorded, and autocast is off."""
    chosen = []
    look_up = bmm.dispatch.look_up
    monkeypatch.setattr(
        bmm.dispatch, "look_up", lambda a, b: chosen.append(look_up(a, b)) or chosen[-1]
    )
    with torch.autocast("cpu"):
        batched_product(_leaf(41, 2, 3), _leaf(3, 7)).sum().backward()
    assert len(chosen) >= 2 and not [
        choice for choice in chosen if choice.source.startswith("the baseline")
    ]


def loss_of(product):
    return lambda a, b: product(a, b).square().sum()


def per_entry(transform):
    """The transform over two problems at once, of operands in one dimension more."""
    return lambda product: torch.vmap(transform(product))


def tangents_then_gradients(product):
    """Reverse over forward mode, outside torch.func."""

    def derivatives(a, b):
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        with forward_ad.dual_level():
            result = product(
                forward_ad.make_dual(a, a.detach() + 1),
                forward_ad.make_dual(b, b.detach() - 1),
            )
            tangent = forward_ad.unpack_dual(result).tangent
            return tangent, *torch.autograd.grad(
                tangent.square().sum() + result.sum(), (a, b)
            )

    return derivatives


def gradients_then_tangents(product):
    """Forward over reverse mode: the level begins when the product is done."""

    def derivatives(a, b):
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        result = product(a, b)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(result.detach(), result.detach() + 1)
            gradients = torch.autograd.grad(result, (a, b), dual)
            return [tuple(forward_ad.unpack_dual(gradient)) for gradient in gradients]

    return derivatives


TRANSFORMS = {
    "grad": lambda product: torch.func.grad(loss_of(product), (0, 1)),
    "grad_of_a": lambda product: torch.func.grad(loss_of(product), 0),
    "grad_of_b": lambda product: torch.func.grad(loss_of(product), 1),
    "vjp": lambda product: lambda a, b: torch.func.vjp(product, a, b)[1](
        torch.ones_like(product(a, b))
    ),
    "jvp": lambda product: lambda a, b: torch.func.jvp(product, (a, b), (a + 1, b - 1)),
    "jacrev": lambda product: torch.func.jacrev(product, (0, 1)),
    "jacfwd": lambda product: torch.func.jacfwd(product, (0, 1)),
    "hessian": lambda product: torch.func.hessian(loss_of(product), (0, 1)),
    "reverse_over_reverse": lambda product: torch.func.jacrev(
        torch.func.jacrev(loss_of(product), (0, 1)), (0, 1)
    ),
    "forward_over_forward": lambda product: torch.func.jacfwd(
        torch.func.jacfwd(loss_of(product), (0, 1)), (0, 1)
    ),
    "tangents_then_gradients": tangents_then_gradients,
    "gradients_then_tangents": gradients_then_tangents,
}
OVER_TWO = {
    "vmap": lambda product: torch.vmap(product),
    "vmap_of_a": lambda product: lambda a, b: torch.vmap(product, (0, None))(a, b[0]),
    "vmap_of_b": lambda product: lambda a, b: torch.vmap(product, (None, 0))(a[0], b),
    "vmap_along_the_last": lambda product: lambda a, b: torch.vmap(product, (-1, 1), 2)(
        a.movedim(0, -1), b.movedim(0, 1)
    ),
    "vmap_of_vmap": lambda product: lambda a, b: torch.vmap(torch.vmap(product))(
        a[None], b[None]
    ),
    "vmap_of_grad": per_entry(TRANSFORMS["grad"]),
    "vmap_of_jvp": per_entry(TRANSFORMS["jvp"]),
    "grad_of_vmap": lambda product: torch.func.grad(
        loss_of(torch.vmap(product)), (0, 1)
    ),
}


@pytest.mark.parametrize("shape_b", [(3, 5, 2), (5, 2)], ids=["own", "shared"])
@pytest.mark.parametrize("name", [*TRANSFORMS, *OVER_TWO])
def test_transforms_are_those_of_matmul(name, shape_b):
    shape_a, transform = (3, 4, 5), TRANSFORMS.get(name)
    if transform is None:
        shape_a, shape_b, transform = (2, *shape_a), (2, *shape_b), OVER_TWO[name]
    a, b = _leaf(*shape_a).detach(), _leaf(*shape_b).detach()
    expected = tree_leaves(transform(torch.matmul)(a, b))
    got = tree_leaves(transform(batched_product)(a, b))
    assert len(got) == len(expected)
    for one, other in zip(got, expected):
        torch.testing.assert_close(one, other)


def test_gradcheck_in_forward_mode_and_over_batches():
    operands = _leaf(3, 4, 5), _leaf(5, 6)
    assert gradcheck(
        batched_product,
        operands,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(batched_product, operands, check_fwd_over_rev=True)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_product_has_its_gradient(backend):
    a, b = _leaf(3, 4, 5), _leaf(5, 6)
    compiled = torch.compile(loss_of(batched_product), backend=backend, fullgraph=True)
    gradients = torch.autograd.grad(compiled(a, b), (a, b))
    assert all(
        map(
            torch.allclose,
            gradients,
            torch.autograd.grad(loss_of(torch.matmul)(a, b), (a, b)),
        )
    )
