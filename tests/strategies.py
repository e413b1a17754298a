"""The vocabulary of the tests: Hypothesis strategies, small models with several heads, and snapshots of state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from mtl_axes import InnerShape, OuterWeighting, Signals, available, create
from mtl_axes.registry import lookup
from mtl_axes.testing.case import equal as equal  # for the tests, as the kit compares
from mtl_axes.testing.case import same as same
from mtl_axes.testing.case import snapshot as snapshot

KINDS = ("regression", "binary", "multiclass")
STANDARD = {"regression": "mse", "binary": "bce", "multiclass": "cross_entropy"}
CLASSES = 3

# Options under which a strategy moves within a few windows, and differs from the standard loss of its kind.
QUICK: dict[str, dict[str, Any]] = {
    "dwa": {"window": 2},
    "gaba": {"warmup": 0, "beta": 0.5, "floor": 0.01},
    "gradnorm": {"lr": 0.1},
}
SHAPED: dict[str, dict[str, Any]] = {
    "asymmetric": {"over": 2.0, "under": 0.5},
    "bce": {"pos_weight": 3.0},
    "huber": {"delta": 0.7},
    "quantile": {"q": 0.2},
}
PROBES: dict[str, dict[str, Any]] = {
    "exact": {"probe": "exact"},
    "no reuse": {"probe": {"name": "exact", "reuse": False}},
    "rotate": {"probe": {"name": "exact", "rotate": True}},
    "every": {"probe": "exact", "every": 3},
    "representation": {"probe": "representation"},
    "lagged": {"probe": "lagged"},
}
# Probes that provide norms and no Gramian.
NORMS_ALONE = ("rotate", "representation", "lagged")
OUTERS = available("outer")
INNERS = available("inner")
WEIGHTS = available("weight")
# One weighting of each mechanism, for cross products; of the others each is taken once.
REPRESENTATIVE = tuple(
    name
    for name in ("fixed", "uncertainty", "dwa", "gradnorm", "gaba", "famo", "rlw", "mgda", "upgrad", "floor")
    if name in OUTERS
)


def quick(name: str, **options: Any) -> OuterWeighting:
    """A weighting that moves within a few windows."""
    return create("outer", name, **{**lookup("outer", name).example, **QUICK.get(name, {}), **options})


def shaped(name: str) -> InnerShape:
    """A shape whose options differ from its defaults where it has any."""
    return create("inner", name, **{**lookup("inner", name).example, **SHAPED.get(name, {})})


def drawn(name: str, kind: str, *, size: tuple[int, ...] | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A prediction and a target as the shape itself draws them, float64."""
    shape = shaped(name)
    generator = torch.Generator().manual_seed(seed)
    return shape.sample(kind, size or ((7, 4) if shape.pooled else (7,)), generator, torch.float64)


def crossed(*settings: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Every representative weighting with every combination of settings, and every other one with the first of each."""
    lists = [list(setting) for setting in settings]
    others = [name for name in OUTERS if name not in REPRESENTATIVE]
    return [*product(REPRESENTATIVE, *lists), *((name, *(values[0] for values in lists)) for name in others)]


def kinds_of(shape: InnerShape) -> tuple[str, ...]:
    """The kinds that a shape serves, in a fixed order."""
    return tuple(kind for kind in KINDS if kind in shape.kinds)


INNER_KINDS = tuple((inner, kind) for inner in INNERS for kind in kinds_of(shaped(inner)))


def measurable(*settings: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Weightings crossed with probes and other settings, where the probe provides what the weighting needs."""
    return [case for case in crossed(*settings) if quick(case[0]).needs != "gramian" or case[1] not in NORMS_ALONE]


class Heads(nn.Module):
    """A trunk with tanh and one linear head per task; a multiclass head has three logits, any other one output."""

    def __init__(self, kinds: Mapping[str, str], *, width: int = 5, features: int = 4) -> None:
        super().__init__()
        self.trunk = nn.Linear(features, width)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, CLASSES if kind == "multiclass" else 1) for name, kind in kinds.items()}
        )
        self.kinds = dict(kinds)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        z = torch.tanh(self.trunk(inputs))
        outputs = {name: head(z) for name, head in self.heads.items()}
        return {name: out if self.kinds[name] == "multiclass" else out.squeeze(-1) for name, out in outputs.items()}


def model_for(kinds: Mapping[str, str], *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Heads:
    """A seeded model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Heads(kinds).to(dtype)


def batch_for(
    kinds: Mapping[str, str], *, seed: int = 0, size: int = 8, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Seeded inputs and targets; ``scale`` is the size of the regression targets."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 4, generator=generator, dtype=dtype)
    targets: dict[str, Tensor] = {}
    for name, kind in kinds.items():
        noise = torch.randn(size, generator=generator, dtype=dtype)
        if kind == "regression":
            targets[name] = scale * (inputs[:, 0] + noise).abs() + 0.1
        elif kind == "binary":
            targets[name] = inputs[:, 1] + noise > 0
        else:
            targets[name] = (inputs[:, 2] + noise > 0).long() + (noise > 0.5).long()
    return inputs, targets


def random_signals(
    count: int, *, seed: int, step: int = 0, dtype: torch.dtype = torch.float64, active: Sequence[bool] | None = None
) -> Signals:
    """Seeded signals with norms spread over several orders of magnitude, and a positive definite Gramian."""
    generator = torch.Generator().manual_seed(seed)
    losses = torch.randn(count, generator=generator, dtype=torch.float64).exp()
    jacobian = torch.randn(count, count + 2, generator=generator, dtype=torch.float64)
    jacobian = jacobian * (3 * torch.randn(count, 1, generator=generator, dtype=torch.float64)).exp()
    gramian = (jacobian @ jacobian.T).to(dtype)
    flags = None if active is None else torch.tensor(active)
    return Signals(losses.to(dtype), gramian=gramian, norms=gramian.diagonal().sqrt(), active=flags, step=step)


@dataclass(frozen=True)
class Plan:
    """Windows to drive a weighting through: losses, norms and flags, one row per window; the cosine of all gradients."""

    losses: tuple[tuple[float, ...], ...]
    norms: tuple[tuple[float, ...], ...]
    active: tuple[tuple[bool, ...], ...]
    cosine: float = 0.0

    @property
    def size(self) -> int:
        return len(self.losses[0])

    def signals(self, order: Sequence[int] | None = None) -> list[Signals]:
        """The windows as signals in float64, with the tasks in the given order, and a Gramian of their common cosine."""
        index = torch.tensor(list(range(self.size)) if order is None else list(order))
        cosines = torch.eye(self.size, dtype=torch.float64) * (1 - self.cosine) + self.cosine
        found = []
        for step, (losses, norms, active) in enumerate(zip(self.losses, self.norms, self.active, strict=True)):
            sizes = torch.tensor(norms, dtype=torch.float64)[index]
            found.append(
                Signals(
                    torch.tensor(losses, dtype=torch.float64)[index],
                    norms=sizes,
                    gramian=cosines * sizes * sizes[:, None],
                    active=torch.tensor(active)[index],
                    step=step,
                )
            )
        return found


def magnitudes(low: float = -12.0, high: float = 12.0) -> st.SearchStrategy[float]:
    """Positive numbers, uniform in their exponent: 1e-12 to 1e12 unless told otherwise."""
    return st.floats(low, high, allow_nan=False).map(lambda exponent: 10.0**exponent)


def task_names(low: int = 1, high: int = 5) -> st.SearchStrategy[list[str]]:
    """Distinct names of tasks."""
    return st.lists(
        st.sampled_from(["rul", "health", "risk", "wear", "load", "depth"]), min_size=low, max_size=high, unique=True
    )


def losses(count: int) -> st.SearchStrategy[tuple[float, ...]]:
    """K positive losses, 1e-6 to 1e6."""
    return st.tuples(*[magnitudes(-6, 6)] * count)


def norms(count: int) -> st.SearchStrategy[tuple[float, ...]]:
    """K gradient norms, 1e-12 to 1e12."""
    return st.tuples(*[magnitudes()] * count)


def masks(size: int) -> st.SearchStrategy[list[bool]]:
    """Masks of ``size`` samples with at least one True."""
    return st.lists(st.booleans(), min_size=size, max_size=size).filter(any)


@st.composite
def plans(draw: st.DrawFn, *, low: int = 1, high: int = 5, windows: int = 6) -> Plan:
    """Windows of K tasks in which tasks come and go."""
    count, length = draw(st.integers(low, high)), draw(st.integers(1, windows))
    flags = st.tuples(*[st.booleans()] * count)
    # A common cosine below -1 / (K - 1) is that of no gradients; at both ends the Gramian is singular.
    lowest = -1.0 / (count - 1) if count > 1 else 0.0
    return Plan(
        tuple(draw(losses(count)) for _ in range(length)),
        tuple(draw(norms(count)) for _ in range(length)),
        tuple(draw(flags) for _ in range(length)),
        draw(st.sampled_from([0.0, lowest, 1.0]) | st.floats(lowest, 1.0)),
    )
