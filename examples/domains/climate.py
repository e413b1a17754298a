"""Climate downscaling: temperature, rain and wind on a fine grid, from the fields of a coarse model and the terrain.

Days over one region of 32 x 32 cells are simulated: smooth random pressure over a westerly gradient; its geostrophic wind,
faster on ridges and slower over land; temperature with a lapse rate of 6.5 K per km, advection, and cold pools in valleys on
calm days; rain where moist air rises, over slopes that face the wind and in lows, times a log-normal field, so that most
cells are dry and the wet ones heavy-tailed. The coarse model sees the means of 4 x 4 cells, and no weather below that.
Outer axis: the gradient of the sum of log losses, because K^2, mm^2 and (m/s)^2 have no common unit. Inner axis: a ramp that
weighs heavy rain and strong wind up, because a square is spent on ordinary days and extremes do the damage.
"""

from __future__ import annotations

from functools import lru_cache, partial

import common
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, softplus

from mtl_axes import MultiTaskCriterion, Outcome

CELLS, FACTOR, TRAIN, TEST, BATCH = 32, 4, 400, 200, 8
PLAIN = {"temperature": "mse", "rain": "mse", "wind": "mse"}
HEAVY = {"name": "ramp", "low": 5.0, "high": 40.0, "at_low": 1.0, "at_high": 4.0}  # mm
STORM = {"name": "ramp", "low": 10.0, "high": 28.0, "at_low": 1.0, "at_high": 2.0}  # m/s
EXTREMES = {task: {"name": "reweighted", "base": "mse", "weight": ramp} for task, ramp in (("rain", HEAVY), ("wind", STORM))}
METRICS = {"rain_p99_error_mm": "min", "rain_mae_mm": "min", "temperature_rmse_k": "min", "wind_mae_ms": "min"}


def smooth(count: int, slope: float, generator: torch.Generator) -> Tensor:
    """Return Gaussian random fields (count, CELLS, CELLS) of mean 0 and variance 1, with the power spectrum k^-slope."""
    waves = torch.fft.fftfreq(2 * CELLS)  # the spectrum makes it periodic: half of it is not
    power = (waves[:, None].square() + waves.square()).sqrt().clamp(min=1 / len(waves)) ** (-slope / 2)
    power[0, 0] = 0
    field = torch.fft.ifft2(torch.fft.fft2(torch.randn(count, len(waves), len(waves), generator=generator)) * power).real
    return (field / field.std((1, 2), keepdim=True).mean())[:, :CELLS, :CELLS]


def slopes(field: Tensor) -> tuple[Tensor, Tensor]:
    """Return the derivatives of fields (..., CELLS, CELLS) to the east and to the north (rows go south)."""
    north, east = torch.gradient(field, dim=(-2, -1))
    return east, -north


def terrain() -> Tensor:
    """Return the height in km of the one region: sea in the west, two ridges, hills."""
    east = torch.linspace(0, 1, CELLS)
    ridges = 1.6 * (-((east - 0.45) / 0.1).square()).exp() + 1.0 * (-((east - 0.8) / 0.08).square()).exp()
    hills = smooth(1, 3.0, torch.Generator().manual_seed(7))[0]
    return ((0.15 + ridges) * (1 + 0.5 * hills) + 0.25 * hills).clamp(min=0) * ((east - 0.15) / 0.15).clamp(0, 1)


@lru_cache(maxsize=2)
def days(count: int, seed: int) -> dict[str, Tensor]:
    """Return temperature in deg C, rain in mm, wind speed in m/s and pressure in hPa, all (count, CELLS, CELLS)."""
    generator = torch.Generator().manual_seed(seed)
    height, draw = terrain(), torch.randn(count, 4, 1, 1, generator=generator)
    north = torch.linspace(1, -1, CELLS)[:, None]
    pressure = 1013 + 9 * smooth(count, 5.0, generator) - (6 + 4 * draw[:, 0]) * north + 6 * draw[:, 1]
    east, up = slopes(pressure)
    drag = 1 - 0.35 * (height > 0) * (-height / 0.5).exp() + 0.25 * height
    u, v = -9 * up * drag, 9 * east * drag  # geostrophic: along the isobars, with the low to the left
    wind = torch.hypot(u, v)
    calm = (-(wind / 4).square()).exp()
    hollow = (avg_pool2d(height[None], 7, 1, 3, count_include_pad=False)[0] - height).clamp(min=0)
    temperature = 11 + 7 * draw[:, 2] - 4 * north + 0.25 * v + 1.5 * smooth(count, 4.0, generator) - 6.5 * height
    temperature = temperature - 5 * calm * hollow.sqrt() + 0.3 * torch.randn(wind.shape, generator=generator)
    east, up = slopes(height)
    moist = 0.6 * draw[:, 3] + smooth(count, 4.0, generator) - (pressure - 1013) / 9 + 0.35 * (u * east + v * up) - 0.8
    rain = 3 * moist.clamp(min=0) ** 1.5 * (0.6 * smooth(count, 2.5, generator) - 0.18).exp()
    return {"temperature": temperature, "rain": rain, "wind": wind, "pressure": pressure}


class Downscaler(nn.Module):
    """Convolutions on the coarse grid, then with the terrain on the fine one; heads correct interpolated fields."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        ground = torch.stack([terrain(), *slopes(terrain()), (terrain() > 0).float()])
        self.register_buffer("ground", ground / ground.std((1, 2), keepdim=True))
        convolve = partial(nn.Conv2d, kernel_size=3, padding=1)
        self.coarse = nn.Sequential(nn.BatchNorm2d(4), convolve(4, width), nn.ReLU(), convolve(width, width))
        self.fine = nn.Sequential(convolve(width + 4, width), nn.ReLU(), convolve(width, width), nn.ReLU())
        self.heads = nn.ModuleDict({task: nn.Conv2d(width, 1, 1) for task in PLAIN})

    def forward(self, coarse: Tensor) -> dict[str, Tensor]:
        """Return temperature, rain and wind (N, CELLS, CELLS) from coarse fields (N, 4, CELLS / FACTOR, CELLS / FACTOR)."""
        shared = self.fine(torch.cat([finer(self.coarse(coarse)), self.ground.expand(len(coarse), -1, -1, -1)], 1))
        change = {task: head(shared)[:, 0] for task, head in self.heads.items()}
        near = dict(zip(PLAIN, finer(coarse).unbind(1), strict=False))
        # A factor keeps rain and wind positive, and days dry where no rain is near; it is 1 where the head says 0.
        factors = {task: near[task] * softplus(change[task] + 0.5413) for task in ("rain", "wind")}
        return {"temperature": near["temperature"] + 3 * change["temperature"], **factors}


def coarser(fields: dict[str, Tensor]) -> Tensor:
    """Return what the coarse model sees of the days, (N, 4, CELLS / FACTOR, CELLS / FACTOR)."""
    return avg_pool2d(torch.stack([*fields.values()], 1), FACTOR)


def finer(fields: Tensor) -> Tensor:
    """Return fields interpolated bilinearly to the fine grid."""
    return interpolate(fields, scale_factor=FACTOR, mode="bilinear")


def scores(found: dict[str, Tensor], true: dict[str, Tensor]) -> dict[str, float]:
    """Return the errors of fields in their own units."""
    top = [torch.quantile(fields["rain"].flatten(), 0.99) for fields in (found, true)]
    return {
        "rain_p99_error_mm": float((top[0] - top[1]).abs()),
        "rain_mae_mm": float((found["rain"] - true["rain"]).abs().mean()),
        "temperature_rmse_k": float((found["temperature"] - true["temperature"]).square().mean().sqrt()),
        "wind_mae_ms": float((found["wind"] - true["wind"]).abs().mean()),
    }


def train(criterion: MultiTaskCriterion, seed: int, steps: int) -> Outcome:
    """Train on days; return the errors on others, and some predictions."""
    torch.manual_seed(seed)
    fields, model = days(TRAIN, seed), Downscaler()
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(TRAIN, (BATCH,))
        batch = {name: field[chosen] for name, field in fields.items()}
        loss = criterion(model(coarser(batch)), {task: batch[task] for task in PLAIN})
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    new = days(TEST, 1_000 + seed)
    with torch.no_grad():
        found = model.eval()(coarser(new))
    some = torch.randint(new["rain"].numel(), (300,))
    shown = {task: (found[task].flatten()[some], new[task].flatten()[some]) for task in PLAIN}
    return Outcome(scores(found, new), predictions=shown)


def trivial(seed: int) -> dict[str, float]:
    """Return the errors of bilinear interpolation."""
    new = days(TEST, 1_000 + seed)
    return scores(dict(zip(PLAIN, finer(coarser(new)).unbind(1), strict=False)), new)


if __name__ == "__main__":
    title = "Climate: do log losses, or a ramp towards extremes, help to downscale temperature, rain and wind?"
    log = {"name": "rescaled", "base": "scale_invariant", "total": "1"}
    cells = {"outer": {"equal": "fixed", "log": log}, "inner": {"plain": PLAIN, "ramp": {**PLAIN, **EXTREMES}}}
    common.main(title, train, trivial, **cells, metrics=METRICS, naive="bilinear interpolation", steps=200, quick_steps=30)
