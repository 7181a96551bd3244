"""Where a command's backbone runs, and in what precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from deltamem.backbones import load_backbone

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Placement:
    """The options `--dtype` and `--device` of a command.

    Raises:
        ValueError: there is no such dtype, or no such device here.
    """

    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype {self.dtype!r} is not accepted; choose one of {', '.join(DTYPES)}")
        try:
            torch.empty(0, dtype=torch.float32, device=self.device)
        except (RuntimeError, AssertionError) as error:  # torch's, for a name that means nothing or a device that is not here
            raise ValueError(f"--device {self.device!r} cannot be used: {str(error).splitlines()[0]}") from error

    def load(self, name: str) -> tuple[PreTrainedModel, Any]:
        """A backbone there, and its tokenizer."""
        model, tokenizer = load_backbone(name, DTYPES[self.dtype])
        model.to(self.device)
        return model, tokenizer
