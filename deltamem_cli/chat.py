"""`deltamem chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltamem_cli.common import Adapter, Device, Dtype, app, errors_in_words


@app.command()
def chat(
    model: Annotated[
        str | None, typer.Argument(help="Backbone: a folder or a Hub name. The adapter's own by default.", show_default=False)
    ] = None,
    adapter: Adapter = None,
    session: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for /save and /load.")] = Path("sessions"),
    system: Annotated[
        str | None,
        typer.Option(help='System prompt of new sessions, "" for none. By default the template\'s own.'),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of an answer.")] = 256,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, help="Sampling temperature; 0 for greedy decoding. The model's own by default."),
    ] = None,
    no_adapter: Annotated[
        bool, typer.Option("--no-adapter", help="Begin with the backbone alone; /on switches the memory on.")
    ] = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Chat in the terminal with a model that has a memory.

    Inside, /help lists the commands for the memory.
    """
    from deltamem.backbones import Placement
    from deltamem.chat.terminal import command

    with errors_in_words():
        command.run(model, adapter, session, system, max_new_tokens, temperature, Placement(dtype, device), not no_adapter)
