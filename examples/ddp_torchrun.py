"""Two tasks under DistributedDataParallel: a plain loop, weights that all ranks share, and a checkpoint to resume from.

    torchrun --nproc_per_node=2 examples/ddp_torchrun.py      # two processes on a CPU
    python examples/ddp_torchrun.py                           # the same loop in one process

With ``--checkpoint FILE`` a restarted run continues after the last whole epoch, with the same numbers.

The data are simulated: readings of a machine, its remaining life in thousands of hours (``rul``; errors near the end count
more), and whether it is degraded (``health``). Losses and norms are printed by rank 0.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from mtl_axes import compose


class Net(nn.Module):
    """A shared trunk and a head per task."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 32), nn.ReLU())
        self.rul, self.health = nn.Linear(32, 1), nn.Linear(32, 2)

    def forward(self, readings: Tensor) -> dict[str, Tensor]:
        """Return thousands of hours (N,) and logits (N, 2)."""
        shared = self.trunk(readings)
        return {"rul": 3 + self.rul(shared).squeeze(-1), "health": self.health(shared)}


def simulated(size: int = 512) -> TensorDataset:
    """Return readings (size, 6), thousands of hours and states, the same on every rank."""
    generator = torch.Generator().manual_seed(0)
    readings = torch.randn(size, 6, generator=generator)
    hours = (3 + 1.2 * readings[:, 0] + 0.2 * torch.randn(size, generator=generator)).clamp(0.1, 6)
    return TensorDataset(readings, hours, (readings[:, 0] + 0.5 * readings[:, 1] < 0).long())


def main() -> None:
    """Train on this rank's share of the data."""
    parser = argparse.ArgumentParser(description="Two tasks under DistributedDataParallel.")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--checkpoint", type=Path, help="written after every epoch, and read if it exists")
    options = parser.parse_args()
    alone = {} if "RANK" in os.environ else {"store": distributed.HashStore(), "rank": 0, "world_size": 1}
    distributed.init_process_group("gloo", **alone)  # torchrun sets the rest
    rank, ranks = distributed.get_rank(), distributed.get_world_size()

    torch.manual_seed(0)
    data, net = simulated(), Net()
    sampler = DistributedSampler(data)
    batches = DataLoader(data, batch_size=64 // ranks, sampler=sampler)
    model = DistributedDataParallel(net)
    weighting = {"name": "gaba", "warmup": 8, "beta": 0.9}
    criterion = compose(weighting, {"rul": {"name": "failure_biased", "r_max": 6.0}, "health": "cross_entropy"})
    optimizer = torch.optim.Adam([{"params": net.parameters()}, *criterion.param_groups()], lr=1e-2)
    parts = {"net": net, "criterion": criterion, "optimizer": optimizer}
    done = 0
    if options.checkpoint is not None and options.checkpoint.exists():
        saved = torch.load(options.checkpoint, weights_only=True)
        done = saved.pop("epochs")
        for name, part in parts.items():
            part.load_state_dict(saved[name])

    for epoch in range(done, options.epochs):
        sampler.set_epoch(epoch)
        for readings, hours, states in batches:
            optimizer.zero_grad()
            criterion(model(readings), {"rul": hours, "health": states}).backward()
            optimizer.step()
        criterion.end_epoch()
        means = criterion.log_dict()
        if rank == 0:
            print(f"epoch {epoch}", *(f"{name} {value:.4f}" for name, value in means.items()), sep="   ", flush=True)
            if options.checkpoint is not None:
                state = {"epochs": epoch + 1, **{name: part.state_dict() for name, part in parts.items()}}
                torch.save(state, f"{options.checkpoint}.new")
                os.replace(f"{options.checkpoint}.new", options.checkpoint)  # atomically

    held: list[list[float] | None] = [None] * ranks
    distributed.all_gather_object(held, criterion.outer.weights().tolist())
    if rank == 0:
        print(f"weights {held[0]}, the same on {held.count(held[0])} of {ranks} ranks", flush=True)
    distributed.barrier()  # until rank 0 has printed and saved
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
