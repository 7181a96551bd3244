"""Shared by all commands: the application, its error handling, and common options."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from typing import Annotated, Any, TypeVar, cast

import typer

# Everything but typer is imported when a command runs: `--help` must not wait for torch, and some modules need an extra.
# Plain help: rich would treat "[default: 1]" as markup and drop it.
Dtype = Annotated[str, typer.Option(help="The backbone's dtype: float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="Device to run on: cpu, cuda, cuda:1, ...")]
Backbone = Annotated[str | None, typer.Option(help="Backbone: a folder or a Hub name. The adapter's own by default.")]
Adapter = Annotated[str | None, typer.Option(help="Adapter: a folder or a Hub name. The shipped one by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
Options = TypeVar("Options")
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def options_from(given: Mapping[str, Any], kind: type[Options]) -> Options:
    """Build a library's options, a dataclass, from the parameters of a command that have their names.

    Args:
        given: the command's parameters; a list becomes a tuple.
        kind: the dataclass; its defaults apply to parameters that are None or an empty list.
    """
    chosen = {one.name: given[one.name] for one in fields(cast(Any, kind)) if given.get(one.name) not in (None, [])}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()})


def show(figures: Mapping[str, Any], as_json: bool, print_figures: Callable[[Any], None]) -> None:
    """Print a command's figures, as JSON or in words."""
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        print_figures(figures)


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Turn errors about the input into one line on standard error and exit status 2, without a traceback."""
    try:
        yield
    except (ValueError, OSError, NotImplementedError, ImportError) as error:
        from deltamem.io.printable import printable

        typer.echo(printable(f"deltamem: {' '.join(str(error).split())}"), err=True)
        raise typer.Exit(2) from error


@app.callback()
def main(
    verbose: Annotated[bool, typer.Option("--verbose", help="Also show the warnings of other libraries.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """A tiny online memory (δ-mem) for frozen language models. See `deltamem COMMAND --help` for each command."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if not verbose:
        _silence_others()


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"deltamem {version('deltamem')}")
        raise typer.Exit


def _silence_others() -> None:
    """Hide the warnings of other libraries; call it before any of them is imported."""
    warnings.filterwarnings("ignore", module=r"(?!deltamem)")
    for variable in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(variable, "error")
