"""Perception on the road: cars, depth and lane markings from one camera, where frames of the night are rare.

A pinhole camera 1.5 m above a road that bends. Depth follows from the ground plane and from where cars stand, markings and
cars from perspective. By day the light is even; by night there are headlights, tail lights and the noise of the sensor.
Outer axis: GradNorm, because three dense losses of other sizes share one trunk. Inner axis: focal losses for rare cars and
markings, Huber for depth, and a weight of 4 on night frames: a shape sees the targets of one task and cannot know the hour.
"""

from __future__ import annotations

from functools import lru_cache

import common
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl_axes import MultiTaskCriterion
from mtl_axes.inner import Huber

H, W, FOCAL, CAMERA, FAR = 32, 48, 32.0, 1.5, 60.0  # pixels, pixels, pixels, metres, metres
LINES = np.array([-5.4, -1.8, 1.8, 5.4])  # metres to the right of the middle of our lane
PAINT = np.array([[0.8, 0.2, 0.2], [0.2, 0.3, 0.8], [0.9, 0.9, 0.9], [0.15, 0.15, 0.15]])
NIGHT, WEIGHT = 0.08, 4.0  # the share of night frames in training, and what one of them counts in the shaped cells
PLAIN = {"cars": "bce", "depth": "mse", "lanes": "bce"}
SHAPED = {"cars": "quality_focal", "depth": {"name": "huber", "delta": 0.2}, "lanes": {"name": "focal", "gamma": 1.0}}
OUTER = {"equal": "fixed", "gradnorm": {"name": "gradnorm", "alpha": 0.5, "lr": 0.1}}
METRICS = {"night_ap": "max", "night_abs_rel": "min", "night_lane_iou": "max", "day_ap": "max"}


@lru_cache(maxsize=2)
def frames(number: int, night: float, seed: int) -> dict[str, Tensor]:
    """Return images (N, 3, H, W), which of them are of the night, markings (N, H, W), and on a grid of half the size where
    cars have their centres, a soft map of them for training, and the logarithm of depth in tens of metres."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:H, :W] + 0.5
    half = (number, H // 2, W // 2)
    images, dark, lines = np.empty((number, 3, H, W)), rng.random(number) < night, np.empty((number, H, W), bool)
    depths, maps, centres = np.empty(half), np.zeros(half), np.zeros(half, bool)
    for i in range(number):
        horizon, bend, heading = rng.uniform(8, 12), rng.uniform(-0.01, 0.01), rng.uniform(-0.6, 0.6)
        depth = np.clip(FOCAL * CAMERA / np.maximum(rows - horizon, 1e-3), 0, FAR)
        across = (columns - W / 2) * depth / FOCAL - bend * depth**2 - heading  # metres from the middle of our lane
        ground, road = rows > horizon, (rows > horizon) & (np.abs(across) < 5.8)
        line = np.abs(across[..., None] - LINES) < np.maximum(0.12, np.abs(LINES) / 3 * depth[..., None] / FOCAL)
        dashed = (np.abs(across) > 3) | ((depth + rng.uniform(0, 4)) % 4 < 2.8)
        lane = road & line.any(-1) & dashed & (depth < 25)
        colour = np.where(road[..., None], 0.35, np.where(ground[..., None], [0.25, 0.45, 0.2], [0.55, 0.7, 0.9]))
        colour, lamps = np.where(lane[..., None], 0.9, colour) + rng.normal(0, 0.03, (H, W, 1)), np.zeros((H, W, 1))
        for z in sorted(rng.uniform(4, 16, rng.integers(0, 4)), reverse=True):  # far cars first: near ones hide them
            u = W / 2 + FOCAL * (rng.choice([-3.6, 0, 3.6]) + bend * z**2 + heading) / z
            v = horizon + FOCAL * (CAMERA - 0.75) / z
            right, down = (columns - u) / (FOCAL * 1.8 / z), (rows - v) / (FOCAL * 1.5 / z)  # in sizes of the car
            car = (np.abs(right) < 0.5) & (np.abs(down) < 0.5)
            if 0 <= u < W and 0 <= v < H:
                colour[car], depth[car], lane[car] = PAINT[rng.integers(len(PAINT))], z, False
                lamps[car] = ((np.abs(right) > 0.25) & (np.abs(down) < 0.25))[car, None]
                maps[i] = np.maximum(maps[i], np.exp(-8 * (right**2 + down**2))[1::2, 1::2])
                centres[i, int(v) // 2, int(u) // 2] = True
        if dark[i]:
            beam = 0.5 * np.exp(-depth / 8) * np.exp(-((across / 4) ** 2)) * (rows > horizon - 2)
            colour = colour * (rng.uniform(0.02, 0.06) + beam)[..., None] + lamps * np.array([0.6, 0.1, 0.1])
        else:
            colour = colour * rng.uniform(0.6, 1.0)
        images[i] = np.clip(colour + rng.normal(0, 0.03, (H, W, 3)), 0, 1).transpose(2, 0, 1)
        depths[i], lines[i] = np.log(depth[1::2, 1::2] / 10), lane
    maps[centres] = 1.0
    found = {"image": images, "night": dark, "cars": maps, "centres": centres, "depth": depths, "lanes": lines}
    return {name: torch.from_numpy(value if value.dtype == bool else value.astype("f4")) for name, value in found.items()}


class Network(nn.Module):
    """A shared trunk at half size that sees its own position, and one 1 x 1 convolution per task."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(5, 24, 3, stride=2, padding=1), nn.ReLU()]
        for dilation in (1, 2, 4):
            layers += [nn.Conv2d(24, 24, 3, padding=dilation, dilation=dilation), nn.BatchNorm2d(24), nn.ReLU()]
        self.trunk, self.cars, self.depth = nn.Sequential(*layers), nn.Conv2d(24, 1, 1), nn.Conv2d(24, 1, 1)
        self.lanes = nn.Sequential(nn.Conv2d(24, 4, 1), nn.PixelShuffle(2))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return logits of cars (N, H/2, W/2), log depth (N, H/2, W/2) and logits of markings (N, H, W)."""
        grid = torch.stack(torch.meshgrid(torch.linspace(-1, 1, H), torch.linspace(-1, 1, W), indexing="ij"))
        exposed = image / image.mean((1, 2, 3), keepdim=True)
        shared = self.trunk(torch.cat([exposed, grid.expand(len(image), 2, H, W)], 1))
        # Cars and markings begin as rare as they are, so that the first steps are not spent on learning that.
        cars, lanes = self.cars(shared) - 3, self.lanes(shared) - 2
        return {"cars": cars.squeeze(1), "depth": self.depth(shared).squeeze(1), "lanes": lanes.squeeze(1)}


def average_precision(scores: Tensor, centres: Tensor) -> float:
    """Return the area under precision over recall; a peak finds a car whose centre is next to it, as nuScenes matches."""
    peaks = (F.max_pool2d(scores[:, None], 3, 1, 1)[:, 0] == scores) & (scores > scores.mean())
    found, true = peaks.nonzero()[scores[peaks].argsort(descending=True)], centres.nonzero()
    near = (found[:, None, 0] == true[:, 0]) & ((found[:, None, 1:] - true[:, 1:]).abs().amax(-1) <= 1)
    hits, open_ = torch.zeros(len(found)), torch.ones(len(true), dtype=torch.bool)
    for place, candidates in enumerate(near):
        for car in (candidates & open_).nonzero()[:1]:
            hits[place], open_[car] = 1.0, False
    return float((hits * hits.cumsum(0) / torch.arange(1, len(hits) + 1)).sum() / len(true))


def measure(outputs: dict[str, Tensor], data: dict[str, Tensor]) -> dict[str, float]:
    """Return the metrics of predictions for frames of both kinds; those of the night come first."""
    night, lanes = data["night"], (outputs["lanes"] > 0)[data["night"]]
    ground = data["depth"][night] < np.log(FAR / 10) - 1e-3  # the sky has no depth
    return {
        "night_ap": average_precision(outputs["cars"][night], data["centres"][night]),
        "night_abs_rel": float((outputs["depth"] - data["depth"])[night].exp().sub(1).abs()[ground].mean()),
        "night_lane_iou": float((lanes & data["lanes"][night]).sum() / (lanes | data["lanes"][night]).sum()),
        "day_ap": average_precision(outputs["cars"][~night], data["centres"][~night]),
    }


def trivial(seed: int) -> dict[str, float]:
    """Return the metrics of the average training frame, with markings where at least a tenth of the frames have them."""
    data, test = frames(400, NIGHT, seed), frames(200, 0.5, 1000 + seed)
    mean = {"cars": data["cars"].mean(0), "depth": data["depth"].mean(0), "lanes": data["lanes"].float().mean(0) - 0.1}
    return measure({name: value.expand(len(test["night"]), *value.shape) for name, value in mean.items()}, test)


def train(criterion: MultiTaskCriterion, seed: int, steps: int) -> dict[str, float]:
    """Train on frames of which few are of the night; return the metrics on as many of the night as of the day."""
    data, test = frames(400, NIGHT, seed), frames(200, 0.5, 1000 + seed)
    torch.manual_seed(seed)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=steps)
    night_weight = WEIGHT if isinstance(criterion.shapes["depth"], Huber) else 1.0
    for _ in range(steps):
        chosen = torch.randint(len(data["night"]), (16,))
        batch = {name: value[chosen] for name, value in data.items()}
        weight = torch.where(batch["night"], night_weight, 1.0)
        loss = criterion(network(batch["image"]), {task: batch[task] for task in PLAIN}, sample_weight=weight)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    network.eval()
    with torch.no_grad():
        return measure(network(test["image"]), test)


if __name__ == "__main__":
    title = "Perception: does GradNorm, or do focal losses and heavier night frames, help by night?"
    cells = {"outer": OUTER, "inner": {"plain": PLAIN, "shaped": SHAPED}, "metrics": METRICS, "compose": {"every": 4}}
    common.main(title, train, trivial, **cells, steps=300, quick_steps=25)
