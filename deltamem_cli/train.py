"""`deltamem train` and `deltamem baseline`, which take transformers' options and ours."""

from __future__ import annotations

import typer

from deltamem_cli.common import app, errors_in_words


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
    """Train a baseline to compare a memory with: LoRA or prefix tuning."""
    from deltamem.training import baselines

    with errors_in_words():
        baselines.main(context.args)
