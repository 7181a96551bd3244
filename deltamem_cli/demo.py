"""`deltamem demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from deltamem_cli.common import Adapter, AsJson, Backbone, Device, Dtype, app, errors_in_words, show


@app.command()
def demo(
    model: Backbone = None,
    adapter: Adapter = None,
    episodes: Annotated[int, typer.Option(min=2, help="Held-out episodes per number of facts.")] = 150,
    seed: Annotated[int, typer.Option(help="Seed of the episodes.")] = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Tell a frozen model some facts, drop the context, and ask.

    Shows one conversation, then the share of questions answered correctly, with the memory and with controls.
    """
    from deltamem.backbones import Placement
    from deltamem.evaluation import demo as library

    with errors_in_words():
        result = library.run(model, adapter, episodes, seed, Placement(dtype, device))
    show(result, as_json, library.print_result)
