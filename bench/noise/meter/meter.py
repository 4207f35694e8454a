"""NoiseMeter: a context around a training step's forward and backward pass.

How each module of a model is measured is planned before a step. A model that can't be
measured rightly is refused there. A step's reading has statistics by parameter, by
layer and of the whole model, and what follows from them.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.utils import parametrize

from batchline.bench.errors import UsageError
from batchline.bench.noise.meter import (
    attention,
    convolutions,
    foreign,
    layers,
    norms,
    ranks,
    recurrent,
    relative_bias,
)
from batchline.bench.noise.meter.history import History, Past
from batchline.bench.noise.meter.layers import replayed
from batchline.bench.noise.meter.reading import (
    Reading,
    Taken,
    Way,
    assumptions,
    noise_scale_of,
    read,
)
from batchline.bench.noise.meter.record import Options, Record
from batchline.bench.noise.meter.step import (
    ParameterStatistics,
    Step,
    autocast_off,
    forget_choices,
)

Metered = Callable[[str, nn.Module, Callable, Step], Callable]
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_MEASURED: Mapping[Callable, Metered] = {
    nn.Linear.forward: layers.linear,
    nn.LayerNorm.forward: layers.normalisation,
    nn.RMSNorm.forward: layers.normalisation,
    nn.Embedding.forward: layers.embedding,
    nn.Conv1d.forward: convolutions.convolution,
    nn.Conv2d.forward: convolutions.convolution,
    nn.Conv3d.forward: convolutions.convolution,
    nn.GroupNorm.forward: norms.by_channel,
    nn.InstanceNorm1d.forward: norms.by_channel,
    nn.BatchNorm1d.forward: norms.by_channel,
    nn.MultiheadAttention.forward: attention.attention,
    nn.RNN.forward: recurrent.recurrent,
    nn.GRU.forward: recurrent.recurrent,
    nn.LSTM.forward: recurrent.recurrent,
}
# What is replayed where dimension 0 is not that of the samples.
_SAMPLES_FIRST_ALONE = (
    convolutions.convolution,
    norms.by_channel,
    foreign.transposed_linear,
    foreign.root_mean_square,
    foreign.over_channels,
)
REDUCTIONS = ("mean", "sum")
_MOST_STEPS = 10_000  # that are remembered
_MOST_WAITING = 32  # steps whose figures are on the device still
_MOST_NUMBERS = 1_000_000  # of theirs


@dataclass(frozen=True)
class Layer:
    """A module with trainable parameters of its own; `metered` is None where its call
    is replayed by torch.func.
    """

    name: str
    module: nn.Module
    parameters: Mapping[str, nn.Parameter]
    metered: Metered | None

    def forward_for(self, step: Step, forward: Callable) -> Callable:
        """What stands in for the module's own forward in a metered step."""
        if self.metered is None:
            return self._replayed(step, forward)
        own = self.metered(self.name, self.module, forward, step)
        if self.metered not in _SAMPLES_FIRST_ALONE:
            return own

        def call(*args, **kwargs):
            first = (*args, *kwargs.values())[0]
            is_first = step.locates(self.name, first) == 0
            taken = own if is_first else self._replayed(step, forward)
            return taken(*args, **kwargs)

        return call

    def _replayed(self, step: Step, forward: Callable) -> Callable:
        return replayed(self.name, self.module, forward, step, self.parameters)


@dataclass(frozen=True)
class Plan:
    """The layers to measure, every parameter's name (of a shared one the first), and
    those that are frozen, left out, or a normalisation's.

    `modules` were in `state` when it was made.
    """

    layers: tuple[Layer, ...]
    names: Mapping[nn.Parameter, str]
    frozen: tuple[str, ...]
    left_out: tuple[str, ...]
    norms: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    state: tuple

    def holds(self) -> bool:
        """Whether the modules are still in the state that was planned for: far cheaper
        than to plan anew each step.
        """
        return self.state == _state(self.modules)

    @property
    def device(self) -> str:
        return next(iter(self.names)).device.type

    @functools.cached_property
    def fallbacks(self) -> dict[str, str]:
        """Of the layers that torch.func takes apart, name → type."""
        return {
            layer.name: type(layer.module).__name__
            for layer in self.layers
            if layer.metered is None
        }


def plan(model: nn.Module, chosen: Callable[[Layer], bool] | None = None) -> Plan:
    """How to measure the model as it is now, or those of its layers that are chosen.

    Raises:
        UsageError: if it has no trainable parameters, or has a module whose samples'
            gradients aren't apart or can't be seen.
    """
    forget_choices()
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"a NoiseMeter measures a torch.nn.Module, not {type(model).__name__}"
        )
    layers = []
    whole = ()
    for name, module in model.named_modules():
        _refuse(name or "the model", module)
        if whole and module in whole:
            continue
        own, inside = _measured_together(module)
        whole = inside or whole
        trained = {
            key: parameter
            for key, parameter in own.items()
            if parameter is not None and parameter.requires_grad
        }
        if trained:
            layers.append(
                Layer(name or "the model", module, trained, _measured_as(module))
            )
    named = dict(model.named_parameters())
    if not named:
        raise UsageError(
            f"{type(model).__name__} has no parameters: there is no gradient to measure"
        )
    names = {
        parameter: name for name, parameter in named.items() if parameter.requires_grad
    }
    if not names:
        raise UsageError(
            f"all parameters of {type(model).__name__} are frozen: there is no gradient to measure"
        )
    odd = next(
        (name for parameter, name in names.items() if parameter.dtype not in _FLOATS),
        None,
    )
    if odd:
        raise UsageError(
            f"{odd} is {named[odd].dtype}: gradients are measured in float64, float32, bfloat16, float16"
        )
    frozen = tuple(
        name for name, parameter in named.items() if not parameter.requires_grad
    )
    every = names
    if chosen:
        names = _chosen(layers, every, chosen)
        layers = [
            layer for layer in layers if set(layer.parameters.values()) & set(names)
        ]
    left_out = tuple(
        name for parameter, name in every.items() if parameter not in names
    )
    norms = tuple(
        names[parameter]
        for layer in layers
        if _is_normalisation(layer)
        for parameter in layer.parameters.values()
        if parameter in names
    )
    modules = tuple(model.modules())
    state = _state(modules)
    return Plan(tuple(layers), names, frozen, left_out, norms, modules, state)


def _chosen(
    layers: Iterable[Layer],
    names: Mapping[nn.Parameter, str],
    chosen: Callable[[Layer], bool],
) -> dict[nn.Parameter, str]:
    """The parameters of chosen layers, and their names."""
    wanted = {
        parameter
        for layer in layers
        if chosen(layer)
        for parameter in layer.parameters.values()
    }
    if not wanted:
        raise UsageError(
            "layers= names none that has trainable parameters: there are "
            f"{', '.join(layer.name for layer in layers)}"
        )
    return {parameter: name for parameter, name in names.items() if parameter in wanted}


def choice(layers: str | Iterable[str] | None) -> Callable[[Layer], bool] | None:
    """Which layers are meant: "norm" for all normalisations, else names, of which *
    stands for anything; a name takes in what is below it.
    """
    if layers is None:
        return None
    if layers == "norm":
        return _is_normalisation
    patterns = [layers] if isinstance(layers, str) else list(layers)
    return lambda layer: any(
        fnmatch.fnmatchcase(layer.name, whole)
        for pattern in patterns
        for whole in (pattern, f"{pattern}.*")
    )


def _is_normalisation(layer: Layer) -> bool:
    """By the name of its class: LayerNorm, GroupNorm, LlamaRMSNorm, InstanceNorm2d."""
    return type(layer.module).__name__.lower().rstrip("123d").endswith("norm")


def _state(modules: Iterable[nn.Module]) -> tuple:
    """Whatever a plan depends on."""
    return tuple(
        (
            module.training,
            "forward" in module.__dict__,
            module._compiled_call_impl,
            *map(id, module._modules.values()),
            *(
                (id(parameter), parameter is not None and parameter.requires_grad)
                for parameter in module._parameters.values()
            ),
        )
        for module in modules
    )


def _measured_together(
    module: nn.Module,
) -> tuple[Mapping[str, nn.Parameter | None], set[nn.Module]]:
    """The parameters that are measured at the module's own call, and the modules that
    are measured there and not at theirs.
    """
    if _uses_its_childrens(module):
        return dict(module.named_parameters()), set(module.modules())
    if relative_bias.is_relative_attention(module):
        table = module.get_submodule(relative_bias.TABLE)
        return {f"{relative_bias.TABLE}.weight": table.weight}, {table}
    return module._parameters, set()


def _uses_its_childrens(module: nn.Module) -> bool:
    """Whether it reads its children's parameters without calling them."""
    return isinstance(module, nn.MultiheadAttention) or parametrize.is_parametrized(
        module
    )


def _measured_as(module: nn.Module) -> Metered | None:
    if "forward" in module.__dict__:
        return None
    if relative_bias.is_relative_attention(module):
        return relative_bias.relative_attention
    if not _holds_its_weights(module):
        return None
    return _MEASURED.get(type(module).forward) or foreign.recognised(module)


def _holds_its_weights(module: nn.Module) -> bool:
    """Whether what its forward reads are parameters of its own."""
    if isinstance(module, nn.MultiheadAttention):
        return attention.is_supported(module)
    if isinstance(module, nn.RNNBase):
        return recurrent.is_supported(module)
    return isinstance(module._parameters.get("weight"), nn.Parameter)


def _refuse(name: str, module: nn.Module) -> None:
    kind = type(module).__name__
    ranks.refuse(name, module)
    if isinstance(module, (torch.jit.ScriptModule, nn.DataParallel)):
        raise UsageError(
            f"{name} is a {kind}, whose calls can't be seen: measure the model that it was made of"
        )
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
        module.training or not module.track_running_stats
    ):
        raise UsageError(
            f"{name} ({kind}) mixes the samples of a batch, so they have no gradients of their own: use "
            "LayerNorm or GroupNorm, or put it into eval()"
        )
    if isinstance(module, nn.Embedding) and (
        module.sparse or module.scale_grad_by_freq
    ):
        option = "sparse" if module.sparse else "scale_grad_by_freq"
        raise UsageError(
            f"{name} ({kind}) has {option}=True, whose gradient is not a sum over samples that the meter "
            "can take apart: build it without"
        )
    if any(
        nn.parameter.is_lazy(parameter) for parameter in module._parameters.values()
    ):
        raise UsageError(
            f"{name} ({kind}) has no sizes yet: run the model once before it is measured"
        )


class NoiseMeter:
    """Measures the gradient noise of a model's training steps.

        meter = NoiseMeter(model, reduction="mean")
        for x, y in loader:
            with meter:
                criterion(model(x), y).backward()
            print(meter.reading)

    Samples are dimension 0 of the model's input, and must not mix. Where they are in
    each layer's, and whether they mix, is seen by forward passes without gradients on
    parts of the batch, for each shape of input when it is first met (and on all samples,
    where there is dropout, or a look-up that all samples share); and once for a meter by
    backward passes, from made-up gradients of the model's outputs. Random states,
    buffers and modules' attributes are as before; hooks on inner modules run in them.
    How the loss puts samples together is not seen: a reading says what was assumed.

    Linear layers, convolutions, attention, recurrent nets, normalisations and
    embeddings go through Batchline's kernels (on a CPU, one token of a layer with a
    bias by the same closed form as its variant torch_rank_one); any other module with
    parameters through torch.func, and is named in `fallbacks`. Gradients arrive in
    .grad as without the meter, to rounding. Code that torch.compile made runs
    uncompiled in a metered step, and stays compiled. On a CPU the first metered step of
    a process compiles its kernels, which takes seconds.

    Args:
        model: of float64, float32, bfloat16 or float16, on any device; autocast is
        followed. What torch.compile made of it will do.
        reduction: "mean" or "sum", how the loss puts its samples together. Both give
            the same .grad up to a factor, so it can't be seen from the gradients.
        samples: how many the model's input has; or [R], which sample each row of it is
            of, as torch.arange(b).repeat(2) for pairs that go in as torch.cat([x, y]).
            If told, the model may be called several times on the same samples.
        weights: for a mean over tokens under a mask, how many tokens each sample has: a
            function of the model's arguments. Such a mean is a ratio, Σ of all samples'
            losses over Σ of all their weights (of all micro-batches of a step, and of
            all ranks, each of which has the weights of its own samples).
        layers: names of those to measure, as fnmatch has them, or "norm" for all
            normalisations; None for all.
        within: take d, and with it an interval, of steps of several backward passes
            too. It keeps the activations of all of them.
        batch_dim: the dimension of samples in the model's input: 1 if time comes first.
        samples_apart: your word that no sample's loss depends on another sample, for a
            model that is refused because values in parts of the batch differ: those of
            a sample may depend on its row or on random numbers of the model's own, and
            what mixes may be left out of the loss. The reading says what was seen.
        process_group: "auto" takes the ranks of DistributedDataParallel (given as the
            model, or seen around it) or of fully_shard, each of which has samples of
            its own; all of them meter the same steps. A group tells of ranks whose
            gradients the loop itself puts together within the metered step. None: this
            rank alone.
        optimizer: Adam, AdamW, NAdam or RMSprop of torch.optim, which makes its step
            after the metered one: `reading.preconditioned` is of the gradients over its
            √v̂ + eps, as it scales them. Activations are kept until the step ends, and
            gradients of single samples are made, some at a time: of a weight [O,I] and
            T > 1 tokens 2·B·T·I·O operations, as much as its own gradient takes.

    Raises (here, or where the step shows it):
        UsageError: for whatever would make the answer wrong, in one line that says what
        to do. What depends on the data alone (a batch of 1 or 2, a NaN, a gradient
        that overflows) is no error: `reading.why_not` says it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        reduction: str | None = None,
        samples: int | torch.Tensor | None = None,
        weights: Callable | None = None,
        layers: str | Iterable[str] | None = None,
        within: bool = False,
        batch_dim: int = 0,
        samples_apart: bool = False,
        process_group="auto",
        optimizer: torch.optim.Optimizer | None = None,
    ):
        if reduction not in REDUCTIONS:
            raise UsageError(
                f'say how the loss puts its samples together, reduction="mean" or "sum": it was '
                f"{'not told' if reduction is None else repr(reduction)}, and gradients don't show it"
            )
        self._mean = reduction == "mean"
        self._options = Options(
            samples=samples,
            weights=weights,
            within=within,
            batch_dim=batch_dim,
            samples_apart=samples_apart,
            optimizer=optimizer,
        )
        self._model, self._ddp = ranks.unwrapped(model)
        self._process_group = process_group
        self._chosen = choice(layers)
        if isinstance(self._model, nn.Module):
            ranks.reshard(self._model)
        self._plan = plan(self._model, self._chosen)
        self._probes: dict = {}
        self._record: Record | None = None
        self._across: ranks.Across | None = None
        self._eager = contextlib.ExitStack()
        self._finished: _Finished | None = None
        self._waiting: list[_Finished] = []
        self._numbers = 0
        self._past: deque[Past] = deque(maxlen=_MOST_STEPS)
        self._left_out = 0
        self._seen = 0

    @property
    def fallbacks(self) -> Mapping[str, str]:
        """The layers that torch.func takes apart, as slow as that is: name → type."""
        return self._plan.fallbacks

    @property
    def has_reading(self) -> bool:
        """Whether a metered step is over, and none under way."""
        return self._finished is not None

    @property
    def reading(self) -> Reading:
        """Of the last metered step. On a GPU, the first look waits for it.

        Raises:
            UsageError: before the first step, and if samples' gradients don't add up to
            the parameters' own.
        """
        if self._finished is None:
            raise UsageError(
                "nothing was measured yet: run a forward and a backward pass inside `with meter`"
            )
        return self._finished.reading

    def history(self, half_life: float = 200) -> History:
        """Of the metered steps so far, each of which counts half as much after so many
        more; it keeps the last 10,000.
        """
        self._remember()
        return History(tuple(self._past), half_life, self._left_out)

    def scalars(self, half_life: float = 200) -> dict[str, float]:
        """Figures to log, of the last step and of the history; what is not known is not
        there. All are free of the loss's scale but trace and square, tr Σ and ‖G‖².
        """
        found: dict[str, float] = {}
        reading = self.reading
        found["noise/batch"] = reading.batch
        if reading.parameters:
            scale = reading.scale()
            found["noise/trace"] = scale.trace
            found["noise/square"] = scale.square
            for test in reading.tests():
                found[f"noise/{test.name.replace(' ', '_')}_test"] = test.value
        history = self.history(half_life)
        for part, steps in (
            ("", history),
            ("preconditioned_", history.preconditioned),
        ):
            if len(steps) > 1:
                estimate = steps.estimate()
                found[f"noise/{part}B_simple"] = estimate.scale.simple
                found[f"noise/{part}B_simple_low"] = estimate.simple.low
                found[f"noise/{part}B_simple_high"] = estimate.simple.high
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def state_dict(self) -> dict:
        """What a run that goes on needs of this one, of plain numbers."""
        self._remember()
        return {
            "seen": self._seen,
            "left_out": self._left_out,
            "steps": [list(past) for past in self._past],
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from another meter's `state_dict`."""
        self._seen = state["seen"]
        self._left_out = state["left_out"]
        self._past.clear()
        self._past.extend(Past.from_state(past) for past in state["steps"])
        self._finished = None
        self._waiting, self._numbers = [], 0

    def _remember(self) -> None:
        """Take the steps that wait into the history. On a GPU, this waits for them."""
        waiting, self._waiting, self._numbers = self._waiting, [], 0
        fetch([part for finished in waiting for part in finished.waiting])
        for finished in waiting:
            past = finished.past
            if past is None:
                self._left_out += 1
            else:
                self._past.append(past)

    def _wait(self, finished: _Finished) -> None:
        """Have a step wait for others: to fetch many at once is as fast as to fetch one."""
        self._finished = finished
        self._waiting.append(finished)
        self._numbers += finished.numbers
        if len(self._waiting) >= _MOST_WAITING or self._numbers > _MOST_NUMBERS:
            self._remember()

    def step(self, **options) -> contextlib.AbstractContextManager[bool]:
        """A metered step that is told more than the meter was.

        Args:
            accumulate: calls of the model, each on a micro-batch of its own, whose
                losses are divided so that .grad is the mean (or sum) over all samples.
                M is that of the accumulated gradient.
            scale: what the loss was multiplied by: scaler.get_scale(), or the number
                of micro-batches where their mean losses were not divided by it.
                B_simple and the tests don't need it.
            samples: as the meter's.
            weights: as the meter's; or [B] of all calls, one tensor or a list with one
                for each call, which may be filled until the step ends.
            within: as the meter's.
            samples_apart: as the meter's.
            optimizer: as the meter's.

        Raises:
            UsageError: for values that are none of these.
        """
        return _Metered(self, replace(self._options, **options))

    def every(self, steps: int, **options) -> contextlib.AbstractContextManager[bool]:
        """A context that measures the first of each so many steps and leaves the others
        alone; says which, by `as`. Options are those of `step`.

        Raises:
            UsageError: if `steps` is not a whole number of 1 or more.
        """
        if not isinstance(steps, int) or steps < 1:
            raise UsageError(
                f"meter.every takes a whole number of steps, 1 or more, not {steps!r}"
            )
        self._seen += 1
        metered = (self._seen - 1) % steps == 0
        return self.step(**options) if metered else contextlib.nullcontext(False)

    def __enter__(self) -> bool:
        return self._begin(self._options)

    def __exit__(self, kind, error, trace) -> None:
        self._end(kind is None)

    def _begin(self, options: Options) -> bool:
        if self._record:
            raise UsageError(
                "the meter is measuring a step already: leave that `with` first"
            )
        if options.weights is not None and not self._mean:
            raise UsageError('weights= are of a weighted mean: reduction="mean"')
        self._finished = None
        ranks.reshard(self._model)
        if not self._plan.holds():
            self._plan = plan(self._model, self._chosen)
            self._probes = {}
        across = self._across = self._reach(options)
        record = Record(
            self._model,
            across.layers(self._plan.layers) if across else self._plan.layers,
            self._plan.names,
            options,
            self._probes,
            keep=across is not None and across.dots,
            may_probe=across.probes if across else None,
        )
        if (
            "torch._dynamo" in sys.modules
        ):  # who has compiled nothing needn't wait for it
            self._eager.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            record.begin()
            if across:
                across.begin(record.gradients)
        except BaseException:
            self._eager.close()
            record.restore()
            raise
        self._record = record
        return True

    def _reach(self, options: Options) -> ranks.Across | None:
        """What puts the step together with those of other ranks; None where there are
        none.
        """
        group = self._process_group
        if not ranks.is_initialised():
            return None
        found = ranks.find(self._plan.names, self._ddp, group)
        if found is None and (group is None or not ranks.is_distributed()):
            return None
        if found and found.sharded and options.optimizer is not None:
            raise UsageError(
                "optimizer= is for whole parameters, and fully_shard has split these: measure the preconditioned "
                "gradients under DistributedDataParallel"
            )
        dots = options.within or options.weights is not None
        return ranks.Across(self._model, self._plan.names, found, dots)

    def _end(self, worked: bool) -> None:
        record = self._record
        self._record = None
        self._eager.close()
        record.restore()
        if self._across:
            self._across.restore()
        record.end()
        if worked:
            with torch.no_grad(), autocast_off(self._plan.device):
                together = self._finish(record)
                preconditioned = self._precondition(record, together)
            record.forget()
            self._wait(
                _Finished(record, together, preconditioned, self._plan, self._mean)
            )

    @staticmethod
    def _precondition(
        record: Record, together: ranks.Together
    ) -> dict[str, ParameterStatistics] | str | None:
        """Of this rank's samples, or of those of all ranks."""
        if together.of_ranks:
            return together.preconditioned
        return record.preconditioned()

    def _finish(self, record: Record) -> ranks.Together:
        across = self._across
        try:
            statistics, samples = record.finish(self._mean)
        except UsageError as error:
            if across:
                across.fails(error)
            raise
        if across is None:
            return ranks.Together(statistics, samples)
        together = across.puts_together(record, statistics, samples)
        record.why_not = record.why_not or together.why_not
        return together


class _Waiting:
    """Statistics that are on the device until they are asked for."""

    def __init__(self, statistics: Mapping[str, ParameterStatistics], batch: int):
        self.statistics = statistics
        self.batch = batch
        self.taken: Taken | None = None


class _Finished:
    """A metered step that is over; what it says is fetched from the device when asked
    for.
    """

    def __init__(
        self,
        record: Record,
        together: ranks.Together,
        preconditioned: Mapping[str, ParameterStatistics] | str | None,
        plan: Plan,
        mean: bool,
    ):
        self.batch = sum(together.samples)
        self.own = _Waiting(together.statistics, self.batch)
        self.preconditioned = None
        if preconditioned is not None:
            known = {} if isinstance(preconditioned, str) else preconditioned
            self.preconditioned = _Waiting(known, self.batch)
        self._why_not_preconditioned = preconditioned
        self._record = record
        self._together = together
        self._plan = plan
        self._mean = mean

    @functools.cached_property
    def _way(self) -> Way:
        times = self.batch * self._together.share if self._mean else 1
        factor = times**2 / self._record.scale**2
        if self._together.of_ranks:
            return Way(factor, self._together.weights)
        return Way(factor, self._record.weights(self.batch))

    @property
    def waiting(self) -> list[_Waiting]:
        return [one for one in (self.own, self.preconditioned) if one is not None]

    @property
    def numbers(self) -> int:
        """How many wait on the device, about."""
        return sum(2 * self.batch * len(one.statistics) for one in self.waiting)

    @property
    def past(self) -> Past | None:
        """S and G2 of the whole model, and of its parts; None where there are none."""
        way = self._way
        if self._record.why_not or not self.own.statistics:
            return None
        fetch(self.waiting)
        whole = noise_scale_of(self.own.taken, way)
        if whole is None:
            return None
        pairs = {"norms": None, "preconditioned": None}
        norms = self.own.taken.only(self._plan.norms)
        if 0 < len(norms.names) < len(self.own.taken.names):
            pairs["norms"] = noise_scale_of(norms, way)
        if self.preconditioned and self.preconditioned.statistics:
            pairs["preconditioned"] = noise_scale_of(self.preconditioned.taken, way)
        return Past(
            whole.trace,
            whole.square,
            self.batch,
            **{
                name: None if scale is None else (scale.trace, scale.square)
                for name, scale in pairs.items()
            },
        )

    @functools.cached_property
    def reading(self) -> Reading:
        way = self._way
        loss = assumptions(self.batch, self._mean, way.weights is not None)
        names = self._plan.names.values()
        reading = Reading(
            self.batch,
            {},
            fallbacks=self._plan.fallbacks,
            frozen=self._plan.frozen,
            without_gradient=tuple(
                name for name in names if name not in self.own.statistics
            ),
            left_out=self._plan.left_out,
            assumed=tuple(
                filter(None, (loss, self._together.assumed, *self._record.trusted))
            ),
            norms=self._plan.norms,
            why_not=self._record.why_not,
        )
        if self._record.why_not or not self.own.statistics:
            return reading
        fetch(self.waiting)
        raw = read(self.own.taken, way, reading)
        if self.preconditioned is None:
            return raw
        return replace(raw, preconditioned=self._preconditioned(raw))

    def _preconditioned(self, raw: Reading) -> Reading:
        """Of the gradients over √v̂ + eps, 0 where the raw ones are rounding alone."""
        own = self.preconditioned
        reading = replace(
            raw,
            parameters={},
            left_out=raw.left_out
            + tuple(name for name in raw.parameters if name not in own.statistics),
        )
        if not own.statistics:
            why_not = raw.why_not if not raw.parameters else None
            return replace(
                reading, why_not=why_not or str(self._why_not_preconditioned)
            )
        return read(own.taken.without(raw.rounding), self._way, reading)


def fetch(parts: Iterable[_Waiting]) -> None:
    """Bring what steps say from the device, all in one transfer."""
    missing = [part for part in parts if part.taken is None and part.statistics]
    found = Taken.of([(part.statistics, part.batch) for part in missing])
    for part, taken in zip(missing, found):
        part.taken = taken


class _Metered:
    """A context around one step that a meter measures with these options."""

    def __init__(self, meter: NoiseMeter, options: Options):
        self._meter = meter
        self._options = options

    def __enter__(self) -> bool:
        return self._meter._begin(self._options)

    def __exit__(self, kind, error, trace) -> None:
        self._meter._end(kind is None)
