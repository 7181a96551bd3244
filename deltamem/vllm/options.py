"""The options of an engine with memories."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

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


def engine_options(model: str | os.PathLike[str], adapter: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """The options with which vLLM runs a model with memories: `LLM(model, **engine_options(model, adapter))`.

    Args:
        model: the backbone, a folder or a name on the Hub.
        adapter: the adapter, likewise.
        options: further ones of `MemoryOptions`.

    Raises:
        ValueError: vLLM has no architecture with memories for this model.
        OSError: there is no such model.
    """
    from transformers import AutoConfig

    architectures = AutoConfig.from_pretrained(os.fspath(model)).architectures or []
    name = next((name for name in architectures if name in ARCHITECTURES), None)
    if name is None:
        raise ValueError(
            f"a model of the architectures {architectures!r} cannot have memories in vLLM; accepted are "
            f"{', '.join(ARCHITECTURES)}. `deltamem serve` takes every model that docs/architectures.md lists"
        )
    return {
        "hf_overrides": {"architectures": [PREFIX + name]},
        "additional_config": {NAME: asdict(MemoryOptions(os.fspath(adapter), **options))},
    }
