"""`deltamem inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deltamem_cli.common import AsJson, Device, Dtype, app, errors_in_words, show


@app.command()
def inspect(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="BACKBONE|ADAPTER|MEMORY",
            help="A backbone or an adapter (a folder or a Hub name), a memory file, or a session folder.",
        ),
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="For a memory, or the final one of --chat: another memory to compare with.")
    ] = None,
    chat: Annotated[
        Path | None,
        typer.Option(help='For an adapter: JSON Lines of {"messages": [...]}; one chat is written to a memory, turn by turn.'),
    ] = None,
    line: Annotated[int | None, typer.Option(help="Which chat of --chat to use, counted from 1.  [default: 1]")] = None,
    html: Annotated[
        Path | None, typer.Option(help="For a memory, or with --chat: write a page with pictures to this file.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="For a backbone: tsw, ssw or msw.  [default: tsw]")] = None,
    r: Annotated[int | None, typer.Option(help="For a backbone: width of a memory.  [default: 8]")] = None,
    corrections: Annotated[
        str | None, typer.Option(help="For a backbone: the projections to correct, such as qkvo.  [default: qo]")
    ] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    architectures: Annotated[bool, typer.Option("--architectures", help="List all model types instead.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="With --architectures: print Markdown, as in docs/architectures.md.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look into a backbone, an adapter, or a memory.

    For a backbone, shows where a memory is attached, layer by layer, and what it adds; reads only config.json. For an adapter,
    shows its norms and gates, layer by layer; with --chat, what each turn of a conversation writes and what later turns leave
    of it. For a memory, shows how much it holds. With --architectures, lists the supported model types, and why others are not.
    """
    with errors_in_words():
        if architectures == (what is not None) or (markdown and not architectures) or (markdown and as_json):
            raise ValueError("give something to inspect or --architectures, and with it --json, or --architectures --markdown")
        if architectures:
            from deltamem.inspection import architectures as listing

            found = listing.architectures()
            if as_json:
                typer.echo(json.dumps(found, indent=2))
            elif markdown:
                typer.echo(listing.as_markdown(found), nl=False)
            else:
                listing.print_architectures(found)
            return
        from deltamem.backbones import Placement
        from deltamem.inspection import command

        given = Placement(dtype, device)
        changed = {name: value for name, value in vars(given).items() if value != getattr(Placement, name)}
        options = command.Options(variant, r, corrections, compare, chat, line, html, **changed)
        figures = command.run(str(what), options)
    show(figures, as_json, command.print_figures)
