"""What is trained to see the noise of real gradients: a model, its data, and the loss of
each sample.

All are offline, small enough for two cores, and drawn from a seed. `workloads` has them
by name.

- digits: scikit-learn's 1,797 images of 8x8 pixels, and a net of two layers that
  classifies them.
- characters: a small transformer on English prose, Python's own language reference
  (pydoc_data.topics, 0.5 million characters). The text is that of the Python that runs
  it, so a record names its version.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from batchline.kernels.digits import CLASSES, HIDDEN, PIXELS, images

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Samples:
    """Inputs and targets, one row per sample, on the CPU."""

    inputs: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, rows: torch.Tensor, device: str) -> Batch:
        """The samples of these row numbers, on the device."""
        return self.inputs[rows].to(device), self.targets[rows].to(device)

    def draw(self, batch: int, generator: torch.Generator, device: str) -> Batch:
        """Independent samples, with replacement: what the noise scale's estimators
        assume.
        """
        return self.rows(
            torch.randint(len(self), (batch,), generator=generator), device
        )

    def epoch(
        self, batch: int, generator: torch.Generator, device: str
    ) -> Iterator[Batch]:
        """Every sample once, in a new order, in batches; what is left over at the end
        is a smaller one.
        """
        for rows in torch.randperm(len(self), generator=generator).split(batch):
            yield self.rows(rows, device)

    def epochs(
        self, batch: int, generator: torch.Generator, device: str
    ) -> Iterator[Batch]:
        """Epochs without end."""
        while True:
            yield from self.epoch(batch, generator, device)


@dataclass(frozen=True)
class Workload:
    """A training problem. `title` says what it is and whose data it has.

    `losses`: model, inputs, targets → [B], each sample's own loss (a mean over its
    tokens, where it has some), of which training takes the mean. `load` gives the
    samples to train on and those held out; it is asked once. `batch` and
    `learning_rate` are those of plain SGD at which the workload trains well.
    """

    name: str
    title: str
    make_model: Callable[[], nn.Module]
    losses: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
    load: Callable[[], tuple[Samples, Samples]]
    batch: int
    learning_rate: float

    def model(
        self, seed: int, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> nn.Module:
        """The untrained model; the same for a seed whatever the device, and torch's own
        generator is left as it was.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make_model().to(device, dtype)

    @functools.cached_property
    def _data(self) -> tuple[Samples, Samples]:
        return self.load()

    @property
    def train(self) -> Samples:
        return self._data[0]

    @property
    def held_out(self) -> Samples:
        return self._data[1]


_HELD_OUT_DIGITS = 360
_SPLIT_SEED = 0


def _digit_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)
    )


def _digit_losses(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    return functional.cross_entropy(model(inputs), targets, reduction="none")


def _load_digits() -> tuple[Samples, Samples]:
    x, y = images()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    held_out = order[:_HELD_OUT_DIGITS]
    train = order[_HELD_OUT_DIGITS:]
    return Samples(x[train], y[train]), Samples(x[held_out], y[held_out])


digits = Workload(
    "digits",
    "an MLP (64 → 128 → 10, ReLU) on scikit-learn's handwritten digits",
    _digit_model,
    _digit_losses,
    _load_digits,
    batch=32,
    learning_rate=0.1,
)


TOKENS = 64
WIDTH = 64
HEADS = 4
BLOCKS = 2
_HELD_OUT_TEXT = 0.1  # the last tenth of the text


class _Block(nn.Module):
    """Pre-norm attention and MLP, each added to what came in."""

    def __init__(self):
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.mlp_norm = nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.mixed = nn.Linear(WIDTH, WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        heads = self.query_key_value(self.attention_norm(x)).view(
            batch, tokens, 3, HEADS, WIDTH // HEADS
        )
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True
        )
        x = x + self.mixed(seen.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return x + self.down(functional.gelu(self.up(self.mlp_norm(x))))


class Transformer(nn.Module):
    """Characters[B,T] (numbers below `alphabet`) → logits[B,T,alphabet] of the next
    one.
    """

    def __init__(self, alphabet: int):
        super().__init__()
        self.token = nn.Embedding(alphabet, WIDTH)
        self.position = nn.Embedding(TOKENS, WIDTH)
        nn.init.normal_(self.token.weight, std=0.02)  # GPT-2's
        nn.init.normal_(self.position.weight, std=0.02)
        self.blocks = nn.Sequential(*(_Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, alphabet)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(
            characters.shape[1], device=characters.device
        ).expand_as(characters)
        return self.head(
            self.norm(self.blocks(self.token(characters) + self.position(positions)))
        )


def language_reference() -> str:
    """The language reference, its topics in the order of their names."""
    from pydoc_data import topics

    return "\n".join(topics.topics[name] for name in sorted(topics.topics))


def _character_losses(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    return functional.cross_entropy(
        model(inputs).transpose(1, 2), targets, reduction="none"
    ).mean(1)


def _load_characters() -> tuple[Samples, Samples]:
    characters = language_reference()
    numbers = {
        character: number for number, character in enumerate(sorted(set(characters)))
    }
    encoded = torch.tensor([numbers[character] for character in characters])
    cut = int(len(encoded) * (1 - _HELD_OUT_TEXT))
    return _windows(encoded[:cut]), _windows(encoded[cut:])


def _windows(encoded: torch.Tensor) -> Samples:
    """The text cut into windows of TOKENS characters, and the same a character later."""
    windows = encoded.unfold(0, TOKENS + 1, TOKENS)
    return Samples(windows[:, :-1], windows[:, 1:])


characters = Workload(
    "characters",
    f"a transformer ({BLOCKS} blocks, width {WIDTH}, {TOKENS} characters) on the English text of "
    "Python's language reference",
    lambda: Transformer(len(set(language_reference()))),
    _character_losses,
    _load_characters,
    batch=16,
    learning_rate=0.3,
)


workloads = {workload.name: workload for workload in (digits, characters)}
