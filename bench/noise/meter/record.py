"""One metered step: which call of the model has which samples, and what its backward
passes add up to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from batchline.bench.errors import UsageError
from batchline.bench.noise.meter.passes import probe, tensors
from batchline.bench.noise.meter.probe import Probe
from batchline.bench.noise.meter.second_moment import Preconditioner
from batchline.bench.noise.meter.step import (
    Fold,
    Gradients,
    ParameterStatistics,
    ScaleOf,
    Step,
    Sums,
    backward_pass,
    check_passes,
    finish,
)

_MOST_SHAPES = 256  # of inputs whose probes are kept


@dataclass(frozen=True)
class Options:
    """What a step was told of its samples.

    Attributes:
        accumulate: calls of the model, each on samples of its own.
        samples: how many each call has, or [R] which one each row of its input is of.
        weights: [B] of all calls, one tensor or one for each call, or a function of
            the model's arguments.
        scale: what the loss was multiplied by.
        within: keep what d needs, also over several calls.
        batch_dim: where the samples are in the model's input.
        samples_apart: they don't mix in the model, whatever its values say.
        optimizer: by whose second moment gradients are preconditioned too.
    """

    accumulate: int = 1
    samples: int | torch.Tensor | None = None
    weights: Callable | torch.Tensor | Sequence[torch.Tensor] | None = None
    scale: float = 1.0
    within: bool = False
    batch_dim: int = 0
    samples_apart: bool = False
    optimizer: torch.optim.Optimizer | None = None

    def __post_init__(self):
        if not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise UsageError(
                f"accumulate= is a whole number of the model's calls, 1 or more, not {self.accumulate!r}"
            )
        if not self.scale > 0 or self.scale == float("inf"):
            raise UsageError(
                f"scale= is what the loss was multiplied by, above 0, not {self.scale!r}"
            )
        for name in ("within", "samples_apart"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise UsageError(
                    f"{name}= is True or False, not {type(value).__name__}"
                )
        if self.optimizer is not None:
            Preconditioner(self.optimizer)  # refuses one that has no second moment

    @property
    def dots(self) -> bool:
        return self.accumulate == 1 or self.within or self.weights is not None


class Record:
    """What one metered step has recorded, of all calls of the model.

    Args:
        model: whose calls are of so many samples.
        layers: what is measured in it, with `name`, `module` and
            `forward_for(step, forward)`.
        names: every parameter that is measured, and its name.
        probes: what was seen of inputs of which shapes; added to.
        keep: keep all contributions until the step is over.
        may_probe: agrees with other ranks on whether to look at the model's shapes,
            from whether this one wants to and can.
    """

    def __init__(
        self,
        model: nn.Module,
        layers,
        names,
        options: Options,
        probes: dict,
        keep: bool = False,
        may_probe: Callable[[bool, bool], bool] | None = None,
    ):
        self._keep = keep
        self._may_probe = may_probe
        self.why_not: str | None = None
        self.trusted: tuple[str, ...] = ()
        self._model = model
        self._layers = [(layer, layer.module.forward) for layer in layers]
        self._names = names
        self._options = options
        self._probes = probes
        self._gradients = Gradients(names, keep=options.accumulate > 1)
        self._fold = (
            Fold(options.samples) if isinstance(options.samples, torch.Tensor) else None
        )
        self._preconditioner = None
        scale_of = None
        if options.optimizer is not None:
            self._preconditioner = Preconditioner(options.optimizer)
            scale_of = self._preconditioner.scale
        self._sums = None
        if options.accumulate > 1 or self._preconditioner:
            self._sums = Sums(names, options.dots, scale_of)
        self._open: list[Step] = []
        self._weights: list[torch.Tensor] = []
        self._own_forward = model.forward
        self._seen: Probe | None = None
        self._put_back: list[Callable[[], object]] = []
        self._model_calls = 0

    @property
    def scale(self) -> float:
        """What the loss was multiplied by."""
        return self._options.scale

    @property
    def gradients(self) -> Gradients:
        return self._gradients

    @property
    def steps(self) -> Sequence[Step]:
        """Of each call, once the step is finished."""
        return [self._open[-1]] if self._sums is None else self._sums.steps

    def begin(self) -> None:
        """Put the meter's forwards in place of the modules', and hooks on parameters."""
        try:
            if self._preconditioner:
                hook = self._preconditioner.optimizer.register_step_pre_hook(_steps)
                self._put_back.append(hook.remove)
            for parameter in self._names:
                hook = functools.partial(self._gradients.receives, parameter)
                self._put_back.append(parameter.register_hook(hook).remove)
            for module in [self._model, *(layer.module for layer, _ in self._layers)]:
                self._put_back.append(_remember_forward(module))
            self._open_step()
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Put everything back."""
        while self._put_back:
            self._put_back.pop()()

    def end(self) -> None:
        """Take in nothing from now on."""
        for step in self._open:
            step.end()

    def forget(self) -> None:
        """Let go of activations and modules, for a reading may be kept for long."""
        for step in self._open:
            step.forgets()
        self._open = []
        self._layers = []
        self._sums = None
        self._gradients = None
        self._preconditioner = None

    def _open_step(self) -> None:
        step = Step(self._names, self._gradients, self._fold)
        several = self._sums is not None and self._options.dots
        scaled = self._preconditioner is not None
        step.shares = step.shares or several or scaled or self._keep
        inner = self._own_forward
        for layer, forward in self._layers:
            metered = layer.forward_for(step, forward)
            # past nn.Module's own bookkeeping, which takes longer than the rest of it
            layer.module.__dict__["forward"] = metered
            if layer.module is self._model:
                inner = metered
        self._model.__dict__["forward"] = functools.partial(self._call_model, inner)
        self._inner = inner
        self._open.append(step)
        if len(self._open) > 1:
            for each in self._open:
                each.shares = True

    def _call_model(self, inner: Callable, *args, **kwargs):
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        self._seen = None
        self._is_called(args, kwargs)
        result = self._inner(*args, **kwargs)
        if self._seen is not None:
            # after what the layers have to say, which is more exact
            self._seen.check_outputs(tensors(result), self._open[-1].batch)
            if self._seen.overruled:
                self._trust(
                    "samples don't mix in the model, for samples_apart=True says so, though "
                    f"{self._seen.overruled}"
                )
        return result

    def _is_called(self, args: tuple, kwargs: dict) -> None:
        if backward_pass() >= 0:  # a checkpoint runs it again
            if len(self._open) > 1:
                raise UsageError(
                    "a checkpointed model is run again in a backward pass through several of its calls, and "
                    "which one it is can't be seen: call backward after each"
                )
            return
        self._model_calls += 1
        if self._model_calls > 1:
            self._is_called_again()
        step = self._open[-1]
        dim = self._options.batch_dim
        tensor = _first_tensor(args, kwargs)
        if tensor is None or tensor.dim() <= dim:
            return
        size = tensor.shape[dim]
        self._check_count(size)
        step.sees_batch("the model's input", size)
        step.calls_model(self._located(args, kwargs, size))
        first = self._model_calls == 1 or self._options.accumulate > 1
        if first and callable(self._options.weights):
            with torch.no_grad():
                self._weights.append(self._options.weights(*args, **kwargs))

    def _is_called_again(self) -> None:
        accumulate = self._options.accumulate
        if accumulate == 1:
            if self._options.samples is None:
                raise UsageError(
                    "the model was called twice in one metered step: if each call has samples of its own, use "
                    "`with meter.step(accumulate=…)`; if all calls see the same samples, say how many: samples= "
                    "(a call beside the training goes under torch.no_grad())"
                )
            return
        if self._model_calls > accumulate:
            raise UsageError(
                f"the model was called more often than accumulate={accumulate} in one metered step"
            )
        if all(step.differentiated for step in self._open):
            self._settle()
        self._open_step()

    def _settle(self) -> None:
        check_passes(self._open, self._gradients, self._names)
        device = next(iter(self._names)).device.type
        self._model.__dict__["forward"] = self._own_forward
        for layer, forward in self._layers:  # replays call them
            layer.module.__dict__["forward"] = forward
        with torch.no_grad(), torch.autocast(device, enabled=False):
            self._sums.take(self._open, self._gradients)
        self.end()
        self._open = []

    def _check_count(self, rows: int) -> None:
        """Note why the step has no answer, if its rows are not the samples told."""
        told = self._fold.rows if self._fold else self._options.samples
        if told is None or told == rows:
            return
        self.why_not = (
            f"the model's input has {rows} rows, and samples= tells of {told}"
        )
        if not self._fold and told and rows % told == 0:
            self.why_not += (
                f": say which sample each row is of, as samples=torch.arange({told}).repeat({rows // told}) where "
                "the model gets torch.cat of the parts"
            )
        self._fold = None
        self._open[-1].unfold()

    def _located(self, args: tuple, kwargs: dict, batch: int) -> Probe | None:
        vouched = self._options.samples_apart
        shapes = tuple(
            leaf.shape if isinstance(leaf, torch.Tensor) else None
            for leaf in pytree.tree_leaves((args, kwargs))
        )
        key = vouched, *shapes
        found = self._probes.get(key)
        wanted = found is None and batch > 1
        if self._may_probe is not None:
            wanted = self._may_probe(wanted, batch > 1)
        if wanted:
            if len(self._probes) >= _MOST_SHAPES:
                self._probes.clear()
            layers = {layer.name: (layer.module, own) for layer, own in self._layers}
            found = probe(
                self._model,
                layers,
                self._own_forward,
                (args, kwargs),
                self._rows_of_samples(batch),
                self._options.batch_dim,
                differentiate=not (self._is_sharded or self._is_differentiated),
            )
            found = self._probes[key] = replace(found, vouched=vouched)
        if found is None:
            return None
        if found.failed:
            self._trust(
                "samples are dimension 0 of every layer and don't mix, for the model does not run with one sample less "
                f"({found.failed})"
            )
            return None
        self._trust(*found.trusted)
        if self._is_sharded:
            self._trust(
                "samples stay apart in the backward pass, which isn't tried where parameters are sharded"
            )
        self._seen = found
        return found

    def _rows_of_samples(self, batch: int) -> Sequence[Sequence[int]]:
        if self._fold and self._fold.samples > 1:
            return self._fold.order.tolist()
        return [[row] for row in range(batch)]

    @property
    def _is_sharded(self) -> bool:
        return self._may_probe is not None

    @property
    def _is_differentiated(self) -> bool:
        return any(one.differentiated for one in self._probes.values())

    def _trust(self, *assumptions: str) -> None:
        """Note what the figures rest on, once."""
        self.trusted = tuple(dict.fromkeys((*self.trusted, *assumptions)))

    def finish(self, mean: bool) -> tuple[dict[str, ParameterStatistics], list[int]]:
        """The statistics of each parameter, and the samples of each call.

        Args:
            mean: whether the loss is a mean over them.

        Raises:
            UsageError: if there was no backward pass, or a gradient from outside a
            layer.
        """
        check_passes(self._open, self._gradients, self._names)
        if not self._model_calls:
            self._check_inner_calls()
        if self._sums is None:
            step = self._open[-1]
            self._check_samples([step.samples], mean)
            return finish(step, self._names), [step.samples]
        self._sums.take(self._open, self._gradients)
        self._check_samples(self._sums.samples, mean)
        return self._sums.statistics(), self._sums.samples

    @property
    def scale_of(self) -> ScaleOf | None:
        """What gives a parameter's 1/(√v̂ + eps); None where it was not asked for."""
        return self._preconditioner.scale if self._preconditioner else None

    def preconditioned(self) -> dict[str, ParameterStatistics] | str | None:
        """The statistics of gradients over √v̂ + eps, of each of the optimizer's
        parameters, once the step is finished; why there are none; None where they were
        not asked for.
        """
        if self._preconditioner is None:
            return None
        why_not = self._preconditioner.why_not(self._sums.parameters, self._names)
        return why_not or self._sums.preconditioned()

    def _check_inner_calls(self) -> None:
        if self._options.accumulate > 1:
            raise UsageError(
                "accumulate= tells micro-batches apart by the model's calls, and the model itself was not called"
            )
        if self._options.samples is None and self._open[-1].used_again:
            raise UsageError(
                "layers were called several times, and the model itself was not: say how many samples there are, "
                "samples=, if all calls see the same, or call the model"
            )
        self._trust(
            "samples are dimension 0 of every layer, for the model itself was not called"
        )
        self._check_count(self._open[-1].batch)

    def _check_samples(self, samples: list[int], mean: bool) -> None:
        told = self._options
        if len(samples) != told.accumulate:
            self.why_not = f"the model was called {len(samples)} times, and accumulate={told.accumulate}"
        elif len(set(samples)) > 1 and told.weights is None and mean:
            self.why_not = (
                f"micro-batches of {', '.join(map(str, samples))} samples: the mean of their means weighs samples "
                "unlike (drop the last batch, or divide the sum of all by its weights=)"
            )

    @property
    def weighted(self) -> bool:
        """Whether the step was told its samples' weights."""
        return self._options.weights is not None

    def weights(self, samples: int, part: bool = False) -> np.ndarray | None:
        """[B] of the samples of all calls; None where they were not told, or are none.

        Args:
            part: of a rank among others, whose own may all be 0.
        """
        told = self._options.weights
        if told is None:
            return None
        parts = self._weights if callable(told) else told
        if not isinstance(parts, torch.Tensor):
            parts = torch.cat([torch.as_tensor(part).flatten() for part in parts])
        weights = parts.detach().double().flatten().cpu().numpy()
        right = len(weights) == samples and (weights >= 0).all()
        if not right or not (part or weights.sum() > 0):
            self.why_not = (
                f"weights= are {len(weights)} numbers of 0 or more, one for each of {samples} samples: their sum is "
                f"{weights.sum():g}"
            )
            return None
        return weights


def _steps(optimizer: torch.optim.Optimizer, *_) -> None:
    raise UsageError(
        f"{type(optimizer).__name__} makes a step within the metered one, whose second moment would then have this "
        "gradient in it: call optimizer.step() after the `with`"
    )


def _first_tensor(args: tuple, kwargs: dict) -> torch.Tensor | None:
    if args and isinstance(args[0], torch.Tensor):
        return args[0]
    leaves = pytree.tree_leaves((args, kwargs))
    return next((leaf for leaf in leaves if isinstance(leaf, torch.Tensor)), None)


def _remember_forward(module: nn.Module) -> Callable[[], object]:
    """What puts the module's forward back as it is now."""
    attributes = module.__dict__
    if "forward" not in attributes:
        return functools.partial(attributes.pop, "forward", None)
    return functools.partial(attributes.__setitem__, "forward", attributes["forward"])
