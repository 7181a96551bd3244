"""`deltamem push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltamem_cli.common import app, errors_in_words


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a saved adapter.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to.  [default: main]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Upload nothing; show what would be uploaded.")] = False,
) -> None:
    """Check an adapter, and upload it to the Hub with its card.

    Uploads all files of the folder and the completed model card in one commit, authenticated by HF_TOKEN or `hf auth login`.
    """
    from deltamem.hub import upload

    with errors_in_words():
        prepared = upload.prepare(folder, repo)
        typer.echo(upload.as_text(prepared) if dry_run else upload.send(prepared, private, revision))
