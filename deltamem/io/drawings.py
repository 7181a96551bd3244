"""Saves drawings."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from deltamem.io.files import write_atomically


def save_drawing(drawing: Figure, path: Path) -> None:
    """Save a figure as an image atomically; the file's suffix chooses the format.

    Raises:
        ValueError: the path leads to something other than a regular file.
        OSError: the file cannot be written.
    """
    image = io.BytesIO()
    drawing.savefig(image, format=path.suffix.removeprefix("."), dpi=150, bbox_inches="tight")  # include a wide legend
    write_atomically(path, image.getvalue(), private=False)
