"""A recommender: click, dwell and revenue of what a shop showed to whom, where users that are new to it are rare.

Tastes are latent factors: those of a user scatter around the mean of an age group and a country, those of an item around the
mean of a category. A few items are shown most of the time (Zipf's law). Liking makes the click, click and liking the time on
the page, that time the purchase, and the price what it brings; so dwell is known of clicks only, and revenue is zero but for
one impression in about thirty, with a heavy tail. Users who came four times so far are one in ten, and a 300th of the log.
Outer axis: UPGrad, for three tasks that pull at the embeddings of one user. Inner axis: an asymmetric loss for rare clicks,
Huber for dwell, Tweedie for revenue, and a weight of 5 on new users, whom no shape can know of.
"""

from __future__ import annotations

from functools import lru_cache

import common
import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from mtl_axes import MultiTaskCriterion
from mtl_axes.inner import Tweedie

USERS, ITEMS, FACTORS, COLD, WEIGHT = 1500, 300, 6, 0.1, 5.0
AGES, COUNTRIES, CATEGORIES = 6, 8, 10
LOG, TEST = 200_000, 20_000  # impressions
PLAIN = {"click": "bce", "dwell": "mse", "revenue": "mse"}
ASYMMETRIC = {"name": "asl", "gamma_neg": 2.0, "gamma_pos": 0.0, "clip": 0.0}
SHAPED = {"click": ASYMMETRIC, "dwell": {"name": "huber", "delta": 0.5}, "revenue": {"name": "tweedie", "power": 1.5}}
OUTER = {"equal": "fixed", "upgrad": "upgrad"}
METRICS = {"new_auc": "max", "new_dwell_mae": "min", "new_revenue_rmse": "min", "known_auc": "max"}


@lru_cache(maxsize=1)
def shop(seed: int) -> dict[str, dict[str, Tensor]]:
    """Return "log" and "test": columns of impressions, half of the test's to new users; log seconds of dwell, euros.

    ``expected`` is the mean revenue of showing this item to this user, which only a simulator knows.
    """
    rng = np.random.default_rng(seed)
    age, country = rng.integers(AGES, size=USERS), rng.integers(COUNTRIES, size=USERS)
    category, price = rng.integers(CATEGORIES, size=ITEMS), 8 * (1 + rng.pareto(2.5, ITEMS))  # euros
    means = [rng.normal(0, 1, (count, FACTORS)) for count in (AGES, COUNTRIES, CATEGORIES)]
    user = means[0][age] * 0.6 + means[1][country] * 0.5 + rng.normal(0, 0.4, (USERS, FACTORS))
    item = means[2][category] * 0.8 + rng.normal(0, 0.6, (ITEMS, FACTORS))
    new = rng.random(USERS) < COLD
    shown = 1 / (1 + rng.permutation(ITEMS))  # Zipf: the r-th item has a share in proportion to 1 / r
    habit = np.where(new, 0, rng.gamma(1.5, 1.0, USERS))  # some come often

    def impressions(who: np.ndarray) -> dict[str, Tensor]:
        what = rng.choice(ITEMS, len(who), p=shown / shown.sum())
        liking = (user[who] * item[what]).sum(1) / np.sqrt(FACTORS)
        chance = 1 / (1 + np.exp(2.2 - 1.5 * liking))
        click = rng.random(len(who)) < chance
        seconds = 3.0 + 0.5 * liking  # the mean of their logarithm

        def buys(logarithm: np.ndarray) -> np.ndarray:
            return 1 / (1 + np.exp(2.5 - 1.5 * (logarithm - 3)))

        dwell = seconds + 0.5 * rng.standard_normal(len(who))
        basket = np.exp(0.6 * rng.standard_normal(len(who)) - 0.18)  # with the mean 1: more than one, or a discount
        revenue = click * (rng.random(len(who)) < buys(dwell)) * price[what] * basket
        spread = np.linspace(-2.5, 2.5, 21)
        density = np.exp(-(spread**2) / 2)
        bought = (buys(seconds[:, None] + 0.5 * spread) * density).sum(1) / density.sum()
        columns = {
            "user": who, "item": what, "age": age[who], "country": country[who], "category": category[what],
            "price": np.log(price[what] / 12), "new": new[who], "click": click, "dwell": np.where(click, dwell, 0.0),
            "seconds": np.where(click, np.exp(dwell), 0.0), "revenue": revenue, "expected": chance * bought * price[what],
        }  # fmt: skip
        floats = {name: value.astype("f4") if value.dtype == float else value for name, value in columns.items()}
        return {name: torch.from_numpy(value) for name, value in floats.items()}

    regulars = rng.choice(USERS, LOG - 4 * new.sum(), p=habit / habit.sum())
    log = rng.permutation(np.concatenate([regulars, np.repeat(np.flatnonzero(new), 4)]))
    test = np.concatenate([rng.choice(np.flatnonzero(group), TEST // 2) for group in (new, ~new)])
    return {"log": impressions(log), "test": impressions(test)}


class Network(nn.Module):
    """Embeddings of everything that is known of an impression, two shared layers, one number per task."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"user": USERS, "item": ITEMS, "age": AGES, "country": COUNTRIES, "category": CATEGORIES}
        self.tables = nn.ModuleDict({name: nn.Embedding(size, 12) for name, size in sizes.items()})
        for table in self.tables.values():
            # Small: who has hardly been seen is then described by age group and country alone.
            nn.init.normal_(table.weight, std=0.1)
        self.trunk = nn.Sequential(nn.Linear(6 * 12 + 1, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.heads = nn.Linear(64, 3)

    def forward(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return logits of a click, log seconds of dwell and the mean revenue in euros, each (N,)."""
        parts = {name: table(data[name]) for name, table in self.tables.items()}
        who, what = parts["user"] + parts["age"] + parts["country"], parts["item"] + parts["category"]
        shared = self.trunk(torch.cat([who * what, *parts.values(), data["price"][:, None]], 1))
        click, dwell, revenue = self.heads(shared).unbind(1)
        return {"click": click - 2, "dwell": 3 + dwell, "revenue": F.softplus(revenue - 1) + 1e-4}


def measure(outputs: dict[str, Tensor], data: dict[str, Tensor]) -> dict[str, float]:
    """Return the metrics for new users, and how well clicks of known users are ranked."""
    new, read = data["new"], data["new"] & data["click"]
    return {
        "new_auc": float(roc_auc_score(data["click"][new], outputs["click"][new])),
        "new_dwell_mae": float((outputs["dwell"].exp() - data["seconds"])[read].abs().mean()),
        "new_revenue_rmse": float((outputs["revenue"] - data["expected"])[new].square().mean().sqrt()),
        "known_auc": float(roc_auc_score(data["click"][~new], outputs["click"][~new])),
    }


def trivial(seed: int) -> dict[str, float]:
    """Return the metrics of the average of the log, whoever the user and whatever the item."""
    log, test = shop(seed).values()
    mean = {name: log[name].float().mean() for name in ("click", "revenue")}
    mean["dwell"] = log["dwell"][log["click"]].mean()
    return measure({name: value.expand(TEST) for name, value in mean.items()}, test)


def train(criterion: MultiTaskCriterion, seed: int, steps: int) -> dict[str, float]:
    """Train on the log; return the metrics of later impressions."""
    log, test = shop(seed).values()
    torch.manual_seed(seed)
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    shaped = isinstance(criterion.shapes["revenue"], Tweedie)
    for _ in range(steps):
        batch = {name: value[chosen] for chosen in [torch.randint(LOG, (1024,))] for name, value in log.items()}
        outputs = network(batch)
        if shaped:
            outputs["revenue"] = outputs["revenue"].log()  # Tweedie takes the logarithm of the mean
        weight = torch.where(batch["new"], WEIGHT if shaped else 1.0, 1.0)
        targets = {task: batch[task] for task in PLAIN}
        criterion(outputs, targets, mask={"dwell": batch["click"]}, sample_weight=weight).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    network.eval()
    with torch.no_grad():
        return measure(network(test), test)


if __name__ == "__main__":
    title = "A recommender: does UPGrad, or do losses made for rare clicks and heavy tails, help users that are new?"
    cells = {"outer": OUTER, "inner": {"plain": PLAIN, "shaped": SHAPED}, "metrics": METRICS}
    common.main(title, train, trivial, **cells, steps=600, quick_steps=60)
