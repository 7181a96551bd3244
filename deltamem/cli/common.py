"""Shared by all commands: the application, its error handling, and common options."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from deltamem.io.printable import printable

# Commands import lazily: some modules are slow to import, or need an extra.
# Plain help: rich would treat "[default: 1]" as markup and drop it.
Dtype = Annotated[str, typer.Option(help="The backbone's dtype: float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="Device to run on: cpu, cuda, cuda:1, ...")]
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Turn errors about the input into one line on standard error and exit status 2, without a traceback."""
    try:
        yield
    except (ValueError, OSError, NotImplementedError, ImportError) as error:
        typer.echo(printable(f"deltamem: {' '.join(str(error).split())}"), err=True)
        raise typer.Exit(2) from error


@app.callback()
def main() -> None:
    """A tiny online memory (δ-mem) for frozen language models. See `deltamem COMMAND --help` for each command."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
