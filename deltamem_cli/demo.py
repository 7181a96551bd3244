"""`deltamem demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from deltamem_cli.common import Adapter, AsJson, Backbone, Device, Dtype, app, errors_in_words, show


@app.command()
def demo(
    model: Backbone = None,
    adapter: Adapter = None,
    episodes: Annotated[int, typer.Option(min=2, help="Held-out episodes per number of facts.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the episodes.")] = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Tell a frozen model some facts, drop the context, and ask.

    Shows one conversation, then the share of questions answered correctly, with the memory and with controls.
    """
    from deltamem.backbones import Placement
    from deltamem.evaluation.demo import Demo, print_conversation, print_recall

    with errors_in_words():
        shown = Demo.load(model, adapter, seed, Placement(dtype, device))
        conversation = shown.conversation()
        if not as_json:
            print_conversation(conversation)
        recall = shown.recall(episodes)
    show({**conversation, **recall}, as_json, print_recall)
