"""``python -m mtl_axes`` is the command ``mtl-axes``."""

from __future__ import annotations

from mtl_axes.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
