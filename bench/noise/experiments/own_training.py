"""A training of the user's own, as `batchline advise --train my_script.py:make` takes it.

    def make():
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        return model, nn.CrossEntropyLoss(), dataset, optimizer

- model: a torch.nn.Module.
- loss: a loss of torch.nn or torch.nn.functional, called as loss(model(inputs), targets)
  of a batch (inputs, targets), or a function loss(model, batch) for any other. It returns
  the mean over the samples of the batch.
- data: a DataLoader (its dataset and its collate_fn are used, and its batch size is the
  one in use), a dataset with a length, a tensor or a tuple or dict of tensors with one
  row per sample, or a function batch(n, seed) that returns a batch of n samples.
- optimizer, optional: over the model's parameters, at the rate in use. Without one the
  model is looked at as it is, and a step is one of plain SGD.
- samples_apart, optional: True for NoiseMeter's argument of that name.

They may be a dict with these keys, which samples_apart needs. All of it is made in a
process of Batchline's own, and each measurement takes a copy.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import inspect
import random
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils import data as torch_data

from batchline.bench import texts
from batchline.bench.errors import UsageError
from batchline.bench.measure.machine import memory

Batch = object  # whatever the data gives and the loss takes
_KEYS = ("model", "loss", "data", "optimizer", "samples_apart")
_RETURNS = "(model, loss, data) or (model, loss, data, optimizer)"
_FEW = 256  # samples that a batch whose time alone matters is filled with
_SEEDS = 10**6  # of a function's batches for each seed of a training
_LIBRARY = sysconfig.get_path("stdlib")
_LOADERS = (torch_data.RandomSampler, torch_data.SequentialSampler)


class Data:
    """Samples that can be drawn.

    Args:
        take: a batch of the samples of these numbers, on the CPU.
        samples: how many there are.
        batch: the batch in use, where the data says one.
    """

    def __init__(
        self,
        take: Callable[[Sequence[int]], Batch],
        samples: int,
        batch: int | None = None,
    ):
        self._take = take
        self.samples = samples
        self.batch = batch

    def draw(self, count: int, seed: int) -> Batch:
        """Independent samples, with replacement, as the noise scale's estimators take
        them.
        """
        return self._take(_random(self.samples, count, seed))

    def draw_cheaply(self, count: int) -> Batch:
        """A batch of which the time alone matters: a few samples, repeated."""
        few = _random(self.samples, min(count, _FEW), 0)
        return self._take([few[number % len(few)] for number in range(count)])

    def first(self, count: int, batch: int) -> Iterator[tuple[Batch, int]]:
        """The first samples in batches, each with its size; the last may be smaller."""
        end = min(count, self.samples)
        for start in range(0, end, batch):
            rows = range(start, min(start + batch, end))
            yield self._take(rows), len(rows)

    def stream(self, count: int, seed: int) -> Iterator[Batch]:
        """Batches of `count` without end, each sample once before any comes again."""
        generator = torch.Generator().manual_seed(seed)
        left: list[int] = []
        while True:
            while len(left) < count:
                left += torch.randperm(self.samples, generator=generator).tolist()
            yield self._take(left[:count])
            del left[:count]


class DrawnData:
    """The same of a function batch(n, seed), which says neither how many samples there
    are nor which it has given.
    """

    samples = None
    batch = None

    def __init__(self, draw: Callable[[int, int], Batch]):
        self._draw = draw

    def draw(self, count: int, seed: int) -> Batch:
        return self._draw(count, seed)

    def draw_cheaply(self, count: int) -> Batch:
        return self._draw(count, 0)

    def first(self, count: int, batch: int) -> Iterator[tuple[Batch, int]]:
        for number, start in enumerate(range(0, count, batch)):
            size = min(batch, count - start)
            yield self._draw(size, _SEEDS - 1 - number), size

    def stream(self, count: int, seed: int) -> Iterator[Batch]:
        number = (seed + 1) * _SEEDS
        while True:
            yield self._draw(count, number)
            number += 1


def _random(samples: int, count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(samples, (count,), generator=generator).tolist()


@dataclass
class Trainee:
    """A copy of the model with its optimizer, to be trained."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[nn.Module, Batch], torch.Tensor]
    samples_apart: bool = False

    def backward(self, batch: Batch) -> torch.Tensor:
        """The loss, with its gradients in .grad."""
        self.optimizer.zero_grad()
        loss = self.loss(self.model, batch)
        loss.backward()
        return loss.detach()

    def update(self, batch: Batch) -> None:
        self.backward(batch)
        self.optimizer.step()

    def free(self) -> None:
        """Let go of the gradients, which each step makes anew."""
        self.optimizer.zero_grad()

    def scale_rate(self, factor: float) -> None:
        """Multiply each group's learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] * factor


@dataclass(frozen=True, eq=False)
class OwnTraining:
    """What `make` has returned, on its device; `name` is the file's and the function's."""

    name: str
    model: nn.Module
    loss: Callable[[nn.Module, Batch], torch.Tensor]
    data: Data | DrawnData
    optimizer: torch.optim.Optimizer | None
    device: str
    samples_apart: bool = False

    @property
    def title(self) -> str:
        kind = type(self.optimizer).__name__ if self.optimizer else "no optimizer"
        return f"{type(self.model).__name__} of {self.name}, {kind}"

    def copied(self) -> Trainee:
        """A copy of the model, with one of the optimizer or plain SGD.

        Raises:
            UsageError: of a model that can't be copied.
        """
        with of_the_users("copying the model"):
            model, optimizer = copy.deepcopy((self.model, self.optimizer))
        if optimizer is None:
            trained = [one for one in model.parameters() if one.requires_grad]
            optimizer = torch.optim.SGD(trained, lr=0.0)
        return Trainee(model, optimizer, self.loss, self.samples_apart)

    def put(self, batch: Batch) -> Batch:
        """The batch on the device."""
        return pytree.tree_map(
            lambda part: part.to(self.device) if hasattr(part, "to") else part, batch
        )

    def draw(self, count: int, seed: int) -> Batch:
        """Independent samples on the device."""
        with of_the_users("the data"):
            return self.put(self.data.draw(count, seed))

    def draw_cheaply(self, count: int) -> Batch:
        """A batch on the device of which the time alone matters."""
        with of_the_users("the data"):
            return self.put(self.data.draw_cheaply(count))

    def stream(self, count: int, seed: int) -> Iterator[Batch]:
        """Batches to train on, on the device."""
        batches = self.data.stream(count, seed)
        while True:
            with of_the_users("the data"):
                batch = self.put(next(batches))
            yield batch

    @property
    def devices(self) -> list[int]:
        """The devices, beside the CPU, whose random numbers the training draws."""
        return [torch.cuda.current_device()] if self.device == "cuda" else []

    @torch.no_grad()
    def evaluate(self, model: nn.Module, samples: int, batch: int) -> float:
        """The mean loss of the first samples, in eval mode, taken in batches; of a
        function's data, of as many that it draws.
        """
        was_training = model.training
        model.eval()
        total = 0.0
        count = 0
        with of_the_users("the loss"):
            for one, size in self.data.first(samples, batch):
                total += float(self.loss(model, self.put(one))) * size
                count += size
        model.train(was_training)
        return total / count


@functools.cache
def load(train: str, device: str) -> OwnTraining:
    """The training that FILE:FUNCTION makes, once in a process.

    Raises:
        UsageError: where there is no such file or function, where it fails, and where
        what it returns is not as this module says.
    """
    path, _, name = train.rpartition(":")
    if not path or not name.isidentifier():
        raise UsageError(
            f"--train takes a file and a function in it, as my_script.py:make, not {train!r}"
        )
    function = _function(Path(path), name)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    with of_the_users(f"{name}()"):
        made = function()
    return _training(f"{Path(path).name}:{name}", made, device)


def _function(path: Path, name: str) -> Callable:
    if not path.is_file():
        raise UsageError(f"there is no file {path}: --train takes my_script.py:make")
    stem = path.stem if path.stem not in sys.modules else f"{path.stem}_to_train"
    spec = importlib.util.spec_from_file_location(stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file: --train takes my_script.py:make")
    module = importlib.util.module_from_spec(spec)
    sys.modules[stem] = module
    sys.path.insert(0, str(path.resolve().parent))  # as `python my_script.py` has it
    sys.argv = [str(path)]
    with of_the_users(f"importing {path.name}"):
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        known = [
            key for key, value in vars(module).items() if inspect.isfunction(value)
        ]
        near = texts.did_you_mean(name, known)
        raise UsageError(
            f"{path.name} has no function {name!r}{near}: it must return {_RETURNS}"
        )
    return function


def _training(name: str, made: object, device: str) -> OwnTraining:
    if isinstance(made, Mapping):
        parts = [made.get(key) for key in _KEYS]
        if set(made) - set(_KEYS) or any(part is None for part in parts[:3]):
            raise UsageError(
                f"{name} must return model, loss, data and maybe optimizer and samples_apart, and its dict "
                f"has {', '.join(map(str, made)) or 'nothing'}"
            )
    elif isinstance(made, Sequence) and len(made) in (3, 4):
        parts = [*made, None, None][: len(_KEYS)]
    else:
        raise UsageError(f"{name} must return {_RETURNS}, not {_described(made)}")
    model, loss, data, optimizer, samples_apart = parts
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"the model of {name} must be a torch.nn.Module, not {_described(model)}: "
            f"it returns {_RETURNS}"
        )
    if samples_apart is not None and not isinstance(samples_apart, bool):
        raise UsageError(
            f"samples_apart of {name} must be True or False, not {_described(samples_apart)}"
        )
    with of_the_users("moving the model to its device"):
        model.to(device)
    return OwnTraining(
        name,
        model,
        _loss(loss, device),
        _data(data),
        _optimizer(optimizer, model),
        device,
        bool(samples_apart),
    )


def _described(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        kinds = ", ".join(type(part).__name__ for part in value[:6])
        return f"{len(value)} values ({kinds})"
    return type(value).__name__


def _loss(loss: object, device: str) -> Callable[[nn.Module, Batch], torch.Tensor]:
    if not callable(loss):
        raise UsageError(
            f"the loss must be a loss module or a function loss(model, batch), not {_described(loss)}"
        )
    called = loss
    if getattr(loss, "__module__", None) == "torch.nn.functional":
        called = functools.partial(_criterion, loss)
    if isinstance(loss, nn.Module):
        if any(parameter.requires_grad for parameter in loss.parameters()):
            raise UsageError(
                "the loss has parameters of its own, whose gradients would not be seen: make it a part "
                "of the model, and give a function loss(model, batch)"
            )
        called = functools.partial(_criterion, loss.to(device))

    def checked(model: nn.Module, batch: Batch) -> torch.Tensor:
        with of_the_users("the loss"):
            value = called(model, batch)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            size = list(value.shape) if isinstance(value, torch.Tensor) else ""
            raise UsageError(
                "the loss must be one number, the mean over the batch, and is a "
                f"{type(value).__name__} {size}".rstrip()
            )
        return value

    return checked


def _criterion(loss: Callable, model: nn.Module, batch: Batch) -> torch.Tensor:
    if not isinstance(batch, Sequence) or len(batch) != 2:
        raise UsageError(
            f"a loss module takes batches (inputs, targets), and a batch is {_described(batch)}: give a "
            "function loss(model, batch)"
        )
    inputs, targets = batch
    return loss(model(inputs), targets)


def _optimizer(optimizer: object, model: nn.Module) -> torch.optim.Optimizer | None:
    if optimizer is None:
        return None
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(
            f"the optimizer must be a torch.optim.Optimizer, not {_described(optimizer)}"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError(
            "LBFGS takes several gradients for one step, so its step has no one batch: use another optimizer"
        )
    of_model = set(map(id, model.parameters()))
    groups = optimizer.param_groups
    if any(id(one) not in of_model for group in groups for one in group["params"]):
        raise UsageError(
            "the optimizer has parameters that the model has not: make it from model.parameters()"
        )
    if not all(
        isinstance(group.get("lr"), (float, int, torch.Tensor)) for group in groups
    ):
        raise UsageError(
            "the optimizer has no learning rate of its own: give it one, which is what depends on the batch"
        )
    if optimizer.state:  # of a training that goes on: to where the parameters are
        optimizer.load_state_dict(optimizer.state_dict())
    return optimizer


def _data(data: object) -> Data | DrawnData:
    if isinstance(data, torch_data.DataLoader):
        return _of_loader(data)
    if isinstance(data, torch_data.IterableDataset):
        raise UsageError(
            "of an IterableDataset no independent samples can be drawn: give a function batch(n, seed)"
        )
    if isinstance(data, torch.Tensor):
        return Data(lambda rows: data[_numbers(rows)], _length([data]))
    if _is_of_tensors(data):
        values = data.values() if isinstance(data, Mapping) else data
        return Data(functools.partial(_rows, data), _length(list(values)))
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return _of_dataset(data, torch_data.default_collate)
    if callable(data):
        return DrawnData(data)
    raise UsageError(
        "the data must be a DataLoader, a dataset with a length, tensors with one row per sample, or a "
        f"function batch(n, seed), not {_described(data)}"
    )


def _is_of_tensors(data: object) -> bool:
    """Whether it is a tuple or a dict of tensors (a list is one of samples)."""
    if isinstance(data, Mapping):
        values = list(data.values())
    else:
        values = list(data) if isinstance(data, tuple) else []
    return bool(values) and all(isinstance(one, torch.Tensor) for one in values)


def _length(tensors: Sequence[torch.Tensor]) -> int:
    lengths = {len(one) if one.dim() else 0 for one in tensors}
    if len(lengths) != 1 or lengths == {0}:
        raise UsageError(
            "the data's tensors must have one row per sample each, and have "
            f"{', '.join(map(str, sorted(lengths)))} rows"
        )
    return lengths.pop()


def _numbers(rows: Sequence[int]) -> torch.Tensor:
    return torch.tensor(list(rows))


def _rows(data: object, rows: Sequence[int]) -> Batch:
    numbers = _numbers(rows)
    if isinstance(data, Mapping):
        return {key: tensor[numbers] for key, tensor in data.items()}
    return tuple(tensor[numbers] for tensor in data)


def _of_loader(loader: torch_data.DataLoader) -> Data:
    if isinstance(loader.dataset, torch_data.IterableDataset):
        raise UsageError(
            "of a DataLoader over an IterableDataset no independent samples can be drawn: give a function "
            "batch(n, seed)"
        )
    if loader.batch_size is None or not isinstance(loader.sampler, _LOADERS):
        raise UsageError(
            f"the DataLoader draws by a {type(loader.sampler).__name__} of its own, which would be passed "
            "by: give a function batch(n, seed) that draws as it does"
        )
    return _of_dataset(loader.dataset, loader.collate_fn, loader.batch_size)


def _of_dataset(dataset: Sequence, collate: Callable, batch: int | None = None) -> Data:
    if not len(dataset):
        raise UsageError("the data has no samples")

    def take(rows: Sequence[int]) -> Batch:
        samples = {row: dataset[row] for row in set(rows)}
        return collate([samples[row] for row in rows])

    return Data(take, len(dataset), batch)


@contextlib.contextmanager
def of_the_users(what: str) -> Iterator[None]:
    """What goes wrong in the user's own code is a UsageError with its place; memory
    that has run out, and errors that are in a line already, stay what they are.
    """
    try:
        yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        if memory.is_out_of_memory(error):
            raise
        raise UsageError(
            f"{what} failed{_place(error)}: {texts.error_line(error)}"
        ) from error


def _place(error: BaseException) -> str:
    """ " at my_script.py:12": the innermost line outside of libraries and of this file."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((__file__, _LIBRARY, "<"))
        and "site-packages" not in frame.filename
    ]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
