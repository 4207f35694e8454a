"""Trainings as a user has them, for `batchline advise --train`: make functions, right and
wrong ones.
"""

import os
import signal
from collections import UserDict

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

IN, OUT, SAMPLES = 6, 3, 200


def tensors(samples=SAMPLES):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, IN, generator=generator)
    truth = torch.randn(IN, OUT, generator=generator)
    noise = torch.randn(samples, OUT, generator=generator)
    return x, (x @ truth + noise).argmax(1)


def net():
    return nn.Sequential(nn.Linear(IN, 8), nn.Tanh(), nn.Linear(8, OUT))


def make():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, nn.CrossEntropyLoss(), tensors(), optimizer


def with_adam():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return {
        "model": model,
        "loss": nn.CrossEntropyLoss(),
        "data": DataLoader(TensorDataset(*tensors()), batch_size=16, shuffle=True),
        "optimizer": optimizer,
    }


def of_a_function():
    def batch(n, seed):
        generator = torch.Generator().manual_seed(seed)
        return {"x": torch.randn(n, IN, generator=generator)}

    return net(), lambda model, batch: model(batch["x"]).square().mean(), batch


def of_a_list():
    return net(), nn.functional.cross_entropy, list(zip(*tensors()))


def of_a_dict():
    x, y = tensors()
    loss = nn.CrossEntropyLoss()
    data = {"x": x, "y": y}
    return net(), lambda model, batch: loss(model(batch["x"]), batch["y"]), data


class Encoding(UserDict):
    """A batch as tokenizers give it, of which torch's trees see nothing."""

    def to(self, device):
        return self


def _encoding(samples):
    x, y = zip(*samples)
    return Encoding(x=torch.stack(x), y=torch.stack(y))


def of_encodings(reduction="mean"):
    loss = nn.CrossEntropyLoss(reduction=reduction)
    loader = DataLoader(TensorDataset(*tensors()), batch_size=8, collate_fn=_encoding)
    return net(), lambda model, batch: loss(model(batch["x"]), batch["y"]), loader


def summed_of_encodings():
    return of_encodings("sum")


class Opaque:
    def __init__(self, x):
        self.x = x


def of_unseen_batches():
    model = net()

    def batch(n, seed):
        return Opaque(torch.randn(n, IN))

    return model, lambda model, batch: model(batch.x).square().mean(), batch


def _at_most(most, then):
    """A loss that takes no larger batch."""
    loss = nn.CrossEntropyLoss()

    def checked(model, batch):
        inputs, targets = batch
        if len(inputs) > most:
            then()
        return loss(model(inputs), targets)

    return checked


def _run_out():
    torch.empty(2**50)


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def up_to_20():
    model, _, data, optimizer = make()
    return model, _at_most(20, _run_out), data, optimizer


def killed_above_20():
    model, _, data, optimizer = make()
    return model, _at_most(20, _die), data, optimizer


def with_dropout():
    model = nn.Sequential(nn.Linear(IN, 8), nn.Dropout(0.5), nn.Linear(8, OUT))
    return model, nn.CrossEntropyLoss(), tensors()


class ByRow(nn.Linear):
    """Of a sample's row in the batch, whatever the other rows are."""

    def forward(self, x):
        rows = torch.arange(len(x), device=x.device) % 3
        return super().forward(x * (1 + rows[:, None]))


def by_row():
    model = nn.Sequential(ByRow(IN, 8), nn.Tanh(), nn.Linear(8, OUT))
    return model, nn.CrossEntropyLoss(), tensors()


def by_row_on_my_word():
    model, loss, data = by_row()
    return {"model": model, "loss": loss, "data": data, "samples_apart": True}


def by_row_on_a_word():
    return {**by_row_on_my_word(), "samples_apart": "False"}


def with_mask():
    """A mean over the tokens of the batch that are there."""
    x, y = tensors()

    def loss(model, batch):
        inputs, targets = batch
        weights = (inputs[:, 0] > 0).float() + 1
        losses = nn.functional.cross_entropy(model(inputs), targets, reduction="none")
        return (losses * weights).sum() / weights.sum()

    return net(), loss, (x, y)


def drawing():
    def loss(model, batch):
        inputs = batch[0]
        return (model(inputs + torch.randn_like(inputs))).square().mean()

    return net(), loss, tensors()


# What is wrong, by what must be said of it.


def fails():
    raise OSError("no such data")


def exits():
    raise SystemExit(3)


def nothing():
    return None


def two():
    return net(), nn.MSELoss()


def no_model():
    return "resnet", nn.MSELoss(), tensors()


def summed():
    return net(), nn.CrossEntropyLoss(reduction="sum"), tensors()


def of_each():
    return net(), nn.CrossEntropyLoss(reduction="none"), tensors()


def contrasting():
    def loss(model, batch):
        out = nn.functional.normalize(model(batch[0]))
        return nn.functional.cross_entropy(out @ out.T, torch.arange(len(out)))

    return net(), loss, tensors()


def of_another_model():
    model = net()
    loss = nn.CrossEntropyLoss()
    return model, lambda _, batch: loss(model(batch[0]), batch[1]), tensors()


def wrong_width():
    return nn.Linear(IN + 1, OUT), nn.CrossEntropyLoss(), tensors()


def unequal():
    x, y = tensors()
    return net(), nn.CrossEntropyLoss(), (x, y[:-1])


def others_optimizer():
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    return net(), nn.CrossEntropyLoss(), tensors(), optimizer


def lbfgs():
    model = net()
    return (
        model,
        nn.CrossEntropyLoss(),
        tensors(),
        torch.optim.LBFGS(model.parameters()),
    )


def with_batch_norm():
    model = nn.Sequential(nn.Linear(IN, 8), nn.BatchNorm1d(8), nn.Linear(8, OUT))
    return model, nn.CrossEntropyLoss(), tensors()


def ragged():
    samples = [(torch.randn(length), 0) for length in (3, 4, 5)]
    return net(), nn.CrossEntropyLoss(), samples


def not_finite():
    return net(), lambda model, batch: model(batch[0]).mean() * float("nan"), tensors()


def no_data():
    return net(), nn.CrossEntropyLoss(), 3


WRONG = {
    "fails": "fails() failed at own_trainings.py:{line}: OSError: no such data",
    "exits": "SystemExit: 3",
    "nothing": "must return (model, loss, data) or (model, loss, data, optimizer), not NoneType",
    "two": "not 2 values (Sequential, MSELoss)",
    "no_model": "must be a torch.nn.Module, not str",
    "summed": "the loss is a sum over the batch: return the mean",
    "summed_of_encodings": "the loss is a sum over the batch: return the mean",
    "of_each": "the loss must be one number, the mean over the batch, and is a Tensor [8]",
    "contrasting": "the loss of a sample depends on the others",
    "by_row": 'return a dict that has "samples_apart": True too',
    "by_row_on_a_word": "samples_apart of own_trainings.py:by_row_on_a_word must be True or False, not str",
    "of_another_model": "loss(model, batch) must use the model that it is given",
    "wrong_width": "the loss failed: RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    "unequal": "must have one row per sample each, and have 199, 200 rows",
    "others_optimizer": "make it from model.parameters()",
    "lbfgs": "use another optimizer",
    "with_batch_norm": "mixes the samples of a batch",
    "ragged": "the data failed: RuntimeError: stack expects each tensor to be equal size",
    "not_finite": "the loss of the untrained model is nan: it must be finite",
    "no_data": "a function batch(n, seed), not int",
    "mkae": "own_trainings.py has no function 'mkae' (did you mean make?)",
}
