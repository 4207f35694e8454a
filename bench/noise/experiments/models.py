"""`batchline noise-models`: models that others wrote, small and with random weights; how
right NoiseMeter is on each, and what it costs beside Opacus and BackPACK.

Right is the squared norm of each parameter's gradient of each sample, against a loop of
single samples in fp64. Steps are timed in turns, as `batchline noise-cost` does it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tabulate import tabulate
from torch import nn
from torch.nn import functional

from batchline.bench import texts
from batchline.bench.errors import Missing, UsageError
from batchline.bench.measure.machine.state import Guard, NoGuard, guard_of
from batchline.bench.noise.experiments import cost
from batchline.bench.noise.experiments.cost import Cost, Way
from batchline.bench.noise.meter import NoiseMeter
from batchline.bench.noise.workloads import Samples, Workload
from batchline.bench.units import duration

CLEAN = 0
WRONG = 1
NOT_MEASURED = 3
RIGHT = 1e-5
BATCH = 8
TOKENS = 64
WIDTH = 256
VOCABULARY = 512
CLASSES = 10
_PIXELS = 32
_SAMPLES = 64
_OF_WHOLE = 1e-6  # of its sample's n: less is rounding, as that of a key's bias
_SEED = 0
_RATE = 0.01  # of no use here, where nothing is trained
_WAYS = (cost.PLAIN, cost.METERED, cost.OPACUS, cost.BACKPACK)


def _ids() -> tuple[Samples, Samples]:
    """Random tokens, and the ones to say for them."""
    generator = torch.Generator().manual_seed(_SEED)
    x, y = (
        torch.randint(VOCABULARY, (_SAMPLES, TOKENS), generator=generator)
        for _ in range(2)
    )
    return Samples(x, y), Samples(x[:0], y[:0])


def _images() -> tuple[Samples, Samples]:
    generator = torch.Generator().manual_seed(_SEED)
    x = torch.randn(_SAMPLES, 3, _PIXELS, _PIXELS, generator=generator)
    y = torch.randint(CLASSES, (_SAMPLES,), generator=generator)
    return Samples(x, y), Samples(x[:0], y[:0])


def _of_tokens(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[B]: the mean over a sample's tokens."""
    return functional.cross_entropy(
        logits.transpose(1, 2), targets, reduction="none"
    ).mean(1)


def _says_tokens(model, ids, targets):
    return _of_tokens(model(input_ids=ids).logits, targets)


def _translates(model, ids, targets):
    return _of_tokens(model(input_ids=ids, decoder_input_ids=ids).logits, targets)


def _sees(model, images, targets):
    logits = model(pixel_values=images).logits
    return functional.cross_entropy(logits, targets, reduction="none")


def _plain_tokens(model, ids, targets):
    return _of_tokens(model(ids), targets)


def _plain_images(model, images, targets):
    return functional.cross_entropy(model(images), targets, reduction="none")


def _gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=TOKENS,
            n_embd=WIDTH,
            n_layer=2,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
    )


def _bert():
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=TOKENS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def _t5():
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            d_kv=WIDTH // 4,
            d_ff=4 * WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            use_cache=False,
            decoder_start_token_id=0,
        )
    )


def _rotary(kind: str, config: str, **options) -> nn.Module:
    """A model and its configuration from transformers, by name."""
    import transformers

    return getattr(transformers, kind)(
        getattr(transformers, config)(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            use_cache=False,
            **options,
        )
    )


def _llama():
    return _rotary(
        "LlamaForCausalLM",
        "LlamaConfig",
        intermediate_size=2 * WIDTH,
        num_key_value_heads=2,
    )


def _gpt_neox():
    return _rotary("GPTNeoXForCausalLM", "GPTNeoXConfig", intermediate_size=4 * WIDTH)


def _mixtral():
    return _rotary(
        "MixtralForCausalLM",
        "MixtralConfig",
        intermediate_size=WIDTH,
        num_key_value_heads=2,
        num_local_experts=4,
    )


def _lora():
    from peft import LoraConfig, get_peft_model

    options = LoraConfig(
        r=8,
        target_modules=["q_proj", "v_proj", "o_proj", "up_proj"],
        init_lora_weights=False,
    )
    return get_peft_model(_llama(), options)


def _vit():
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=4 * WIDTH,
            image_size=_PIXELS,
            patch_size=4,
            num_labels=CLASSES,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def _convnext():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return ConvNextForImageClassification(
        ConvNextConfig(
            hidden_sizes=[32, 64, 128],
            depths=[1, 1, 1],
            num_stages=3,
            patch_size=2,
            layer_scale_init_value=0.5,
            num_labels=CLASSES,
        )
    )


class Residual(nn.Module):
    """Two 3x3 convolutions with GroupNorm, around which the input goes."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.first_norm = nn.GroupNorm(8, after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.second_norm = nn.GroupNorm(8, after)
        self.around = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x):
        y = functional.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        return functional.relu(y + self.around(x))


def _resnet():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False),
        nn.GroupNorm(8, 32),
        nn.ReLU(),
        Residual(32, 32, 1),
        Residual(32, 64, 2),
        Residual(64, 128, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, CLASSES),
    )


class LanguageModel(nn.Module):
    """An embedding, a body [B,T,D] → [B,T,D], and an output layer."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH)
        self.body = body
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids):
        y = self.body(self.token(ids))
        return self.head(y[0] if isinstance(y, tuple) else y)


def _lstm():
    return LanguageModel(nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True))


def _encoder():
    layer = nn.TransformerEncoderLayer(
        WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True
    )
    return LanguageModel(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


@dataclass(frozen=True)
class Model:
    """`needs`: the modules that its making imports, beside torch."""

    workload: Workload
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.workload.name

    @property
    def why_absent(self) -> str | None:
        missing = [name for name in self.needs if not importlib.util.find_spec(name)]
        if not missing:
            return None
        return (
            f"{' and '.join(missing)} not installed: `pip install 'batchline[models]'`"
        )


def _model(name, title, make, losses, load, *needs) -> Model:
    return Model(Workload(name, title, make, losses, load, BATCH, _RATE), needs)


MODELS = tuple(
    _model(*row)
    for row in (
        ("GPT-2", "2 layers", _gpt2, _says_tokens, _ids, "transformers"),
        ("BERT", "2 layers", _bert, _says_tokens, _ids, "transformers"),
        ("T5", "2 + 2 layers", _t5, _translates, _ids, "transformers"),
        ("Llama", "2 layers", _llama, _says_tokens, _ids, "transformers"),
        ("GPT-NeoX", "2 layers", _gpt_neox, _says_tokens, _ids, "transformers"),
        ("ViT", "2 layers", _vit, _sees, _images, "transformers"),
        ("ConvNeXt", "3 stages", _convnext, _sees, _images, "transformers"),
        ("ResNet, GroupNorm", "3 blocks", _resnet, _plain_images, _images),
        ("LSTM", "2 layers", _lstm, _plain_tokens, _ids),
        ("nn.TransformerEncoder", "2 layers", _encoder, _plain_tokens, _ids),
        ("Mixtral (MoE)", "4 experts", _mixtral, _says_tokens, _ids, "transformers"),
        ("Llama, LoRA", "rank 8", _lora, _says_tokens, _ids, "transformers", "peft"),
    )
)


@dataclass(frozen=True)
class Row:
    """Of one model: the largest relative error of n, layers that torch.func took apart,
    and the costs of each way of a step; or why there is none.
    """

    model: str
    parameters: int
    error: float | Missing
    fallbacks: tuple[str, ...] = ()
    costs: tuple[Cost, ...] = ()

    @property
    def is_wrong(self) -> bool:
        return not isinstance(self.error, Missing) and not self.error <= RIGHT

    @property
    def is_timed(self) -> bool:
        return any(row.time for row in self.costs)


def run(
    device: str, seconds: float, only: Sequence[str] = (), busy: bool = False
) -> int:
    """Print the table. 1 where n is off by more than 1e-5 of a model that is not
    refused, 3 where nothing could be timed.

    Args:
        seconds: for the steps of each model.
        only: names, or parts of names, of models; none of them are all.
        busy: time steps beside other processes too, and believe it.

    Raises:
        UsageError: for a name that no model has.
    """
    guard = NoGuard() if busy else guard_of(device)
    rows = []
    for model in chosen(only):
        with _quiet():
            rows.append(measure(model, device, seconds, guard))
    print(table(rows))
    if any(row.is_wrong for row in rows):
        return WRONG
    return CLEAN if any(row.is_timed for row in rows) else NOT_MEASURED


def chosen(only: Sequence[str]) -> list[Model]:
    """The models with one of these parts in their names, in any case of letters."""
    for part in only:
        if not any(part.lower() in model.name.lower() for model in MODELS):
            names = ", ".join(model.name for model in MODELS)
            raise UsageError(f"no model is called {part!r}: there are {names}")
    return [
        model
        for model in MODELS
        if not only or any(part.lower() in model.name.lower() for part in only)
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What libraries say of their own models is of no use here."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def measure(
    model: Model, device: str, seconds: float, guard: Guard | NoGuard = NoGuard()
) -> Row:
    """One row; whatever a library or the meter says against the model is its reason."""
    if model.why_absent:
        return Row(model.name, 0, Missing(model.why_absent))
    workload = model.workload
    net = workload.model(_SEED, device)
    parameters = sum(one.numel() for one in net.parameters())
    x, y = workload.train.draw(BATCH, torch.Generator().manual_seed(_SEED), device)
    fallbacks: tuple[str, ...] = ()
    try:
        meter = NoiseMeter(net, reduction="mean")
        with meter:
            workload.losses(net, x, y).mean().backward()
        statistics = meter.reading.parameters
        norms = {name: one.squared_norms for name, one in statistics.items()}
        fallbacks = tuple(meter.fallbacks.values())
    except UsageError as error:
        wrong: float | Missing = Missing(f"refused: {error}")
    else:
        try:
            wrong = worst_error(norms, exact_norms(workload, net, x, y))
        except RuntimeError as error:  # an operation that knows no fp64
            wrong = Missing(f"not held against fp64: {texts.error_line(error)}")
    costs = cost.costs(workload, BATCH, seconds, device, guard, _ways())
    return Row(model.name, parameters, wrong, fallbacks, tuple(costs))


def _ways() -> tuple[Way, ...]:
    return tuple(way for way in cost.WAYS if way.name in _WAYS)


def exact_norms(
    workload: Workload, net: nn.Module, x: torch.Tensor, y: torch.Tensor
) -> dict[str, np.ndarray]:
    """n[B] of each trained parameter, by a backward pass for each sample in fp64."""
    exact = copy.deepcopy(net).double()
    if hasattr(exact, "set_experts_implementation"):  # grouped_mm knows no fp64
        exact.set_experts_implementation("eager")
    trained = {
        name: parameter
        for name, parameter in exact.named_parameters()
        if parameter.requires_grad
    }
    x = x.double() if x.is_floating_point() else x
    rows = []
    for b in range(len(x)):
        loss = workload.losses(exact, x[b : b + 1], y[b : b + 1]).sum()
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        rows.append([0.0 if g is None else g.square().sum().item() for g in gradients])
    return {name: np.array(n) for name, n in zip(trained, zip(*rows))}


def worst_error(
    norms: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray]
) -> float:
    """The largest |n − exact|/exact over parameters and samples, where an n below a
    millionth of its sample's whole counts as that.
    """
    whole = sum(exact.values())
    errors = []
    for name, n in exact.items():
        ours = norms.get(name, 0.0)
        errors.append(np.max(np.abs(ours - n) / np.maximum(n, _OF_WHOLE * whole)))
    return float(max(errors))


def table(rows: Sequence[Row]) -> str:
    """The rows as people read them, and below them what is to be said of some."""
    headers = ("model", "parameters", "worst error of n", "plain step")
    headers = *headers, *(name.partition(",")[0] for name in _WAYS[1:])
    text = tabulate(map(_cells, rows), headers=headers, disable_numparse=True)
    notes = [line for row in rows for line in _notes(row)]
    return "\n".join([text, *([""] if notes else []), *notes])


def _cells(row: Row) -> tuple[str, ...]:
    by_way = {one.way: one for one in row.costs}
    if not by_way:
        return row.model, "", "not installed", "", "", "", ""
    is_known = not isinstance(row.error, Missing)
    error = f"{row.error:.1e}" if is_known else row.error.reason.partition(":")[0]
    plain = by_way[cost.PLAIN].time
    first = row.model, f"{row.parameters:,}", error
    return (
        *first,
        duration(plain.median_s) if plain else "",
        *(_over(by_way[way]) for way in _WAYS[1:]),
    )


def _over(one: Cost) -> str:
    """How many times the plain step, and whether the way leaves parameters out."""
    if isinstance(one.time, Missing):
        return "can't"
    star = "*" if one.left_out else ""
    return f"{1 + one.time.overhead.value:.2f}x{star}"


def _notes(row: Row) -> list[str]:
    notes = []
    if isinstance(row.error, Missing):
        notes.append(f"{row.model}: {row.error}")
    if row.fallbacks:
        kinds = ", ".join(sorted(set(row.fallbacks)))
        notes.append(f"{row.model}: {kinds} went through torch.func")
    for one in row.costs:
        if isinstance(one.time, Missing) and one.way != cost.METERED:
            notes.append(f"{row.model}, {one.way}: {one.time.reason}")
        elif one.left_out:
            count = len(one.left_out)
            notes.append(f"{row.model}, {one.way}: * leaves out {count} parameters")
    return notes
