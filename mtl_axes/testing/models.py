"""A small model with a trunk and a head per task, and batches for it: what a criterion is tried on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Heads", "batch"]


class Heads(nn.Module):
    """A trunk with tanh and a linear head per task, in float64, seeded."""

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.trunk = nn.Linear(4, 5, dtype=torch.float64)
            # Names of tasks may hold any character, those of modules may not.
            self.heads = nn.ModuleList(nn.Linear(5, 1, dtype=torch.float64) for _ in tasks)
        self.tasks = tuple(tasks)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return one number per sample and task."""
        z = torch.tanh(self.trunk(inputs))
        return {task: head(z).squeeze(-1) for task, head in zip(self.tasks, self.heads, strict=True)}


def batch(tasks: Sequence[str], seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return seeded inputs (8, 4), and targets whose size grows from task to task."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    targets = {}
    for index, task in enumerate(tasks):
        noise = torch.randn(8, generator=generator, dtype=torch.float64)
        targets[task] = (1.0 + index) * (inputs[:, index % 4] + 0.3 * noise) + 0.1
    return inputs, targets
