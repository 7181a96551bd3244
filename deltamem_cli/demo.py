"""`deltamem demo`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from deltamem_cli.common import Device, Dtype, app, errors_in_words


@app.command()
def demo(
    model: Annotated[str | None, typer.Option(help="Backbone: a folder or a Hub name. The adapter's own by default.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Adapter: a folder or a Hub name. The shipped one by default.")] = None,
    episodes: Annotated[int, typer.Option(min=2, help="Held-out episodes per number of facts.")] = 150,
    seed: Annotated[int, typer.Option(help="Seed of the episodes.")] = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Tell a frozen model some facts, drop the context, and ask.

    Shows one conversation, then the share of questions answered correctly, with the memory and with controls.
    """
    from deltamem.backbones import Placement
    from deltamem.evaluation import demo as show

    with errors_in_words():
        result = show.run(model, adapter, episodes, seed, not as_json, Placement(dtype, device))
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        show.print_result(result)
