"""A small character transformer on English prose: Python's own language reference,
which pydoc carries.

The text is that of the Python that runs it (pydoc_data.topics, 0.5 million characters),
so a record names its version.
"""

import torch
from torch import nn
from torch.nn import functional

from batchline.bench.noise.workloads.workload import Samples, Workload

TOKENS, WIDTH, HEADS, BLOCKS = 64, 64, 4, 2
_HELD_OUT = 0.1  # the last tenth of the text


class _Block(nn.Module):
    """Pre-norm attention and MLP, each added to what came in."""

    def __init__(self):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query_key_value, self.mixed = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(
            WIDTH, WIDTH
        )
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

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
        self.token, self.position = nn.Embedding(alphabet, WIDTH), nn.Embedding(
            TOKENS, WIDTH
        )
        nn.init.normal_(self.token.weight, std=0.02)  # GPT-2's
        nn.init.normal_(self.position.weight, std=0.02)
        self.blocks = nn.Sequential(*(_Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, alphabet)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(
            characters.shape[1], device=characters.device
        ).expand_as(characters)
        return self.head(
            self.norm(self.blocks(self.token(characters) + self.position(positions)))
        )


def text() -> str:
    """The language reference, its topics in the order of their names."""
    from pydoc_data import topics

    return "\n".join(topics.topics[name] for name in sorted(topics.topics))


def _losses(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    return functional.cross_entropy(
        model(inputs).transpose(1, 2), targets, reduction="none"
    ).mean(1)


def _load() -> tuple[Samples, Samples]:
    characters = text()
    numbers = {
        character: number for number, character in enumerate(sorted(set(characters)))
    }
    encoded = torch.tensor([numbers[character] for character in characters])
    cut = int(len(encoded) * (1 - _HELD_OUT))
    return _windows(encoded[:cut]), _windows(encoded[cut:])


def _windows(encoded: torch.Tensor) -> Samples:
    """The text cut into windows of TOKENS characters, and the same a character later."""
    windows = encoded.unfold(0, TOKENS + 1, TOKENS)
    return Samples(windows[:, :-1], windows[:, 1:])


characters = Workload(
    "characters",
    f"a transformer ({BLOCKS} blocks, width {WIDTH}, {TOKENS} characters) on the English text of "
    "Python's language reference",
    lambda: Transformer(len(set(text()))),
    _losses,
    _load,
    batch=16,
    learning_rate=0.3,
)
