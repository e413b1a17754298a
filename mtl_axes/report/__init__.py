"""The report of a study: one HTML file that shows the two axes, and needs neither a network nor a server.

Vega-Lite, whose JavaScript comes with vl-convert, draws the charts, and Jinja2 fills the page around them. Both come with
``pip install 'mtl_axes[report]'`` and are imported when a report is written.
"""

from __future__ import annotations

from pathlib import Path

from mtl_axes.report.content import content
from mtl_axes.study.results import Results

__all__ = ["write_report"]


def write_report(results: Results, path: str | Path) -> Path:
    """Write the results of a study as one self-contained HTML file.

    The file holds the grid of both axes, each cell's formulas, options, seeds, histories and predictions, the effects with
    their intervals, and what reproduces the study. Histories and predictions are thinned, so that a study of 8 x 8 cells and
    10 seeds stays under 5 MB; metrics are written with 6 significant digits, drawn values with 4.

    Args:
        results: the results.
        path: the file to write. A missing folder is made; an existing file is replaced.

    Returns:
        The path.

    Raises:
        ImportError: jinja2, vl-convert-python, numpy or scipy are missing.
        OSError: the file cannot be written.
    """
    try:
        from mtl_axes.report.page import page
    except ImportError as error:
        raise ImportError(
            f"A report needs {error.name}, which is not installed. Install all that a report needs with: "
            'pip install "mtl_axes[report]"'
        ) from error
    path = Path(path)
    text = page(content(results))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Errors quote file names that are not UTF-8; characters that cannot be encoded are escaped, which JSON reads back.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path
