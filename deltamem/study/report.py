"""Draws and summarises the results of a study."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deltamem.io.files import write_atomically
from deltamem.study.figures import curve_figures
from deltamem.study.grid import Grid
from deltamem.study.plots import draw
from deltamem.study.results import Record
from deltamem.study.summary import as_markdown


def report(name: str, grid: Grid, records: Iterable[Record], folder: Path) -> dict[str, Any]:
    """Draw the curves and write `summary.md`.

    Args:
        name: the study's name.
        grid: the grid that was to be run.
        records: the finished runs; those of other grids are ignored.
        folder: the folder for the images and the page.

    Returns:
        The paths of the `images`, and the figures of all `curves`.
    """
    curves = curve_figures(grid, records)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "summary.md", as_markdown(name, curves).encode("utf-8"), private=False)
    return {
        "images": [str(image) for image in draw(curves, folder)],
        "curves": {curve: figures.summary() for curve, figures in curves.items()},
    }
