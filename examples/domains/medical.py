"""Medical imaging: lesions in slices of a chest, and which patients need treatment, of whom there are few.

A patient is three slices of a body: lungs, vessels, a spine, the texture of tissue. Some have lesions: blobs with
ragged edges that reach over several slices, wider and a little brighter than vessels. Who needs treatment follows from the
share of the lungs they fill, up to a doctor's doubt. Half of the patients have had their lesions drawn; everyone has a
diagnosis. Outer axis: uncertainty weighting, as the mean over thousands of pixels and that over a few patients have other
noise. Inner axis: Tversky, which sees the lesions of a patient as one region and minds misses more than false alarms, and a
class-balanced cross-entropy for the rare patients.
"""

from __future__ import annotations

from functools import lru_cache

import common
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from mtl_axes import MultiTaskCriterion

SLICES, SIZE, DRAWN, TRAIN, TEST = 3, 32, 0.5, 400, 300  # slices, pixels, share of drawn patients, patients
PLAIN = {"lesion": "bce", "treat": "bce"}
BALANCED = {"name": "class_balanced", "counts": [350, 50], "beta": 0.99}  # as many of 400 as need no treatment, or do
SHAPED = {"lesion": "tversky", "treat": {"name": "reweighted", "base": "bce", "weight": BALANCED}}
OUTER = {"equal": "fixed", "uncertainty": "uncertainty"}
METRICS = {"dice": "max", "auc": "max", "f1": "max"}


@lru_cache(maxsize=2)
def patients(number: int, seed: int) -> dict[str, Tensor]:
    """Return images (N, SLICES, SIZE, SIZE), masks of lungs and lesions in that shape, who was drawn, who needs what."""
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIZE) - 15.5, torch.arange(SIZE) - 15.5, indexing="ij")

    def uniform(low: float, high: float, slices: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(number, slices, 1, 1, generator=random)

    def texture(width: float) -> Tensor:
        kernel = torch.exp(-0.5 * (torch.arange(-6, 7) / width) ** 2)
        noise = torch.randn(number * SLICES, 1, SIZE, SIZE, generator=random)
        noise = F.conv2d(F.conv2d(noise, kernel.view(1, 1, 1, 13), padding="same"), kernel.view(1, 1, 13, 1), padding="same")
        return noise.view(number, SLICES, SIZE, SIZE) / noise.std()

    def ellipse(right: Tensor | float, down: Tensor | float, wide: Tensor, high: Tensor) -> Tensor:
        return ((x - right) / wide) ** 2 + ((y - down) / high) ** 2 < 1

    scale, apart = uniform(0.9, 1.05), uniform(5.2, 6.2)
    body = ellipse(0.0, 0.0, 15 * scale, 12.5 * scale)
    # Lungs end towards the first slice.
    size = scale * (0.8 + 0.1 * torch.arange(SLICES).view(1, SLICES, 1, 1))
    lungs = (ellipse(-apart, -0.5, 4.6 * size, 8 * size) | ellipse(apart, -0.5, 4.6 * size, 8 * size)) & body
    image = 0.55 * body + 0.06 * texture(1.5)
    image = torch.where(ellipse(0.0, 9.0, 2.2 * scale, 2 * scale), 0.95, image)
    inside = 0.12 + 0.04 * texture(2.5)
    for _ in range(8):  # vessels: they cross each slice elsewhere
        side = torch.where(uniform(0, 1, SLICES) < 0.5, -1.0, 1.0)
        right, down = side * apart + uniform(-4, 4, SLICES), uniform(-7, 7, SLICES)
        spot = torch.exp(-((x - right) ** 2 + (y - down) ** 2) / (2 * uniform(0.5, 0.9, SLICES) ** 2))
        inside = inside + uniform(0.1, 0.3, SLICES) * spot
    lesion, ill = torch.zeros_like(lungs), uniform(0, 1) < 0.6
    for _ in range(3):
        here, side = ill & (uniform(0, 1) < 0.6), torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
        right, down = side * apart + uniform(-3, 3), uniform(-6, 6)
        middle, radius = uniform(0, SLICES - 1), uniform(1.2, 3.2)
        height = 1.5 * (torch.arange(SLICES).view(1, SLICES, 1, 1) - middle)  # slices are 1.5 pixels apart
        distance = ((x - right) ** 2 + (y - down) ** 2 + height**2).sqrt() + 0.6 * texture(1.0)
        lesion = lesion | (here & (distance < radius) & lungs)
    inside = torch.where(lesion, uniform(0.4, 0.65) + 0.06 * texture(1.0), inside)
    image = torch.where(lungs, inside, image) + 0.04 * torch.randn(image.shape, generator=random)
    burden = lesion.sum((1, 2, 3)) / lungs.sum((1, 2, 3))
    treat = torch.rand(number, generator=random) < torch.sigmoid((burden - 0.15) / 0.01)
    drawn = torch.rand(number, generator=random) < DRAWN
    return {"image": image, "lungs": lungs, "lesion": lesion, "drawn": drawn, "treat": treat, "burden": burden}


class Network(nn.Module):
    """A small U-net over slices, whose features are read per pixel for lesions and pooled per patient for the treatment."""

    def __init__(self, wide: int = 20) -> None:
        super().__init__()

        def block(inputs: int, stride: int = 1) -> nn.Module:
            return nn.Sequential(nn.Conv2d(inputs, wide, 3, stride, padding=1), nn.BatchNorm2d(wide), nn.ReLU())

        self.fine, self.middle, self.coarse = block(1, 2), block(wide), nn.Sequential(block(wide, 2), block(wide))
        self.joined, self.lesion, self.treat = block(2 * wide), nn.Conv2d(wide, 4, 1), nn.Linear(2 * wide, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return logits of lesions in the shape of the image (N, SLICES, SIZE, SIZE), and of a treatment (N,)."""
        middle = self.middle(self.fine((image.flatten(0, 1)[:, None] - 0.35) / 0.25))
        features = self.joined(torch.cat([middle, F.interpolate(self.coarse(middle), scale_factor=2)], 1))
        lesion = F.pixel_shuffle(self.lesion(features), 2).view_as(image)
        whole = features.unflatten(0, (-1, SLICES)).transpose(1, 2).flatten(2)
        treat = self.treat(torch.cat([whole.mean(2), whole.amax(2)], 1)).squeeze(1)
        return {"lesion": lesion - 3, "treat": treat - 2}


def measure(outputs: dict[str, Tensor], data: dict[str, Tensor]) -> dict[str, float]:
    """Return the mean Dice score of the patients with lesions, and area under the curve and F1 of the treatment."""
    found, true = outputs["lesion"] > 0, data["lesion"]
    overlap = 2 * (found & true).sum((1, 2, 3)) / (found.sum((1, 2, 3)) + true.sum((1, 2, 3)))
    return {
        "dice": float(overlap[true.any(3).any(2).any(1)].mean()),
        "auc": float(roc_auc_score(data["treat"], outputs["treat"])),
        "f1": float(f1_score(data["treat"], outputs["treat"] > 0)),
    }


def trivial(seed: int) -> dict[str, float]:
    """Return the metrics of lesions drawn wherever they are half as frequent as anywhere, and of treating everyone."""
    data, test = patients(TRAIN, seed), patients(TEST, 1000 + seed)
    often = data["lesion"].float().mean((0, 1))
    mask = (often - often.max() / 2).expand(TEST, SLICES, SIZE, SIZE)
    return measure({"lesion": mask, "treat": torch.ones(TEST)}, test)


def train(criterion: MultiTaskCriterion, seed: int, steps: int) -> dict[str, float]:
    """Train on patients of whom some are drawn; return the metrics of others."""
    data, test = patients(TRAIN, seed), patients(TEST, 1000 + seed)
    torch.manual_seed(seed)
    network = Network()
    optimizer = torch.optim.Adam([{"params": network.parameters()}, *criterion.param_groups()])
    # The learned weights are a second group where there are any; in so few steps they need longer ones to get anywhere.
    rates = [5e-3, 0.1][: len(optimizer.param_groups)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
    for _ in range(steps):
        batch = {name: value[chosen] for chosen in [torch.randint(TRAIN, (8,))] for name, value in data.items()}
        targets = {task: batch[task] for task in PLAIN}
        criterion(network(batch["image"]), targets, mask={"lesion": batch["drawn"]}).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    network.eval()
    with torch.no_grad():
        return measure(network(test["image"]), test)


if __name__ == "__main__":
    title = "Medical imaging: does uncertainty weighting, or do Tversky and class-balanced losses, find more?"
    cells = {"outer": OUTER, "inner": {"plain": PLAIN, "shaped": SHAPED}, "metrics": METRICS}
    common.main(title, train, trivial, **cells, steps=300, quick_steps=25)
