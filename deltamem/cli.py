"""The `deltamem` command."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@contextmanager
def _errors_in_words() -> Iterator[None]:
    """Wrong input ends in one line on standard error and exit status 2, not in a traceback."""
    try:
        yield
    except (ValueError, OSError, NotImplementedError) as error:
        typer.echo(f"deltamem: {error}", err=True)
        raise typer.Exit(2) from error


@app.callback()
def main() -> None:
    """A tiny online memory for frozen language models."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)


@app.command()
def demo(
    model: Annotated[str | None, typer.Option(help="Backbone: a folder or a Hub name. The adapter's own by default.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Adapter: a folder or a Hub name. The shipped one by default.")] = None,
    episodes: Annotated[int, typer.Option(min=2, help="Held-out episodes per number of facts.")] = 150,
    seed: Annotated[int, typer.Option(help="Seed of the episodes.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Tell a frozen model some facts, drop the context, and see what it still knows."""
    from deltamem import demo as show  # imports torch and transformers, which --help should not wait for

    with _errors_in_words():
        result = show.run(model, adapter, episodes, seed, show_progress=not as_json)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        show.print_result(result)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)
def train(context: typer.Context) -> None:
    """Train an adapter on chats; `deltamem train --help` lists the options, transformers' TrainingArguments among them."""
    from deltamem.training import command

    with _errors_in_words():
        command.main(context.args)
