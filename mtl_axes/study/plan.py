"""The settings of a study other than its levels, checked: seeds, metrics, baselines, options, plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from mtl_axes.errors import OptionError
from mtl_axes.study.runs import Direction

__all__ = ["Baseline", "as_baselines", "as_metrics", "as_options", "as_plain", "as_seeds"]

Baseline = Literal["equal", "ended", "tuned"]


def as_metrics(given: Mapping[str, Direction | None] | None) -> dict[str, Direction | None]:
    """Return metrics and their directions."""
    if given is not None and not isinstance(given, Mapping):
        raise OptionError(f'`metrics` should be a mapping such as {{"rmse": "min", "auc": "max"}}. Found {given!r}.')
    for name, direction in (given or {}).items():
        if direction not in ("min", "max", None):
            raise OptionError(
                f'The direction of the metric `{name}` should be "min" (lower is better), "max" (higher is better) or None. '
                f"Found {direction!r}."
            )
    return dict(given or {})


def as_baselines(given: Sequence[Baseline]) -> tuple[Baseline, ...]:
    """Return the baselines."""
    if isinstance(given, str) or any(baseline not in get_args(Baseline) for baseline in given):
        raise OptionError(f'`baselines` should be a list with some of "equal", "ended" and "tuned". Found {given!r}.')
    return tuple(given)


def as_options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return further options of ``compose``, which all cells share."""
    options = dict(given or {})
    own = [name for name in ("outer", "inner", "shared") if name in options]
    if own:
        raise OptionError(
            f"`compose` cannot hold {', '.join(own)}: the axes differ between cells, and `shared` belongs to a model that "
            "does not exist yet. To name the shared parameters, build another criterion in the training function: "
            "compose(**criterion.config(), shared=model.trunk)."
        )
    return options


def as_seeds(given: int | Sequence[int]) -> tuple[int, ...]:
    """Return the seeds: 0 to n - 1 for a number n, else distinct ones in [0, 2^32), the range of NumPy."""
    seeds = given if isinstance(given, (list, tuple, range)) else ()
    if isinstance(given, int) and not isinstance(given, bool):
        seeds = range(given)
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        raise OptionError(f"`seeds` should be a number of seeds, or distinct whole numbers in [0, 2^32). Found {given!r}.")
    return tuple(seeds)


def as_plain(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data as JSON gives it back."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(given))
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"`{name}` should be plain data: numbers, texts, lists, mappings. Found {given!r} ({error})."
        ) from error
    return plain
