"""Warnings that a criterion shows once."""

from __future__ import annotations

import warnings

__all__ = ["Once"]


class Once:
    """Shows each warning once."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def __call__(self, key: str, message: str | None) -> None:
        """Show ``message`` unless it is None, or a warning with this key was shown."""
        if message is not None and key not in self._shown:
            self._shown.add(key)
            warnings.warn(message, stacklevel=3)
