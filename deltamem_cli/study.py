"""`deltamem study`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from deltamem_cli.common import AsJson, Device, Dtype, app, errors_in_words, show


@app.command()
def study(
    grid: Annotated[
        Path, typer.Argument(metavar="GRID", help="YAML file of what to train, vary and measure, as in docs/studies.")
    ],
    results: Annotated[
        Path | None, typer.Option(help="Folder for the runs, the images and the summary.  [default: runs/NAME]")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of runs.")] = None,
    only: Annotated[str | None, typer.Option(help="Run only the variants of this curve.")] = None,
    part: Annotated[str | None, typer.Option(help="1/2 or 2/2 takes half of the runs, for two processes; and so on.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    draw: Annotated[bool, typer.Option("--draw", help="Only draw, without running anything.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a grid of trainings and measurements, and draw its curves.

    An interrupted study resumes where it stopped.
    """
    from deltamem.backbones import Placement
    from deltamem.study import command

    folder = results or Path("runs") / grid.stem
    with errors_in_words():
        summary = command.main(grid, folder, limit, only, part, draw, Placement(dtype, device))
    show(summary, as_json, partial(command.print_summary, folder=folder))
