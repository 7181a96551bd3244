"""What all commands share: the application, its errors, and options that several have."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from deltamem.io.printable import printable

# Commands import what they need when they run: some of it is slow to import, or in an extra.
# Plain help: rich would take the "[default: 1]" in it for markup, and leave it out.
Dtype = Annotated[str, typer.Option(help="Of the backbone: float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="Where it runs: cpu, cuda, cuda:1, ...")]
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Wrong input ends in one line on standard error and exit status 2, not in a traceback."""
    try:
        yield
    except (ValueError, OSError, NotImplementedError, ImportError) as error:
        typer.echo(printable(f"deltamem: {' '.join(str(error).split())}"), err=True)
        raise typer.Exit(2) from error


@app.callback()
def main() -> None:
    """A tiny online memory (δ-mem) for frozen language models. `deltamem COMMAND --help` says what a command does."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
