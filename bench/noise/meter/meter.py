"""NoiseMeter: a context around a training step's forward and backward pass."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.utils import _pytree as pytree

from batchline.bench.errors import UsageError
from batchline.bench.noise.meter.kernel import autocast_off
from batchline.bench.noise.meter.plan import plan
from batchline.bench.noise.meter.reading import Reading, read
from batchline.bench.noise.meter.step import Step

REDUCTIONS = ("mean", "sum")


class NoiseMeter:
    """Measures the gradient noise of a model's training steps.

        meter = NoiseMeter(model, reduction="mean")
        for x, y in loader:
            with meter:
                criterion(model(x), y).backward()
            print(meter.reading)

    Samples are dimension 0 of every layer's input, and must not mix. Linear layers,
    normalisations and embeddings go through Batchline's kernels (on a CPU, one token of
    a layer with a bias by the same closed form as its variant torch_rank_one); any
    other module with parameters through torch.func, and is named in `fallbacks`.
    Gradients arrive in .grad as without the meter, to rounding.

    Args:
        model: of float64, float32, bfloat16 or float16, on any device; autocast is
        followed.
        reduction: "mean" or "sum", how the loss puts its samples together. Both give
            the same .grad up to a factor, so it can't be seen from the gradients.

    Raises (here, or where the step shows it):
        UsageError: for whatever would make the answer wrong, in one line that says what
        to do.
    """

    def __init__(self, model: nn.Module, *, reduction: str | None = None):
        if reduction not in REDUCTIONS:
            raise UsageError(
                f'say how the loss puts its samples together, reduction="mean" or "sum": it was '
                f"{'not told' if reduction is None else repr(reduction)}, and gradients don't show it"
            )
        self._model = model
        self._mean = reduction == "mean"
        self._plan = plan(model)
        self._step: Step | None = None
        self._put_back: list[Callable[[], object]] = []
        self._reading: Reading | None = None
        self._unread = None
        self._seen = 0

    @property
    def fallbacks(self) -> Mapping[str, str]:
        """The layers that torch.func takes apart, as slow as that is: name → type."""
        return self._plan.fallbacks

    @property
    def reading(self) -> Reading:
        """Of the last metered step. On a GPU, the first look waits for it.

        Raises:
            UsageError: before the first step, for a batch of one, and for NaN or
            infinite gradients.
        """
        if self._unread:
            self._reading = self._unread()
            self._unread = None
        if self._reading is None:
            raise UsageError(
                "nothing was measured yet: run a forward and a backward pass inside `with meter`"
            )
        return self._reading

    def every(self, steps: int) -> contextlib.AbstractContextManager[bool]:
        """A context that measures the first of each so many steps and leaves the others
        alone; says which, by `as`.

        Raises:
            UsageError: if `steps` is not a whole number of 1 or more.
        """
        if not isinstance(steps, int) or steps < 1:
            raise UsageError(
                f"meter.every takes a whole number of steps, 1 or more, not {steps!r}"
            )
        self._seen += 1
        return self if (self._seen - 1) % steps == 0 else contextlib.nullcontext(False)

    def __enter__(self) -> bool:
        if self._step:
            raise UsageError(
                "the meter is measuring a step already: leave that `with` first"
            )
        self._reading = self._unread = None
        if not self._plan.holds():
            self._plan = plan(self._model)
        step = Step(self._plan.names)
        try:
            for parameter in self._plan.names:
                self._put_back.append(
                    parameter.register_hook(
                        functools.partial(step.receives, parameter)
                    ).remove
                )
            for layer in self._plan.layers:
                self._put_back.append(
                    _replace_forward(layer.module.__dict__, layer.forward_for(step))
                )
            self._put_back.append(
                _replace_forward(
                    self._model.__dict__, _report_batch(step, self._model.forward)
                )
            )
        except BaseException:
            self._restore()
            raise
        self._step = step
        return True

    def __exit__(self, kind, error, trace) -> None:
        step = self._step
        self._step = None
        self._restore()
        step.end()
        if kind is None:
            with torch.no_grad(), autocast_off(self._plan.device):
                statistics = step.finish()
            absent = tuple(
                name for name in self._plan.names.values() if name not in statistics
            )
            self._unread = functools.partial(
                read,
                statistics,
                step.batch,
                step.batch**2 if self._mean else 1,
                fallbacks=self._plan.fallbacks,
                frozen=self._plan.frozen,
                without_gradient=absent,
            )

    def _restore(self) -> None:
        while self._put_back:
            self._put_back.pop()()


def _report_batch(step: Step, forward: Callable) -> Callable:
    """The model's forward, which reports the batch of its input to the step: an inner
    layer's input may be folded, or have none.
    """

    def call(*args, **kwargs):
        if torch.is_grad_enabled():
            leaves = (
                args
                if args and isinstance(args[0], torch.Tensor)
                else pytree.tree_leaves((args, kwargs))
            )
            tensor = next(
                (leaf for leaf in leaves if isinstance(leaf, torch.Tensor)), None
            )
            if tensor is not None and tensor.dim():
                step.sees_batch("the model's input", len(tensor))
        return forward(*args, **kwargs)

    return call


def _replace_forward(
    attributes: dict[str, object], forward: Callable
) -> Callable[[], object]:
    """Put `forward` in the place of the forward of the module that has these
    attributes; returns what undoes it.
    """
    before = attributes.get("forward")
    attributes["forward"] = (
        forward  # past nn.Module's own bookkeeping, which takes longer than the rest of it
    )
    if before is None:
        return functools.partial(attributes.pop, "forward")
    return functools.partial(attributes.__setitem__, "forward", before)
