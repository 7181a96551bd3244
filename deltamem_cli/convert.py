"""`deltamem convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltamem_cli.common import app, errors_in_words


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder with an adapter.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder for the converted adapter, empty or new.")],
    to: Annotated[
        str,
        typer.Option(
            help="peft: convert the format of the authors' code to PEFT's. reference: convert PEFT's to theirs, as safetensors."
        ),
    ] = "peft",
    base_model: Annotated[
        str | None,
        typer.Option(
            help="The model that the adapter was made for, a folder or a Hub name. Required for peft: their format lacks it."
        ),
    ] = None,
) -> None:
    """Convert an adapter of the authors' code to PEFT, or back.

    Their format is a folder with delta_mem_config.json and delta_mem_adapter.pt or delta_mem_adapter.safetensors.
    """
    from deltamem.convert import command

    with errors_in_words():
        written = command.convert(source, target, to, base_model)
    typer.echo(f"{target}: {written['tensors']} tensors, {written['parameters']:,} parameters")
