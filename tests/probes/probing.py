"""What the tests of the probes share: every probe by name, weightings that look at norms, models, and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from strategies import PROBES as PROBES
from torch import Tensor, nn

from mtl_axes import OuterWeighting, Signals

f32, f64 = torch.float32, torch.float64

# Without this an older torch is never trusted with reused gradients.
REUSES = hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph")
BASE = (7.0, 40.0, 0.0, 1e-3, 0.5, 3.0, 11.0, 0.02)


def names(count: int) -> tuple[str, ...]:
    return tuple("abcdefgh"[:count])


class Spread(OuterWeighting):
    """Live weights between 0 and 80: base_i (1 + g_i / sum_A g); a task that is not active keeps its weight."""

    needs: ClassVar[str] = "norms"

    def forward(self, signals: Signals, /) -> Tensor:
        norms, active = signals.norms, signals.active
        base = torch.tensor(BASE[: signals.size], dtype=norms.dtype)
        return torch.where(active, base * (1 + norms / torch.where(active, norms, 0.0).sum()), self.current)


class Recorder(OuterWeighting):
    """Keeps what it is shown; weights 1, 2, 3, ..."""

    needs: ClassVar[str] = "norms"

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Signals] = []

    def forward(self, signals: Signals, /) -> Tensor:
        self.shown.append(signals)
        return torch.arange(1.0, signals.size + 1, dtype=signals.losses.dtype)


class GramianRecorder(Recorder):
    needs: ClassVar[str] = "gramian"


class Net(nn.Module):
    """A trunk of two tanh layers and a head of two layers per task; forward gives the task losses of a seeded batch.

    Attributes:
        tap: called with the representation in every forward.
    """

    sizes: ClassVar[tuple[float, ...]] = (1.0, 0.05, 30.0, 3.0, 200.0, 0.5, 1.0, 10.0)

    def __init__(self, count: int, dtype: torch.dtype = f64) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())
        self.heads = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)) for name in names(count)}
        )
        self.tap: Callable[[Tensor], Any] | None = None
        self.to(dtype)

    def represent(self, inputs: Tensor) -> Tensor:
        z = self.trunk(inputs)
        if self.tap is not None:
            self.tap(z)
        return z

    def predict(self, name: str, z: Tensor) -> Tensor:
        return self.heads[name](z)

    def batch(self, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(8, 4 + len(self.heads), generator=generator, dtype=f64)
        # Far targets: residuals of one sign, so that no gradient is the small difference of large terms.
        return draw[:, :4].to(self.dtype), draw[:, 4:].to(self.dtype) + 4

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, seed: int) -> dict[str, Tensor]:
        inputs, targets = self.batch(seed)
        z = self.represent(inputs)
        return {
            name: self.sizes[index] * (self.predict(name, z).squeeze(-1) - targets[:, index]).square().mean()
            for index, name in enumerate(self.heads)
        }


class Tied(Net):
    """Task a reads out with the trunk's own weight, tasks b and c with one head; an inner layer is used twice."""

    def __init__(self, count: int, dtype: torch.dtype = f64) -> None:
        super().__init__(count, dtype)
        self.again = nn.Linear(5, 5).to(dtype)
        self.heads["c"] = self.heads["b"]

    def represent(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.again(torch.tanh(self.again(super().represent(inputs)))))

    def predict(self, name: str, z: Tensor) -> Tensor:
        return (z @ self.trunk[2].weight)[:, :1] if name == "a" else super().predict(name, z)


class Skip(Net):
    """Task a also reads the first layer, task b also reads the inputs, and a learned scale of the losses is shared."""

    def __init__(self, count: int, dtype: torch.dtype = f64) -> None:
        super().__init__(count, dtype)
        self.direct = nn.ModuleDict({"a": nn.Linear(6, 1), "b": nn.Linear(4, 1)}).to(dtype)

    def represent(self, inputs: Tensor) -> Tensor:
        self._inputs, self._first = inputs, self.trunk[1](self.trunk[0](inputs))
        return self.trunk[3](self.trunk[2](self._first))

    def predict(self, name: str, z: Tensor) -> Tensor:
        out = super().predict(name, z)
        return out + self.direct[name](self._first if name == "a" else self._inputs) if name in self.direct else out


def reused(total: Tensor) -> bool:
    """Whether the backward of a total hands measured gradients over."""
    return "_HandOver" in type(total.grad_fn).__name__


def weighted(losses: Mapping[str, Tensor], weights: Tensor, tasks: tuple[str, ...]) -> Tensor:
    """The plain weighted sum of the losses that are there."""
    return sum(weights[tasks.index(name)].to(loss.dtype) * loss for name, loss in losses.items())


def same_gradients(found: nn.Module, expected: nn.Module, tolerance: float) -> None:
    """Assert for every parameter that the gradients differ by at most ``tolerance`` of their norm, and None is None."""
    for (name, parameter), reference in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert (parameter.grad is None) == (reference.grad is None), f"{name}: {parameter.grad} for {reference.grad}"
        if reference.grad is not None:
            off, size = (parameter.grad - reference.grad).norm(), reference.grad.norm()
            assert bool(off <= tolerance * size), f"{name}: off by {float(off / size):.3g} of its norm"
