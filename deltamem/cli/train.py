"""`deltamem train` and `deltamem baseline`, whose options are those of transformers and ours."""

from __future__ import annotations

import typer

from deltamem.cli.common import app, errors_in_words


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)
def train(context: typer.Context) -> None:
    """Train an adapter on chats or on generated facts."""
    from deltamem.training import command

    with errors_in_words():
        command.main(context.args)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)
def baseline(context: typer.Context) -> None:
    """Train what a memory is compared with: LoRA, a prefix."""
    from deltamem.training import baselines

    with errors_in_words():
        baselines.main(context.args)
