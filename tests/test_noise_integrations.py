"""NoiseMeter within the training loops of other libraries: small real runs, whose
readings are those of a loop over single samples.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.metered_steps import assert_whole, single_samples

ROOT = Path(__file__).resolve().parents[1]
X = torch.randn(24, 4, generator=torch.Generator().manual_seed(2))
Y = X.flip(1)[:, :3].tanh()


def small_net():
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def of_samples(net, rows):
    """g[B,P] of these rows, in fp64."""
    return single_samples(
        net,
        lambda net: (
            functional.mse_loss(net(X[row : row + 1].double()), Y[row, None].double())
            for row in rows
        ),
    )


def test_the_callbacks_are_imported_when_asked_for():
    code = (
        "import sys, batchline.integrations\n"
        "assert not {'torch', 'transformers', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    import batchline.integrations

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        batchline.integrations.Nothing


class ForTrainer(nn.Module):
    """A model as transformers' Trainer has it."""

    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, x, labels):
        y = self.net(x)
        return {"loss": functional.mse_loss(y, labels), "logits": y}


@pytest.mark.commands
@pytest.mark.parametrize("accumulate", [1, 2])
def test_transformers_trainer(tmp_path, accumulate):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from batchline.integrations import TrainerNoise

    model = ForTrainer()
    before = copy.deepcopy(model.net)
    noise = TrainerNoise(every=2)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=6,
        gradient_accumulation_steps=accumulate,
        learning_rate=0.0,
        max_grad_norm=1e-3,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        train_sampling_strategy="sequential",
        disable_tqdm=True,
        save_strategy="no",
    )
    data = [{"x": x, "labels": y} for x, y in zip(X, Y)]
    transformers.Trainer(
        model, arguments, train_dataset=data, callbacks=[noise]
    ).train()
    assert len(noise.meter.history()) == 2
    start = 12 * accumulate % 24  # of the third step
    rows = [(start + row) % 24 for row in range(6 * accumulate)]
    assert_whole(noise.meter.reading, of_samples(before, rows), rel=1e-5)


@pytest.mark.commands
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_trainer(tmp_path, accumulate):
    lightning = pytest.importorskip("lightning")
    from batchline.integrations import LightningNoise

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = small_net()

        def training_step(self, batch, _):
            x, y = batch
            return functional.mse_loss(self.net(x), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Module()
    noise = LightningNoise(every=2, model="net")
    data = torch.utils.data.TensorDataset(X, Y)
    lightning.Trainer(
        callbacks=[noise],
        max_steps=4 // accumulate,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1e-3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
    ).fit(module, torch.utils.data.DataLoader(data, batch_size=6))
    rows = range(12, 18) if accumulate == 1 else range(12)
    assert len(noise.meter.history()) == 2 // accumulate
    assert_whole(noise.meter.reading, of_samples(module.net, rows), rel=1e-5)


def run_on_two_ranks(*words):
    """What a script prints under torchrun, on two ranks."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    port = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    own = {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [*launch, *port, *words],
        cwd=ROOT,
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchrun", "accelerate"])
def test_the_examples_run_on_two_ranks(name):
    if name == "accelerate":
        pytest.importorskip("accelerate")
    module = f"batchline.bench.noise.integrations.example_{name}"
    printed = run_on_two_ranks("-m", module)
    assert "gradient noise over 8 steps" in printed and "B_simple" in printed


TRAINER = """
import sys, torch, transformers
from batchline.integrations import TrainerNoise
from tests.test_noise_integrations import ForTrainer, X, Y

noise = TrainerNoise(every=2)
arguments = transformers.TrainingArguments(
    output_dir=sys.argv[1], max_steps=3, per_device_train_batch_size=3,
    gradient_accumulation_steps=2, learning_rate=0.0, max_grad_norm=1e-3, report_to=[],
    use_cpu=True, disable_tqdm=True, save_strategy="no", ddp_backend="gloo",
    train_sampling_strategy="sequential",
)
data = [{"x": x, "labels": y} for x, y in zip(X, Y)]
model = ForTrainer()
transformers.Trainer(model, arguments, train_dataset=data, callbacks=[noise]).train()
if arguments.process_index == 0:
    whole = noise.meter.reading.whole
    print("READ", whole.batch, whole.mean_square, whole.squared_norms.sum())
"""


@pytest.mark.slow
def test_transformers_trainer_on_two_ranks(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    script = tmp_path / "train.py"
    script.write_text(TRAINER)
    printed = run_on_two_ranks(str(script), str(tmp_path))
    g = of_samples(small_net(), range(12))  # the third step is the first again
    batch, square, norms = printed.partition("READ ")[2].split()[:3]
    assert batch == "12"
    assert float(square) == pytest.approx(g.mean(0).square().sum().item(), rel=1e-5)
    assert float(norms) == pytest.approx(g.square().sum().item(), rel=1e-5)
