"""`deltamem convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltamem.cli.common import app, errors_in_words


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder with an adapter.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder for the converted one: empty, or a new one.")],
    to: Annotated[
        str,
        typer.Option(
            help="peft: from the format of the authors' code to PEFT's. reference: from PEFT's to theirs, as safetensors."
        ),
    ] = "peft",
    base_model: Annotated[
        str | None,
        typer.Option(
            help="The model that the adapter was made for, a folder or a Hub name. Needed for peft: their format does not say."
        ),
    ] = None,
) -> None:
    """Convert an adapter of the authors' code to PEFT, or back.

    Theirs is a folder with delta_mem_config.json and delta_mem_adapter.pt or delta_mem_adapter.safetensors.
    """
    from deltamem.convert import command

    with errors_in_words():
        written = command.convert(source, target, to, base_model)
    typer.echo(f"{target}: {written['tensors']} tensors, {written['parameters']:,} parameters")
