"""The models that are trained, with one batch each.

A model is a trunk and one head per task. Rivals are given the shared part; `mtl_axes` finds it on the graph, which is part
of its cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MultiTask", "Workload", "cnn_bilstm", "large_transformer", "mlp", "task_losses", "transformer"]

FEATURES = 64
WINDOW, CHANNELS, CLASSES = 30, 17, 3
VOCABULARY = 8192


class MultiTask(nn.Module):
    """A trunk, and one head per task. A head with a single output is a regression and gives (N,)."""

    def __init__(self, trunk: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict(heads)

    def outputs(self, features: Tensor) -> dict[str, Tensor]:
        """Return the outputs by task, from the shared representation."""
        return {name: head(features).squeeze(-1) for name, head in self.heads.items()}

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return self.outputs(self.trunk(inputs))


@dataclass(frozen=True)
class Workload:
    """A model and its batch. Every method trains a copy of the model on this batch.

    Attributes:
        name: the printed name.
        model: the original, which is never trained.
        autocast: dtype of the forward pass; None for the parameters' dtype.
        batched: False if `torch.vmap` cannot batch the backward of the trunk.
    """

    name: str
    model: MultiTask
    inputs: Tensor
    targets: dict[str, Tensor]
    autocast: torch.dtype | None = None
    batched: bool = True

    @property
    def tasks(self) -> list[str]:
        return list(self.targets)

    @property
    def parameters(self) -> int:
        """Number of scalar parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def forward(self, model: MultiTask) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the shared representation and the outputs, in the dtype of the targets, of a copy of the model."""
        if self.autocast is None:
            features = model.trunk(self.inputs)
            return features, model.outputs(features)
        with torch.autocast(self.inputs.device.type, self.autocast):
            features = model.trunk(self.inputs)
            return features, {name: output.float() for name, output in model.outputs(features).items()}


def task_losses(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the task losses, written by hand."""
    return [
        F.mse_loss(outputs[name], target) if target.is_floating_point() else F.cross_entropy(outputs[name], target)
        for name, target in targets.items()
    ]


def mlp(
    tasks: int, *, batch: int = 256, width: int = 512, depth: int = 6, heavy: bool = False, device: str = "cpu"
) -> Workload:
    """64 features, `depth` layers with ReLU, and K regressions: light heads have one linear layer, heavy heads three."""
    torch.manual_seed(0)
    trunk = _layers(FEATURES, *[width] * depth)
    heads = {
        f"task{index}": nn.Sequential(*_layers(width, width, width), nn.Linear(width, 1)) if heavy else nn.Linear(width, 1)
        for index in range(tasks)
    }
    inputs = torch.randn(batch, FEATURES)
    targets = {name: torch.randn(batch) for name in heads}
    name = f"MLP {depth}x{width}, {'heavy' if heavy else 'light'} heads, batch {batch}"
    return _on(device, Workload(name, MultiTask(trunk, heads), inputs, targets))


def cnn_bilstm(*, batch: int = 256, device: str = "cpu") -> Workload:
    """Windows of 30 steps of 17 channels, two convolutions, a bidirectional LSTM, a regression and three classes."""
    torch.manual_seed(0)
    model = MultiTask(_ConvBiLSTM(64), _two_heads(2 * 64))
    inputs = torch.randn(batch, WINDOW, CHANNELS)
    # cuDNN's LSTM has no batching rule; the CPU's has one.
    return _on(device, Workload(f"CNN + BiLSTM, batch {batch}", model, inputs, _two_targets(batch), batched=device == "cpu"))


def transformer(*, batch: int = 16, layers: int = 4, device: str = "cpu") -> Workload:
    """64 tokens of 17 channels, an encoder of width 128, a regression and three classes from the mean over the tokens."""
    torch.manual_seed(0)
    model = MultiTask(_Encoder(nn.Linear(CHANNELS, 128), 128, layers, tokens=64), _two_heads(128))
    inputs = torch.randn(batch, 64, CHANNELS)
    return _on(device, Workload(f"transformer {layers}x128, batch {batch}", model, inputs, _two_targets(batch)))


def large_transformer(
    *, batch: int = 16, width: int = 1024, layers: int = 8, tokens: int = 256, device: str = "cuda"
) -> Workload:
    """An encoder over token ids with at least 100 million parameters, its forward pass in bfloat16."""
    torch.manual_seed(0)
    model = MultiTask(_Encoder(nn.Embedding(VOCABULARY, width), width, layers, tokens=tokens), _two_heads(width))
    inputs = torch.randint(VOCABULARY, (batch, tokens))
    size = sum(parameter.numel() for parameter in model.parameters()) // 1_000_000
    name = f"transformer {layers}x{width}, {size}M parameters, bf16, batch {batch}"
    return _on(device, Workload(name, model, inputs, _two_targets(batch), autocast=torch.bfloat16))


class _ConvBiLSTM(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv1d(CHANNELS, width, 3, padding=1), nn.ReLU(), nn.Conv1d(width, width, 3, padding=1), nn.ReLU()
        )
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)

    def forward(self, windows: Tensor) -> Tensor:
        states: Tensor = self.lstm(self.conv(windows.transpose(1, 2)).transpose(1, 2))[0]
        return states.mean(1)


class _Encoder(nn.Module):
    def __init__(self, embedding: nn.Module, width: int, layers: int, *, tokens: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        # Without dropout, so that two methods see the same gradient on the same batch.
        layer = nn.TransformerEncoderLayer(
            width, max(4, width // 64), 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        states: Tensor = self.layers(self.embedding(tokens) + self.position)
        return states.mean(1)


def _layers(*widths: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        parts += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*parts)


def _two_heads(width: int) -> dict[str, nn.Module]:
    return {"value": nn.Linear(width, 1), "state": nn.Linear(width, CLASSES)}


def _two_targets(batch: int) -> dict[str, Tensor]:
    return {"value": torch.randn(batch), "state": torch.randint(CLASSES, (batch,))}


def _on(device: str, workload: Workload) -> Workload:
    targets = {name: target.to(device) for name, target in workload.targets.items()}
    return Workload(
        workload.name, workload.model.to(device), workload.inputs.to(device), targets, workload.autocast, workload.batched
    )
