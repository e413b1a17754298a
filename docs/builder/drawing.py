"""Draws the pictures of the reference."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from curves import Picture
from matplotlib.ticker import FuncFormatter, NullFormatter

INK, PALE, COLOURS = "#3a3a3a", "#d8d8d8", ("#2f6690", "#b5654a", "#4f7f5b", "#8c6bb1")


def digest(numbers: dict[str, Any]) -> str:
    """Return a digest of the numbers of a picture."""
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:16]


def draw(picture: Picture, target: Path, mark: str) -> None:
    """Draw a picture as a PNG that names the digest of its numbers."""
    count = len(picture.panels)
    figure, axes = plt.subplots(1, count, figsize=(4.2 * count, 2.9), layout="constrained", squeeze=False)
    for panel, ax in zip(picture.panels, axes[0], strict=True):
        # Every second line is dashed, so that overlapping lines show and colour is not the only difference.
        for order, (label, values) in enumerate(panel.lines.items()):
            # A few points are classes, with nothing between them.
            style = "o" if len(panel.x) < 10 else "--" if order % 2 else "-"
            ax.plot(panel.x, values, style, color=COLOURS[order % len(COLOURS)], linewidth=1.6, label=label)
        if panel.log:
            ax.set_yscale("log")
            # Plain numbers instead of powers of ten; within one decade, minor ticks have numbers too.
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            low, high = ax.get_ylim()
            ax.yaxis.set_minor_formatter(
                FuncFormatter(lambda value, _: f"{value:.4g}") if high < 10 * low else NullFormatter()
            )
        if panel.share:
            ax.set_ylim(-0.03, 1.03)
        ax.set_title(panel.title, fontsize=9, color=INK)
        ax.set_xlabel(panel.xlabel, fontsize=9)
        ax.tick_params(labelsize=8)
        ax.grid(color=PALE, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    if len(picture.panels[0].lines) > 1:
        axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(target, format="png", dpi=100, metadata={"Software": None, "Description": mark})
    plt.close(figure)
