"""A training loop of one's own on many devices:

torchrun --nproc-per-node 2 -m batchline.bench.noise.integrations.example_torchrun
"""

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from batchline import NoiseMeter


def main() -> None:
    on_gpus = torch.cuda.is_available()
    distributed.init_process_group("nccl" if on_gpus else "gloo")
    rank = distributed.get_rank()
    device = torch.device("cuda", rank) if on_gpus else torch.device("cpu")
    torch.manual_seed(0)
    x = torch.randn(512, 16)
    data = TensorDataset(x, x.square().sum(1, keepdim=True))
    sampler = DistributedSampler(data, drop_last=True)
    net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1)).to(device)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    meter = NoiseMeter(model, reduction="mean")
    for inputs, targets in DataLoader(data, batch_size=16, sampler=sampler):
        optimizer.zero_grad()
        with meter.every(2):  # all ranks meter the same steps
            output = model(inputs.to(device))
            nn.functional.mse_loss(output, targets.to(device)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    if rank == 0:
        print(meter.history())
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
