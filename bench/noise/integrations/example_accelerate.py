"""A training loop with accelerate, of two micro-batches a step:

accelerate launch --num_processes 2 bench/noise/integrations/example_accelerate.py
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchline import NoiseMeter

ACCUMULATE = 2


def main() -> None:
    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATE)
    torch.manual_seed(0)
    x = torch.randn(512, 16)
    data = TensorDataset(x, x.square().sum(1, keepdim=True))
    net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
    model, optimizer, loader = accelerator.prepare(
        net, torch.optim.SGD(net.parameters(), lr=0.01), DataLoader(data, batch_size=8)
    )
    meter = NoiseMeter(model, reduction="mean")
    batches = iter(loader)
    for _ in range(len(loader) // ACCUMULATE):
        optimizer.zero_grad()
        with meter.every(2, accumulate=ACCUMULATE):  # all ranks meter the same steps
            for _ in range(ACCUMULATE):
                inputs, targets = next(batches)
                with accelerator.accumulate(model):
                    loss = nn.functional.mse_loss(model(inputs), targets)
                    accelerator.backward(loss)  # divides it
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    if accelerator.is_main_process:
        print(meter.history())
    accelerator.end_training()


if __name__ == "__main__":
    main()
