"""`deltamem push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltamem.cli.common import app, errors_in_words


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a saved adapter.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where to on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository one that only its owner sees.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch.  [default: main]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Send nothing; show all that would be sent.")] = False,
) -> None:
    """Check an adapter, and send it to the Hub with its card.

    All files of the folder, in one commit, and the model card, completed. Who you are comes from HF_TOKEN or `hf auth login`.
    """
    from deltamem.hub import upload

    with errors_in_words():
        prepared = upload.prepare(folder, repo)
        typer.echo(upload.as_text(prepared) if dry_run else upload.send(prepared, private, revision))
