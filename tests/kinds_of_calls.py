"""The kinds of call that PyTorch can take apart and a kernel can't: lazy tensors,
derivatives, transforms and modes.

Each is a function (call, xs, others) → what to compare: of `call(*xs)`, with `others`
where it needs a second input of the same shapes.
"""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Logged(torch.Tensor):
    """A subclass that notes what is done to it."""

    done = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.done.append(function.__name__)
        return super().__torch_function__(function, types, args, kwargs or {})


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.done.append(str(function))
        return function(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.done.append(function.__name__)
        return function(*args, **(kwargs or {}))


def negative_bit(call, xs, others):
    return call(*map(torch._neg_view, xs))


def imaginary_part_of_a_conjugate(call, xs, others):
    return call(*(torch.complex(x, x + 1).conj().imag for x in xs))


def one_negative_bit(call, xs, others):
    return call(*xs[:-1], torch._neg_view(xs[-1]))


def conjugate_bit(call, xs, others):
    return call(*(torch.complex(x, x + 1).conj() for x in xs))


def zero_tensor(call, xs, others):
    return call(*(torch._efficientzerotensor(x.shape, dtype=x.dtype) for x in xs))


def zero_tensor_with_an_offset(call, xs, others):
    return call(
        *(
            torch._efficientzerotensor((len(x) + 1, *x.shape[1:]), dtype=x.dtype)[1:]
            for x in xs
        )
    )


def functional_tensor(call, xs, others):
    def unwrapped(result):
        torch._sync(result)
        return torch._from_functional_tensor(result)

    return tree_map(unwrapped, call(*map(torch._to_functional_tensor, xs)))


def fake_tensor(call, xs, others):
    with FakeTensorMode() as mode:
        return [
            (type(result), result.shape, result.dtype)
            for result in tree_leaves(call(*map(mode.from_tensor, xs)))
        ]


def subclass(call, xs, others):
    Logged.done.clear()
    result = call(*(x.as_subclass(Logged) for x in xs))
    return (
        tree_map(torch.Tensor, result),
        [type(leaf) for leaf in tree_leaves(result)],
        list(Logged.done),
    )


def no_memory(call, xs, others):
    for x in (xs := [x.clone() for x in xs]):
        x.untyped_storage().resize_(0)
    return call(*xs)


def sparse(call, xs, others):
    return call(xs[0].to_sparse(), *xs[1:])


def mkldnn(call, xs, others):
    return tree_map(torch.Tensor.to_dense, call(*(x.float().to_mkldnn() for x in xs)))


def integers(call, xs, others):
    return call(*(x.mul(9).long() for x in xs))


def made_in_inference_mode(call, xs, others):
    with torch.inference_mode():
        xs = [x.clone() for x in xs]
        within = call(*xs)
    with torch.no_grad():
        return within, call(*xs)


def gradient_not_wanted(call, xs, others):
    with torch.no_grad():
        result = call(*(x.clone().requires_grad_() for x in xs))
    return result, [leaf.requires_grad for leaf in tree_leaves(result)]


def loss_of(call):
    return lambda *xs: sum(leaf.square().sum() for leaf in tree_leaves(call(*xs)))


def gradient(call, xs, others):
    leaves = [x.clone().requires_grad_() for x in xs]
    return torch.autograd.grad(loss_of(call)(*leaves), leaves)


def gradient_of_the_last_alone(call, xs, others):
    leaf = xs[-1].clone().requires_grad_()
    return torch.autograd.grad(loss_of(call)(*xs[:-1], leaf), leaf)


def double_backward(call, xs, others):
    leaves = [x.clone().requires_grad_() for x in xs]
    gradients = torch.autograd.grad(loss_of(call)(*leaves), leaves, create_graph=True)
    return torch.autograd.grad(sum(one.square().sum() for one in gradients), leaves)


def dual_tensors(call, xs, others):
    with forward_ad.dual_level():
        result = call(*map(forward_ad.make_dual, xs, others))
        return [tuple(forward_ad.unpack_dual(leaf)) for leaf in tree_leaves(result)]


def one_dual_tensor(call, xs, others):
    with forward_ad.dual_level():
        result = call(*xs[:-1], forward_ad.make_dual(xs[-1], others[-1]))
        return [tuple(forward_ad.unpack_dual(leaf)) for leaf in tree_leaves(result)]


def numbers_of(xs):
    return tuple(range(len(xs)))


def func_grad(call, xs, others):
    return torch.func.grad(loss_of(call), numbers_of(xs))(*xs)


def func_grad_of_a_captured_input(call, xs, others):
    return torch.func.grad(lambda first: loss_of(call)(first, *xs[1:]))(xs[0])


def func_vjp(call, xs, others):
    result, pull = torch.func.vjp(call, *xs)
    return pull(tree_map(torch.ones_like, result))


def func_jvp(call, xs, others):
    return torch.func.jvp(call, tuple(xs), tuple(others))


def func_vmap(call, xs, others):
    return torch.vmap(call)(*map(lambda *pair: torch.stack(pair), xs, others))


def func_vmap_of_one(call, xs, others):
    return torch.vmap(lambda first: call(first, *xs[1:]))(
        torch.stack([xs[0], others[0]])
    )


def func_vmap_of_grad(call, xs, others):
    return torch.vmap(torch.func.grad(loss_of(call), numbers_of(xs)))(
        *map(lambda *pair: torch.stack(pair), xs, others)
    )


def func_jacrev(call, xs, others):
    return torch.func.jacrev(call, numbers_of(xs))(*xs)


def func_jacfwd(call, xs, others):
    return torch.func.jacfwd(call, numbers_of(xs))(*xs)


def func_hessian(call, xs, others):
    return torch.func.hessian(loss_of(call))(*xs)


def func_forward_over_forward(call, xs, others):
    return torch.func.jacfwd(torch.func.jacfwd(loss_of(call)))(*xs)


def func_functionalize(call, xs, others):
    return torch.func.functionalize(call)(*xs)


def autograd_functional_jvp(call, xs, others):
    return torch.autograd.functional.jvp(call, tuple(xs), tuple(others))


def autocast(call, xs, others):
    with torch.autocast("cpu", torch.bfloat16):
        return call(*(x.float() for x in xs))


def dispatch_mode(call, xs, others):
    with Operations() as seen:
        return call(*xs), seen.done


def function_mode(call, xs, others):
    with Functions() as seen:
        return call(*xs), seen.done


def default_device(call, xs, others):
    with torch.device("meta"):
        return call(*xs)


def fake_mode_that_takes_real_tensors(call, xs, others):
    with FakeTensorMode(allow_non_fake_inputs=True):
        return [type(leaf) for leaf in tree_leaves(call(*xs))]


def jit_trace(call, xs, others):
    return torch.jit.trace(lambda *xs: call(*xs), tuple(xs), check_trace=False)(*others)


def make_fx_real(call, xs, others):
    return make_fx(lambda *xs: call(*xs))(*xs)(*others)


def make_fx_fake(call, xs, others):
    return make_fx(lambda *xs: call(*xs), tracing_mode="fake")(*xs)(*others)


class Calling(torch.nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, xs):
        return self.call(*xs)


def exported(call, xs, others):
    return torch.export.export(Calling(call), (tuple(xs),), strict=False).module()(
        tuple(others)
    )


def compiled(call, xs, others):
    torch.compiler.reset()
    return torch.compile(lambda *xs: call(*xs), backend="eager", fullgraph=True)(*xs)


def in_a_compiled_gradient(call, xs, others):
    torch.compiler.reset()
    leaves = [x.clone().requires_grad_() for x in xs]
    loss = torch.compile(loss_of(call), backend="aot_eager", fullgraph=True)(*leaves)
    return torch.autograd.grad(loss, leaves)


TENSORS = (
    negative_bit,
    imaginary_part_of_a_conjugate,
    one_negative_bit,
    conjugate_bit,
    zero_tensor,
    zero_tensor_with_an_offset,
    functional_tensor,
    subclass,
    integers,
)
KINDS = (
    *TENSORS,
    fake_tensor,
    sparse,
    mkldnn,
    made_in_inference_mode,
    gradient_not_wanted,
    gradient,
    gradient_of_the_last_alone,
    double_backward,
    dual_tensors,
    one_dual_tensor,
    func_grad,
    func_grad_of_a_captured_input,
    func_vjp,
    func_jvp,
    func_vmap,
    func_vmap_of_one,
    func_vmap_of_grad,
    func_jacrev,
    func_jacfwd,
    func_hessian,
    func_forward_over_forward,
    func_functionalize,
    autograd_functional_jvp,
    autocast,
    dispatch_mode,
    function_mode,
    default_device,
    fake_mode_that_takes_real_tensors,
    jit_trace,
    make_fx_real,
    make_fx_fake,
    exported,
    compiled,
    in_a_compiled_gradient,
)
