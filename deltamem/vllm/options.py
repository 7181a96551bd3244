"""The options of an engine with memories."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from typing import Any

from transformers import AutoConfig

from deltamem.adapter.files import backbone_of, read_config
from deltamem.backbones import find_backbone, shipped_adapter
from deltamem_vllm import ARCHITECTURES, PREFIX

# The key of our options in vLLM's `additional_config`.
NAME = "deltamem"
DEFAULT_STORE = "memories.db"


@dataclass(frozen=True)
class MemoryOptions:
    """What an engine with memories needs to know.

    Args:
        adapter: the folder of the adapter, or its name on the Hub.
        store: where memories are kept: the URL of a database, as for `deltamem serve`, or "files:FOLDER".
        patience: how many seconds a request waits for a memory that others are writing.
    """

    adapter: str
    store: str = DEFAULT_STORE
    patience: float = 60.0

    @classmethod
    def from_config(cls, additional_config: Any) -> MemoryOptions:
        """Read the options from vLLM's `additional_config`.

        Raises:
            ValueError: there are none, or they are not accepted.
        """
        given = additional_config.get(NAME) if isinstance(additional_config, Mapping) else None
        known = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping) or not isinstance(given.get("adapter"), str) or not {*given} <= {*known}:
            raise ValueError(
                f"additional_config={additional_config!r:.200} is not accepted for a model with memories; give "
                f'{{"{NAME}": {{"adapter": FOLDER, "store": URL}}}}, with these options: {", ".join(known)}'
            )
        return cls(**given)


def engine_options(adapter: str | os.PathLike[str] | None = None, model: str | None = None, **options: Any) -> dict[str, Any]:
    """The options with which vLLM runs a model with memories: `LLM(**engine_options(adapter))`.

    Args:
        adapter: the adapter, a folder or a name on the Hub; the shipped one if None.
        model: the backbone, likewise; the one that the adapter names if None.
        options: further ones of `MemoryOptions`.

    Raises:
        ValueError: vLLM has no architecture with memories for this model, or the adapter is of another method.
        OSError: there is no such model or adapter.
    """
    with nullcontext(os.fspath(adapter)) if adapter is not None else shipped_adapter() as name:
        read_config(name)  # refuses an adapter of another method
        backbone = find_backbone(backbone_of(name) if model is None else model)
    architectures = AutoConfig.from_pretrained(backbone).architectures or []
    known = next((architecture for architecture in architectures if architecture in ARCHITECTURES), None)
    if known is None:
        raise ValueError(
            f"a model of the architectures {architectures!r} cannot have memories in vLLM; accepted are "
            f"{', '.join(ARCHITECTURES)}. `deltamem serve` takes every model that docs/architectures.md lists"
        )
    return {
        "model": backbone,
        "hf_overrides": {"architectures": [PREFIX + known]},
        "additional_config": {NAME: asdict(MemoryOptions(name, **options))},
    }
