"""Random numbers of a weighting's own: seeded, part of its state, and the same on every rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Draws"]


class Draws(nn.Module):
    """A generator on the CPU, whatever the device of the losses: one seed gives one sequence everywhere.

    Its state is saved with the weighting's, so that a resumed run draws what the uninterrupted one would have drawn, and
    no other user of random numbers changes it.

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
        # Rounded to fewer digits, the largest of them would be 1.
        return self._as(drawn.clamp_max(1 - torch.finfo(like.dtype).eps), like)

    def permutation(self, count: int) -> Tensor:
        """Return a random order of ``count`` things, int64 on the CPU."""
        return torch.randperm(count, generator=self.generator)

    @staticmethod
    def _as(drawn: Tensor, like: Tensor) -> Tensor:
        # Few bytes, towards the device: the host does not wait for it.
        return drawn.to(like.device, like.dtype, non_blocking=True)

    def get_extra_state(self) -> dict[str, Any]:
        """Return where in its sequence the generator is."""
        return {"generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go to where in its sequence a saved generator was."""
        # A checkpoint loaded with map_location has moved it.
        self.generator.set_state(state["generator"].cpu())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "generator": self.generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        generator = torch.Generator()
        generator.set_state(state["generator"])
        super().__setstate__({**state, "generator": generator})  # type: ignore[no-untyped-call]
