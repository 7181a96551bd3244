"""vLLM's models with memories: `DeltaMemLlamaForCausalLM` is vLLM's `LlamaForCausalLM` with an adapter."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import Tensor, nn

from deltamem.adapter.checks import check_fits
from deltamem.hook.backbone_identity import NUMBERS, backbone_numbers, check_backbone
from deltamem.vllm.adapter import Adapter
from deltamem.vllm.batch import SlotUse
from deltamem.vllm.memory_layer import MemoryLayer
from deltamem.vllm.options import MemoryOptions
from deltamem.vllm.places import hook_of, places
from deltamem_vllm import ARCHITECTURES, PREFIX


class WithMemory(nn.Module):
    """Mixed into one of vLLM's models: attaches the adapter to it."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._text_config = vllm_config.model_config.hf_text_config
        self._adapter = Adapter.read(MemoryOptions.from_config(vllm_config.additional_config).adapter)
        attach(self, self._adapter, vllm_config)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        """Load the backbone's weights, and compare them with those that the adapter was made for.

        Raises:
            ValueError: they are others.
        """
        loaded = super().load_weights(weights)  # type: ignore[misc]
        expected = self._adapter.config.backbone
        if expected is not None:
            check_backbone(expected, identity(self, self._text_config))
        return loaded


def attach(model: nn.Module, adapter: Adapter, vllm_config: Any) -> None:
    """Give a model's attention modules their memories.

    Raises:
        ValueError: the adapter does not fit the model.
    """
    config = vllm_config.model_config.hf_text_config
    modules, hook = dict(model.named_modules()), hook_of(config.model_type)
    missing = [name for name in adapter.layers if name not in modules]
    if missing:
        raise ValueError(
            f"the adapter {adapter.name!r} has weights for {missing[0]}, which vLLM's {type(model).__name__} has not; load the "
            "backbone that it was trained on"
        )
    projections = {name: places(modules[name], hook) for name in adapter.layers}
    check_fits(adapter.config, config.hidden_size, config.num_hidden_layers, projections)
    uses: dict[int, SlotUse] = {}
    for name, weights in adapter.layers.items():
        place = projections[name]
        layer = MemoryLayer(name, adapter.config.memory_kind, weights, adapter.config.alpha / adapter.config.r, uses)
        layer.attach(place)
        vllm_config.compilation_config.static_forward_context[layer.prefix] = layer


def identity(model: Any, config: Any) -> dict[str, Any]:
    """Describe the backbone as an adapter does; see `backbone_identity`.

    vLLM pads the embedding, and gives each rank a part of its rows; only the first rank has those that are compared, unless the
    vocabulary is tiny.
    """
    embedding = next((module for name, module in model.named_modules() if name.endswith("embed_tokens")), None)
    weight = None if getattr(embedding, "tp_rank", 0) else getattr(embedding, "weight", None)
    if weight is not None and len(weight) < min(config.vocab_size, NUMBERS):
        weight = None
    return {
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "embedding": None if weight is None else backbone_numbers(weight[: config.vocab_size]),
    }


@cache
def with_memory(architecture: str) -> type[nn.Module]:
    """One of vLLM's models, with memories."""
    from vllm.model_executor.models import ModelRegistry

    base = ModelRegistry.models[architecture].load_model_cls()
    return type(PREFIX + architecture, (WithMemory, base), {"__module__": __name__})


def __getattr__(name: str) -> type[nn.Module]:
    """The model of this name, for vLLM, which imports it from here."""
    architecture = name.removeprefix(PREFIX)
    if architecture == name or architecture not in ARCHITECTURES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return with_memory(architecture)
