"""Hooks the model card into `save_pretrained` and `push_to_hub`.

transformers' `push_to_hub`, which every PeftModel inherits, replaces the saved card with its default card, "of a transformers
model", before it uploads the folder. `PeftModel` gets an upload step that restores δ-mem's card and leaves other methods
unchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel

from deltamem.config import DeltaMemConfig
from deltamem.hub.card import write_card

MAIN_ADAPTER = "default"  # peft saves this one to the folder itself, others to subfolders


def keep_card() -> None:
    """Write the card of every adapter that is saved or pushed."""
    if write_card not in DeltaMemConfig.after_saving:
        DeltaMemConfig.after_saving.append(write_card)
    PeftModel._upload_modified_files = _upload_with_card


def _upload_with_card(model: PeftModel, working_dir: str, repo_id: str, *args: Any, **kwargs: Any) -> Any:
    config = model.peft_config.get(MAIN_ADAPTER)
    if isinstance(config, DeltaMemConfig):
        write_card(Path(working_dir), config, repo_id)
    return super(PeftModel, model)._upload_modified_files(working_dir, repo_id, *args, **kwargs)
