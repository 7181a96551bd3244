"""Saves drawings."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from deltamem.io.files import write_atomically


def save_drawing(drawing: Figure, path: Path) -> None:
    """Save a drawing as an image, of the kind that the file's name ends in; one that is there is replaced, or stays as it was.

    Raises:
        ValueError: the path leads to something that is no regular file.
        OSError: the file cannot be written.
    """
    image = io.BytesIO()
    drawing.savefig(image, format=path.suffix.removeprefix("."), dpi=150, bbox_inches="tight")  # a legend may be wide
    write_atomically(path, image.getvalue(), private=False)
