"""`deltamem study`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deltamem.cli.common import Device, Dtype, app, errors_in_words


@app.command()
def study(
    grid: Annotated[
        Path, typer.Argument(metavar="GRID", help="What is trained, varied and measured: a YAML file, as in docs/studies.")
    ],
    results: Annotated[
        Path | None, typer.Option(help="Folder for the runs, the images and the summary.  [default: runs/NAME]")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Run so many at most.")] = None,
    only: Annotated[str | None, typer.Option(help="Run the variants of this curve alone.")] = None,
    part: Annotated[str | None, typer.Option(help="1/2, 2/2: a half of the runs, for two processes; and so on.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    draw: Annotated[bool, typer.Option("--draw", help="Run nothing, draw again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Run a grid of trainings and measurements, draw its curves.

    A run that was broken off goes on from there.
    """
    from deltamem.backbones import Placement
    from deltamem.study import command

    folder = results or Path("runs") / grid.stem
    with errors_in_words():
        summary = command.main(grid, folder, limit, only, part, draw, Placement(dtype, device))
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        command.print_summary(summary, folder)
