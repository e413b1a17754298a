"""Climate downscaling: temperature, rain and wind on a fine grid, from the fields of a coarse model and the terrain.

    python examples/domains/climate.py            # 2 x 2 cells, 3 seeds; --quick: does it run?

Days are simulated over one region of 32 x 32 cells: a smooth random pressure field over a westerly gradient, its geostrophic
wind, faster on ridges and slower over land; temperature with a lapse rate of 6.5 K per km, advection, and cold pools in the
valleys of calm days; rain where moist air rises, over slopes that face the wind and in lows, times a log-normal field, so that
most cells are dry and the wet ones heavy-tailed. The coarse model sees the means of 4 x 4 cells, and no weather below that.

Outer: K^2, mm^2 and (m/s)^2 cannot be added with equal weights; the gradient of the sum of log losses has no units.
Inner: a square is spent on ordinary days. A ramp weighs heavy rain and strong wind up, because extremes do the damage.
"""

from __future__ import annotations

import common
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, softplus

CELLS, FACTOR, TRAIN, TEST, BATCH = 32, 4, 400, 200, 8
TASKS = ("temperature", "rain", "wind")


def smooth(count: int, slope: float, generator: torch.Generator) -> Tensor:
    """Return Gaussian random fields (count, CELLS, CELLS) of mean 0 and variance 1, with the power spectrum k^-slope."""
    wide = 2 * CELLS  # the spectrum makes it periodic: half of it is not
    waves = torch.fft.fftfreq(wide)
    power = (waves[:, None].square() + waves.square()).sqrt().clamp(min=1 / wide) ** (-slope / 2)
    power[0, 0] = 0
    field = torch.fft.ifft2(torch.fft.fft2(torch.randn(count, wide, wide, generator=generator)) * power).real
    return (field / field.std((1, 2), keepdim=True).mean())[:, :CELLS, :CELLS]


def slopes(field: Tensor) -> tuple[Tensor, Tensor]:
    """Return the derivatives of fields (..., CELLS, CELLS) to the east and to the north (rows go south)."""
    north, east = torch.gradient(field, dim=(-2, -1))
    return east, -north


def terrain() -> Tensor:
    """Return the height in km (CELLS, CELLS) of the region: sea in the west, two ridges, hills. It is the same for all seeds."""
    east = torch.linspace(0, 1, CELLS)
    ridges = 1.6 * (-((east - 0.45) / 0.1).square()).exp() + 1.0 * (-((east - 0.8) / 0.08).square()).exp()
    hills = smooth(1, 3.0, torch.Generator().manual_seed(7))[0]
    return ((0.15 + ridges) * (1 + 0.5 * hills) + 0.25 * hills).clamp(min=0) * ((east - 0.15) / 0.15).clamp(0, 1)


def days(count: int, seed: int) -> dict[str, Tensor]:
    """Return temperature in deg C, rain in mm and wind speed in m/s on the fine grid, and pressure in hPa, all (count, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    height, draw = terrain(), torch.randn(count, 4, 1, 1, generator=generator)
    north = torch.linspace(1, -1, CELLS)[:, None]
    pressure = 1013 + 9 * smooth(count, 5.0, generator) - (6 + 4 * draw[:, 0]) * north + 6 * draw[:, 1]
    east, up = slopes(pressure)
    drag = 1 - 0.35 * (height > 0) * (-height / 0.5).exp() + 0.25 * height
    u, v = -9 * up * drag, 9 * east * drag  # geostrophic: along the isobars, with the low to the left
    wind = (u.square() + v.square()).sqrt()
    calm = (-(wind / 4).square()).exp()
    hollow = (avg_pool2d(height[None], 7, 1, 3, count_include_pad=False)[0] - height).clamp(min=0)
    temperature = 11 + 7 * draw[:, 2] - 4 * north + 0.25 * v + 1.5 * smooth(count, 4.0, generator) - 6.5 * height
    temperature = temperature - 5 * calm * hollow.sqrt() + 0.3 * torch.randn(wind.shape, generator=generator)
    rising = (lambda slope: u * slope[0] + v * slope[1])(slopes(height))
    moist = 0.6 * draw[:, 3] + smooth(count, 4.0, generator) - (pressure - 1013) / 9 + 0.35 * rising - 0.8
    rain = 3 * moist.clamp(min=0) ** 1.5 * (0.6 * smooth(count, 2.5, generator) - 0.18).exp()
    return {"temperature": temperature, "rain": rain, "wind": wind, "pressure": pressure}


class Downscaler(nn.Module):
    """Convolutions on the coarse grid, then on the fine one with the terrain; a head for each field corrects the interpolated one."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        height = terrain()
        ground = torch.stack([height, *slopes(height), (height > 0).float()])
        self.register_buffer("ground", ground / ground.std((1, 2), keepdim=True))
        self.coarse = nn.Sequential(
            nn.BatchNorm2d(4), nn.Conv2d(4, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.fine = nn.Sequential(
            nn.Conv2d(width + 4, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
        )
        self.heads = nn.ModuleDict({task: nn.Conv2d(width, 1, 1) for task in TASKS})

    def forward(self, coarse: Tensor) -> dict[str, Tensor]:
        """Return temperature, rain and wind (N, CELLS, CELLS) from coarse fields (N, 4, CELLS / FACTOR, CELLS / FACTOR)."""
        shared = self.fine(torch.cat([finer(self.coarse(coarse)), self.ground.expand(len(coarse), -1, -1, -1)], 1))
        change = {task: head(shared)[:, 0] for task, head in self.heads.items()}
        near = dict(zip(TASKS, finer(coarse).unbind(1), strict=False))
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
        "rain: error of the 99th percentile (mm)": float((top[0] - top[1]).abs()),
        "rain: MAE (mm)": float((found["rain"] - true["rain"]).abs().mean()),
        "temperature: RMSE (K)": float((found["temperature"] - true["temperature"]).square().mean().sqrt()),
        "wind: MAE (m/s)": float((found["wind"] - true["wind"]).abs().mean()),
    }


def train(criterion: nn.Module, seed: int, *, steps: int) -> dict[str, float]:
    """Return the errors on new days after ``steps`` steps."""
    fields = days(TRAIN, seed)
    coarse = coarser(fields)
    torch.manual_seed(seed)
    model = Downscaler()
    optimizer = torch.optim.Adam([{"params": model.parameters()}, *criterion.param_groups()])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(TRAIN, (BATCH,))
        loss = criterion(model(coarse[batch]), {task: fields[task][batch] for task in TASKS})
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    new = days(TEST, 1_000 + seed)
    with torch.no_grad():
        return scores(model.eval()(coarser(new)), new)


def trivial(seed: int) -> dict[str, float]:
    """Return the errors of bilinear interpolation."""
    new = days(TEST, 1_000 + seed)
    return scores(dict(zip(TASKS, finer(coarser(new)).unbind(1), strict=False)), new)
