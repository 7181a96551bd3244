"""PassOwner: the tuner as a forward pass sees it."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from deltamem.config import DeltaMemConfig
from deltamem.forward.decode_weights import DecodeWeights
from deltamem.memory.snapshot import Snapshot

if TYPE_CHECKING:  # scope.py imports this file
    from deltamem.forward.scope import MemoryScope


class PassOwner(Protocol):
    """The part of the tuner that the passes of its model use.

    Attributes:
        model: the backbone with the adapters.
        prefix: the prefix of the adapters' parameter names.
        open_scopes: the open scopes of all threads and tasks, newest last.
        active_adapters: the names of the active adapters; a memory belongs to exactly one.
    """

    model: nn.Module
    prefix: str
    open_scopes: list[MemoryScope]

    @property
    def active_adapters(self) -> list[str]: ...  # noqa: D102

    @property
    def active_peft_config(self) -> DeltaMemConfig:
        """The active adapter's configuration."""
        ...

    @property
    def has_active_layers(self) -> bool:
        """Whether the active adapter is enabled in at least one layer."""
        ...

    @property
    def hands_keywords_down(self) -> bool:
        """Whether the model hands its keyword arguments, and with them the pass, down to its attention modules."""
        ...

    def check_reached(self, reached: Collection[str]) -> None:
        """Check that a pass has run through all layers with the active adapter."""
        ...

    def fingerprint(self) -> str:
        """A digest that identifies the active adapter."""
        ...

    def decode_weights(self, device: torch.device, start: Snapshot) -> DecodeWeights:
        """The active adapter's weights in all layers, for a decode step that starts from a memory."""
        ...
