"""The cost of agreement between ranks, and the noise of the mean of norms.

python -m benchmarks.ranks                       both parts, in about two minutes; prints the tables of docs/distributed.md
python -m benchmarks.ranks --picture FILE        also draws the noise
python -m benchmarks.ranks --quick               does it run? The numbers are meaningless
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.func import functional_call, grad, vmap
from torch.nn.parallel import DistributedDataParallel

from benchmarks.methods import PLAIN, quiet
from benchmarks.models import Workload, mlp, task_losses
from benchmarks.timing import interleave, ratios
from mtl_axes import compose

__all__ = ["main", "noise", "tables", "times"]

FEATURES, WIDTH = 16, 32
# Noise of the targets around the model's outputs, and the distance of the targets from them.
TASKS = {"far from its optimum": (1.0, 5.0), "in between": (1.0, 0.3), "at its optimum": (1.0, 0.0)}
# Samples per rank by the number of ranks: as many as fit into the memory of a small machine.
STUDIED = {2: (2, 8, 32, 128, 512), 8: (2, 8, 32, 128, 512), 64: (2, 8, 32, 128), 1024: (2, 8)}
GABA = {"name": "gaba", "warmup": 0}
STEPS: dict[str, dict[str, Any]] = {
    "fixed": {"outer": "fixed"},
    "dwa, norms": {"outer": {"name": "dwa", "window": 10}},
    "uncertainty, norms": {"outer": "uncertainty"},
    "gaba exact, None": {"outer": GABA, "sync": None},
    "gaba exact, norms": {"outer": GABA, "sync": "norms"},
    "gaba exact, gradients": {"outer": GABA, "sync": "gradients"},
    "gaba lagged, norms": {"outer": GABA, "probe": "lagged", "sync": "norms"},
    "gaba lagged, gradients": {"outer": GABA, "probe": "lagged", "sync": "gradients"},
}


def noise(worlds: Iterable[int], batches: Iterable[int], *, draws: int) -> list[dict[str, Any]]:
    """Return, by ranks and batch per rank, the mean over ranks of each task's norm over the norm of its mean gradient.

    Every rank draws its samples from one distribution. ``error`` is max |log(w / w_exact)| of the weights 1/g, scaled to a
    sum of 1.
    """
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
    parameters = {name: value.detach() for name, value in trunk.named_parameters()}
    heads = torch.randn(len(TASKS), WIDTH) / math.sqrt(WIDTH)

    def loss(parameters: dict[str, Tensor], features: Tensor, head: Tensor, offset: Tensor) -> Tensor:
        output = functional_call(trunk, parameters, (features,)) @ head
        return (output - output.detach() - offset).square()

    per_sample = vmap(grad(loss), (None, 0, None, 0))
    rows = []
    for world in worlds:
        for batch in batches:
            norms = torch.zeros(draws, 2, len(TASKS))
            for draw in range(draws):
                features = torch.randn(world * batch, FEATURES)
                for task, (spread, distance) in enumerate(TASKS.values()):
                    offsets = distance * features[:, 0].abs() + spread * torch.randn(world * batch)
                    gradients = per_sample(parameters, features, heads[task], offsets)
                    flat = torch.cat([each.flatten(1) for each in gradients.values()], 1).view(world, batch, -1).mean(1)
                    norms[draw, 0, task], norms[draw, 1, task] = flat.norm(dim=1).mean(), flat.mean(0).norm()
            inverse = norms.reciprocal()
            logs = (inverse / inverse.sum(-1, keepdim=True)).log()
            error = (logs[:, 0] - logs[:, 1]).abs().amax(-1).mean()
            ratio = (norms[:, 0] / norms[:, 1]).mean(0)
            rows.append({"ranks": world, "batch": batch, "ratios": ratio.tolist(), "error": float(error)})
    return rows


def _step(workload: Workload, options: dict[str, Any] | None) -> Callable[[], None]:
    model = copy.deepcopy(workload.model)
    wrapped = DistributedDataParallel(model)
    criterion = None if options is None else compose(tasks=workload.tasks, **options)
    groups = [{"params": model.parameters()}, *([] if criterion is None else criterion.param_groups())]
    optimizer = torch.optim.Adam(groups)

    def step() -> None:
        outputs = wrapped(workload.inputs)
        if criterion is None:
            losses = task_losses(outputs, workload.targets)
            loss = sum(losses[1:], losses[0]) / len(losses)
        else:
            loss = criterion(outputs, workload.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _time(rank: int, folder: str, world: int, rounds: int, width: int, counts: tuple[int, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    rows = []
    with quiet():
        for count in counts:
            workload = mlp(count, batch=128, width=width)
            steps = {PLAIN: _step(workload, None)} | {name: _step(workload, options) for name, options in STEPS.items()}
            timed = interleave(steps, rounds=rounds, period=5, title=f"K = {count}", repeated=PLAIN, repeats=3)
            shared = sum(parameter.numel() for parameter in workload.model.trunk.parameters())
            milliseconds = 1e3 * statistics.median(blocks[PLAIN].wall for blocks in timed)
            spreads = {name: ratios(timed, name, PLAIN)[0] for name in STEPS}
            rows.append({"tasks": count, "shared": shared, "ms": milliseconds, "ratios": spreads})
    if rank == 0:
        torch.save(rows, f"{folder}/rows")
    distributed.barrier()
    distributed.destroy_process_group()


def times(world: int, *, rounds: int, width: int, counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the time of a step under DistributedDataParallel over that of the plain sum, for ranks on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_time, (folder, world, rounds, width, counts), world)
        rows: list[dict[str, Any]] = torch.load(Path(folder, "rows"), weights_only=False)
    return rows


def draw(rows: list[dict[str, Any]], picture: Path) -> None:
    """Draw the noise: a panel per task, the ratio over the batch per rank, a line per number of ranks."""
    batches = sorted({row["batch"] for row in rows})
    figure, axes = plt.subplots(1, len(TASKS), figsize=(11, 3.6), sharey=True, layout="constrained")
    for task, (axis, name) in enumerate(zip(axes, TASKS, strict=True)):
        for world in dict.fromkeys(row["ranks"] for row in rows):
            line = [(row["batch"], row["ratios"][task]) for row in rows if row["ranks"] == world]
            axis.plot(*zip(*line, strict=True), marker="o", markersize=3, label=f"{world} ranks")
        axis.set(title=f"task {name}", xlabel="samples per rank", xscale="log", yscale="log")
        axis.set_xticks(batches, map(str, batches))
        axis.set_yticks((1, 2, 5, 10, 30), ("1", "2", "5", "10", "30"))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean of norms / norm of mean")
    axes[-1].legend(fontsize=8)
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def tables(noisy: list[dict[str, Any]], timed: list[dict[str, Any]]) -> str:
    """Return both tables in Markdown."""
    lines = [f"| ranks | samples per rank | {' | '.join(TASKS)} | error of a weight |", "|---" * (len(TASKS) + 3) + "|"]
    for row in noisy:
        cells = " | ".join(f"{ratio:.2f}" for ratio in row["ratios"])
        lines.append(f"| {row['ranks']} | {row['batch']} | {cells} | {row['error']:.2f} |")
    lines += ["", _row("", [f"K = {row['tasks']}" for row in timed]), "|---" * (len(timed) + 1) + "|"]
    lines.append(_row(PLAIN, [f"{row['ms']:.1f} ms" for row in timed]))
    lines += [_row(name, [f"{row['ratios'][name].median:.2f}" for row in timed]) for name in STEPS]
    lines += ["", f"Shared parameters: {timed[0]['shared'] / 1e6:.2f} million."]
    return "\n".join(lines)


def _row(name: str, cells: list[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; the return value is the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ranks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few draws, one round: does it run?")
    parser.add_argument("--picture", type=Path, help="file to draw the noise into")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.quick:
        noisy, timed = noise((2,), (2, 4), draws=2), times(2, rounds=1, width=16, counts=(2,))
    else:
        noisy = [row for world, batches in STUDIED.items() for row in noise((world,), batches, draws=20)]
        timed = times(2, rounds=15, width=512, counts=(2, 8))
    if options.picture is not None:
        draw(noisy, options.picture)
    print(tables(noisy, timed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
