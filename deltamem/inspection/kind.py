"""Detects what kind of thing `deltamem inspect` was given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from peft.utils import CONFIG_NAME
from transformers.utils import find_adapter_config_file

from deltamem.backbones import on_hub
from deltamem.chat.session import FILE

Kind = Literal["backbone", "adapter", "memory"]
# A folder's kind, by a file in it; adapters first, since some are saved together with their backbone.
FILES: dict[str, Kind] = {CONFIG_NAME: "adapter", FILE: "memory", "config.json": "backbone"}
ACCEPTED = (
    "the folder or Hub name of a backbone (with a config.json) or of an adapter (adapter_config.json), the file of a memory "
    f"that DeltaMemState.save wrote, or the folder of a session ({FILE})"
)


def kind_of(what: str) -> Kind:
    """Detect the kind of thing to inspect.

    Args:
        what: a file, a folder, or a name on the Hub.

    Raises:
        OSError: it does not exist, or the folder holds nothing that can be inspected.
    """
    if os.path.isfile(what):
        return "memory"
    if os.path.isdir(what):
        found = next((kind for name, kind in FILES.items() if (Path(what) / name).is_file()), None)
        if found is None:
            raise OSError(f"the folder {what!r} has none of {', '.join(FILES)}; give {ACCEPTED}")
        return found
    return "adapter" if _is_adapter_on_hub(what) else "backbone"


def _is_adapter_on_hub(name: str) -> bool:
    try:
        return on_hub(name) and find_adapter_config_file(name) is not None
    except OSError:  # an unknown name: the backbone's loader reports it
        return False
