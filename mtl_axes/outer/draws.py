"""Random numbers for weightings: seeded, part of the state, and the same on every rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Draws(nn.Module):
    """A seeded generator. It is on the CPU for losses on any device, so that a seed gives the same sequence everywhere.

    Its state is saved with the weighting, so that a resumed run draws the same numbers as an uninterrupted one. No other
    user of random numbers changes it.

    Args:
        seed: of the sequence, an integer.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return standard normal numbers, in the dtype and on the device of ``like``."""
        return self._as(torch.randn(shape, generator=self.generator, dtype=torch.float64), like)

    def uniform(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return numbers uniform in [0, 1), in the dtype and on the device of ``like``."""
        drawn = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        # Rounding to fewer digits could make the largest of them 1.
        return self._as(drawn.clamp_max(1 - torch.finfo(like.dtype).eps), like)

    def permutation(self, count: int) -> Tensor:
        """Return a random order of ``count`` items, int64 on the CPU."""
        return torch.randperm(count, generator=self.generator)

    @staticmethod
    def _as(drawn: Tensor, like: Tensor) -> Tensor:
        # The host does not wait for this copy to the device.
        return drawn.to(like.device, like.dtype, non_blocking=True)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the position of the generator in its sequence."""
        return {"generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Set the position of the generator in its sequence."""
        # map_location may have put it on another device.
        self.generator.set_state(state["generator"].cpu())

    # Before torch 2.7 a pickled generator can be freed too early (pytorch issue 146828), so its state is pickled instead.
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "generator": self.generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        generator = torch.Generator()
        generator.set_state(state["generator"])
        super().__setstate__({**state, "generator": generator})  # type: ignore[no-untyped-call]
