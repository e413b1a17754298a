"""Read C-MAPSS files (folder or zip) into engines.

A file holds one row per flight cycle and 26 columns: engine, cycle, three operational settings, 21 sensors. Training
engines run to failure; test engines stop earlier, and ``RUL_FD00x.txt`` says how many cycles each of them had left.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

SUBSETS = ("FD001", "FD002", "FD003", "FD004")
COLUMNS = 26

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Engine:
    """One engine: ``settings (T, 3)``, ``sensors (T, 21)`` and the cycles left after the last row."""

    number: int
    settings: Array
    sensors: Array
    end_rul: int

    def __len__(self) -> int:
        return len(self.settings)

    @property
    def rul(self) -> Array:
        """Remaining useful life at every row, in cycles, not capped: shape (T,)."""
        return self.end_rul + np.arange(len(self) - 1, -1, -1, dtype=np.float64)

    def cut(self, cycles: int) -> Engine:
        """The same engine, seen only for its first ``cycles`` cycles."""
        return Engine(self.number, self.settings[:cycles], self.sensors[:cycles], self.end_rul + len(self) - cycles)


@dataclass(frozen=True, eq=False)
class Fleet:
    """The three files of a subset; ``digest`` is the SHA-256 of their text."""

    subset: str
    train: tuple[Engine, ...]
    test: tuple[Engine, ...]
    digest: str


def check_subset(name: str) -> str:
    """The subset's name, if it is one of the four."""
    if name in SUBSETS:
        return name
    near = get_close_matches(name.upper(), SUBSETS, n=1, cutoff=0.5)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    raise InputError(f"The subset should be one of {', '.join(SUBSETS)}. Found `{name}`.{hint}")


def file_names(subset: str) -> tuple[str, str, str]:
    """Training rows, test rows, true RUL of the test engines."""
    return f"train_{subset}.txt", f"test_{subset}.txt", f"RUL_{subset}.txt"


def load_fleet(source: Path, subset: str) -> Fleet:
    """Read one subset from a folder or from NASA's zip.

    Raises:
        InputError: a file is missing or malformed; the error names it and the line.
    """
    names = file_names(check_subset(subset))
    texts = _read_texts(source, names)
    train = _parse_engines(texts[0], names[0])
    test = _parse_engines(texts[1], names[1])
    ruls = _parse_ruls(texts[2], names[2])
    if len(ruls) != len(test):
        raise InputError(
            f"`{names[2]}` should have one line per test engine ({len(test)} engines in `{names[1]}`). "
            f"Found {len(ruls)} lines. Take the three files of a subset from one source."
        )
    digest = hashlib.sha256()
    for text in texts:
        digest.update("\n".join(line.rstrip() for line in text.splitlines()).encode() + b"\0")
    return Fleet(
        subset,
        tuple(Engine(number, settings, sensors, 0) for number, settings, sensors in train),
        tuple(Engine(number, settings, sensors, rul) for (number, settings, sensors), rul in zip(test, ruls, strict=True)),
        digest.hexdigest(),
    )


def _read_texts(source: Path, names: tuple[str, ...]) -> list[str]:
    if source.is_dir():
        missing = [name for name in names if not (source / name).is_file()]
        if missing:
            raise InputError(
                f"The folder `{source}` lacks {', '.join(missing)}. "
                "Point `--data` at the unpacked C-MAPSS folder or at NASA's zip."
            )
        return [(source / name).read_bytes().decode("utf-8", "replace") for name in names]
    if not source.is_file():
        raise InputError(
            f"There is no file or folder `{source}`. Pass a folder or a zip with the C-MAPSS files as `--data`: download "
            "CMAPSSData.zip from NASA's Prognostics Data Repository, or leave `--data` out for the simulated fleet."
        )
    try:
        with zipfile.ZipFile(source) as archive:
            members = _members(archive)
            missing = [name for name in names if name not in members]
            if missing:
                raise InputError(
                    f"The zip `{source}` lacks {', '.join(missing)}. "
                    "Take CMAPSSData.zip from NASA's Prognostics Data Repository."
                )
            return [members[name].decode("utf-8", "replace") for name in names]
    except (zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"The file `{source}` is not a readable zip ({error}). Download it again, or point `--data` at the "
            "unpacked folder."
        ) from error


def _members(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """Text files by base name; the repository wraps CMAPSSData.zip in a second zip, so nested zips are opened too."""
    members: dict[str, bytes] = {}
    for info in archive.infolist():
        name = info.filename.rsplit("/", 1)[-1]
        if name.endswith(".txt"):
            members[name] = archive.read(info)
        elif name.lower().endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(archive.read(info))) as inner:
                members.update(_members(inner))
    return members


def _parse_engines(text: str, name: str) -> list[tuple[int, Array, Array]]:
    lines = text.rstrip().splitlines()
    if not lines:
        raise InputError(f"`{name}` is empty. Download it again.")
    rows = [line.split() for line in lines]
    for at, row in enumerate(rows, start=1):
        if len(row) != COLUMNS:
            what = "the last row, so the file may be cut off" if at == len(rows) else "a damaged or foreign row"
            raise InputError(
                f"`{name}` line {at} should have {COLUMNS} columns (engine, cycle, 3 settings, 21 sensors). "
                f"Found {len(row)}: {what}. Replace the file with the published one."
            )
    try:
        values = np.array(rows, dtype=np.float64)
    except ValueError:
        values = np.full((len(rows), COLUMNS), np.nan)
    if not np.isfinite(values).all():
        _point_at_non_number(rows, name)
    return _cut_into_engines(values, name)


def _point_at_non_number(rows: list[list[str]], name: str) -> None:
    for at, row in enumerate(rows, start=1):
        for column, token in enumerate(row, start=1):
            try:
                finite = bool(np.isfinite(float(token)))
            except ValueError:
                finite = False
            if not finite:
                raise InputError(
                    f"`{name}` line {at} column {column} should be a finite number. Found `{token}`. "
                    "Replace the file with the published one."
                )


def _cut_into_engines(values: Array, name: str) -> list[tuple[int, Array, Array]]:
    # Rows of one engine are adjacent and their cycles count 1, 2, 3, ...: a lost or doubled row would shift its RUL labels.
    starts = np.flatnonzero(np.diff(values[:, 0], prepend=np.nan) != 0)
    engines = []
    seen: set[int] = set()
    for start, stop in zip(starts, [*starts[1:], len(values)], strict=True):
        number = int(values[start, 0])
        if number in seen:
            raise InputError(
                f"`{name}` lists engine {number} again at line {start + 1}. Replace the file with the published one."
            )
        seen.add(number)
        wrong = np.flatnonzero(values[start:stop, 1] != np.arange(1, stop - start + 1))
        if wrong.size:
            raise InputError(
                f"`{name}` line {start + wrong[0] + 1} should be cycle {wrong[0] + 1} of engine {number}. "
                f"Found cycle {values[start + wrong[0], 1]:g}, so a row is missing or doubled. "
                "Replace the file with the published one."
            )
        engines.append((number, values[start:stop, 2:5].copy(), values[start:stop, 5:].copy()))
    return engines


def _parse_ruls(text: str, name: str) -> list[int]:
    ruls = []
    for at, line in enumerate(text.rstrip().splitlines(), start=1):
        tokens = line.split()
        if len(tokens) != 1 or not tokens[0].isdigit():
            raise InputError(
                f"`{name}` line {at} should be one whole number of cycles, 0 or more. Found `{line.strip()}`. "
                "Replace the file with the published one."
            )
        ruls.append(int(tokens[0]))
    return ruls
