"""Writes docs/reference from the registry: tables of all strategies, and a page and a picture of each.

    python docs/builder            write the pages
    python docs/builder --check    compare them with what would be written, and fail if they differ

Text is compared exactly. Pictures are compared by their numbers, with a tolerance, because the last digits differ between
machines: the numbers are in ``pictures.json``, and every picture names the digest of the numbers it was drawn from.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from curves import Picture, picture_of
from drawing import digest, draw
from pages import AXES, index, page

from mtl_axes import available
from mtl_axes.describe import describe

FOLDER = Path(__file__).parents[1] / "reference"
# A number of a picture may differ by this fraction of the largest number of its line.
TOLERANCE = 3e-3


def build() -> tuple[dict[str, str], dict[str, Picture]]:
    """Return the text of every page by its path, and every picture by its name. Built-in strategies only."""
    descriptions = {axis: [describe(axis, name) for name in available(axis) if built_in(axis, name)] for axis in AXES}
    pictures = {f"{about.axis}_{about.name}": picture_of(about) for group in descriptions.values() for about in group}
    texts = {
        f"{about.axis}/{about.name}.md": page(about, pictures[f"{about.axis}_{about.name}"])
        for group in descriptions.values()
        for about in group
    }
    return {"README.md": index(descriptions), **texts}, pictures


def built_in(axis: Any, name: str) -> bool:
    """Return whether a strategy belongs to the library and not to an installed plugin."""
    return describe(axis, name).cls.__module__.startswith("mtl_axes.")


def write(folder: Path) -> None:
    """Write all pages and pictures, and remove the files of strategies that no longer exist."""
    texts, pictures = build()
    numbers = {name: picture.numbers() for name, picture in pictures.items()}
    for name in superfluous(folder, texts, pictures):
        (folder / name).unlink()
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "images").mkdir(exist_ok=True)
    for name, picture in pictures.items():
        target, mark = folder / f"images/{name}.png", digest(numbers[name])
        if not drawn_from(target, mark):
            draw(picture, target, mark)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(numbers[name])}" for name in sorted(numbers))
    (folder / "pictures.json").write_text("{\n" + lines + "\n}\n")


def differences(folder: Path) -> list[str]:
    """Return what differs in the folder from what would be written."""
    texts, pictures = build()
    stored = json.loads((folder / "pictures.json").read_text()) if (folder / "pictures.json").exists() else {}
    wrong = [f"{name}: the text differs" for name, text in texts.items() if read(folder / name) != text]
    for name, picture in pictures.items():
        if name not in stored or not close(picture.numbers(), stored[name]):
            wrong.append(f"{name}: its numbers differ from those in pictures.json")
        elif not drawn_from(folder / f"images/{name}.png", digest(stored[name])):
            wrong.append(f"images/{name}.png: not drawn from the numbers in pictures.json")
    return [*wrong, *(f"{name}: belongs to no strategy" for name in superfluous(folder, texts, pictures))]


def superfluous(folder: Path, texts: dict[str, str], pictures: dict[str, Picture]) -> list[str]:
    """Return the files of the folder that belong to no strategy."""
    written = {*texts, "pictures.json", *(f"images/{name}.png" for name in pictures)}
    return sorted({path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - written)


def read(path: Path) -> str:
    """Return the text of a file, or "" if it is missing."""
    return path.read_text() if path.exists() else ""


def drawn_from(picture: Path, mark: str) -> bool:
    """Return whether a picture exists and names this digest."""
    return picture.exists() and mark.encode() in picture.read_bytes()


def close(new: Any, old: Any, scale: float = 0.0) -> bool:
    """Return whether two sets of numbers agree, relative to the largest number of their line."""
    if isinstance(new, dict):
        return isinstance(old, dict) and list(new) == list(old) and all(close(new[key], old[key]) for key in new)
    if isinstance(new, list):
        scale = max((abs(value) for value in new if isinstance(value, float)), default=0.0)
        alike = isinstance(old, list) and len(new) == len(old)
        return alike and all(close(a, b, scale) for a, b in zip(new, old, strict=True))
    if isinstance(new, str) or isinstance(old, str):
        return bool(new == old)
    return bool(abs(new - old) <= TOLERANCE * scale)


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description="Write docs/reference from the registry.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing; exit 1 if anything differs")
    if not parser.parse_args(arguments).check:
        write(FOLDER)
        return 0
    wrong = differences(FOLDER)
    for line in wrong:
        print(line)
    if wrong:
        print("Run python docs/builder, then review and commit the changes.")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
