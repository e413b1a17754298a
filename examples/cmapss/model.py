"""A small CNN + BiLSTM + attention network with two heads: RUL in cycles and three health classes.

The published network has the same parts and about 3.5 million parameters; this one has about 60 thousand and trains on
a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .metrics import HEALTH_CLASSES


def _convolution(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(dropout)
    )


class Trunk(nn.Module):
    """What both tasks share: windows (N, 30, channels) to features (N, 32).

    Dropout follows the convolutions and the LSTM only: in the fully connected part it shifts a regression between
    training and evaluation.
    """

    def __init__(self, channels: int, *, dropout: float, hidden: int = 32) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            _convolution(channels, 32, dropout),
            _convolution(32, 64, dropout),
            _convolution(64, 32, dropout),
            nn.AvgPool1d(2),
        )
        self.recurrent = nn.LSTM(32, hidden, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.attention = nn.MultiheadAttention(2 * hidden, 4, batch_first=True)
        self.norm = nn.LayerNorm(2 * hidden)
        self.funnel = nn.Sequential(nn.Linear(2 * hidden, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())

    def forward(self, windows: Tensor) -> Tensor:
        """Features of the last cycle: (N, 30, channels) to (N, 32)."""
        sequence = self.convolutions(windows.transpose(1, 2)).transpose(1, 2)
        sequence = self.dropout(self.recurrent(sequence)[0])
        # Only the last cycle is read, so it is the only query: the same as attention from all cycles, then taking the last.
        last = sequence[:, -1:]
        attended, _ = self.attention(last, sequence, sequence, need_weights=False)
        features: Tensor = self.funnel(self.norm(last + attended)[:, 0])
        return features


class TwoHeads(nn.Module):
    """Trunk with an RUL head and a health head.

    Args:
        channels: input channels.
        mean_rul: initial prediction of the RUL head, in cycles.
        rul_scale: cycles per unit of the RUL head's last layer. The loss stays in cycles; with a larger scale the head
            covers 0 to 125 cycles in fewer steps, as weights change by about the learning rate per step.
        dropout: share of features dropped after the convolutions and the LSTM.
    """

    def __init__(self, channels: int, *, mean_rul: float, rul_scale: float, dropout: float) -> None:
        super().__init__()
        self.mean_rul, self.rul_scale = mean_rul, rul_scale
        self.trunk = Trunk(channels, dropout=dropout)
        self.rul_head = nn.Sequential(
            nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1)
        )
        self.health_head = nn.Sequential(
            nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, len(HEALTH_CLASSES))
        )

    def forward(self, windows: Tensor) -> dict[str, Tensor]:
        """RUL in cycles, shape (N,), and health logits, shape (N, 3)."""
        features = self.trunk(windows)
        rul = self.mean_rul + self.rul_scale * self.rul_head(features).squeeze(1)
        return {"rul": rul, "health": self.health_head(features)}


class WeightAverage:
    """Exponential moving average of a model's parameters and buffers, for evaluation.

    The decay ramps up as (1 + t) / (10 + t), so that short trainings are not dominated by their first steps.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.averages = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the averages with the model's current values."""
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.averages[name].lerp_(value, 1 - keep)
            else:
                self.averages[name].copy_(value)
