"""PassOwner: what a forward pass needs of the tuner that it belongs to."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from deltamem.config import DeltaMemConfig
from deltamem.forward.decode_weights import DecodeWeights
from deltamem.memory.snapshot import Snapshot

if TYPE_CHECKING:  # a scope knows its owner
    from deltamem.forward.scope import MemoryScope


class PassOwner(Protocol):
    """The tuner, as the passes of its model see it.

    Attributes:
        model: the backbone with the adapters.
        prefix: of the names of the adapters' parameters.
        open_scopes: the open scopes of all threads and tasks, newest last.
        active_adapters: the names of the active adapters; a memory has one.
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
        """Whether the active adapter is at work in some layer."""
        ...

    @property
    def hands_keywords_down(self) -> bool:
        """Whether the pass travels among the keywords of the model's modules, or beside them."""
        ...

    def check_reached(self, reached: Collection[str]) -> None:
        """Make sure that a pass has run through all layers with the active adapter."""
        ...

    def fingerprint(self) -> str:
        """Identifies the active adapter."""
        ...

    def decode_weights(self, device: torch.device, start: Snapshot) -> DecodeWeights:
        """The active adapter's weights in all layers, to decode with from a memory."""
        ...
