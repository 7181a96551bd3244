"""What differs between the releases of transformers and peft that the library accepts, each with its reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

import peft
import peft.functional
import torch
import transformers
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import save_and_load
from torch import Tensor, nn
from transformers import cache_utils
from transformers.modeling_outputs import CausalLMOutputWithPast

# torch 2.6 has no tag that keeps an operator out of CUDA graphs; torch.compile with such graphs was not tried there.
NOT_IN_A_CUDA_GRAPH: dict[str, Any] = {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}

# transformers 5.24 renamed the KV cache; models that are not its own may still have the other name.
CACHE_NAMES = ("cache", "past_key_values")
# What its models are called with.
CACHE = next(name for name in CACHE_NAMES if name in CausalLMOutputWithPast.__dataclass_fields__)

# transformers 5.23 knows by this class a cache layer that has no keys; before, it is any that is not a CacheLayerMixin.
LayerWithoutKeys: type = getattr(cache_utils, "DummyLayer", object)

# transformers 5.15 and later crop a cache by a number of tokens to remove; before, a number from zero up is a length to keep.
CROPS_TO_LENGTH = "tokens_to_remove" not in signature(cache_utils.Cache.crop).parameters

# The sizes of a mask depend on the number of new tokens; transformers 5.0 takes their positions, and counts them.
SIZES_BY_POSITIONS = "cache_position" in signature(cache_utils.Cache.get_mask_sizes).parameters

# transformers 5.20 and later keep the weights of a GGUF file quantised unless they are told not to.
DEQUANTISED = {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}

# peft 0.21 asks a tuner for the weights of its adapters in a model; before, it goes by their names alone.
PEFT_ASKS_TUNERS = hasattr(BaseTuner, "_remap_adapter_state_dict_for_load")


def mask_sizes(cache: cache_utils.Cache, tokens: int, layer: int) -> tuple[int, int]:
    """The length of the mask for some new tokens in a layer of a cache, and how many tokens seen are no longer in it."""
    asked = torch.empty(tokens, dtype=torch.long, device="cpu") if SIZES_BY_POSITIONS else tokens
    length, left_out = cache.get_mask_sizes(asked, layer)
    return length, left_out


def names_in_model(
    prefix: str, model: nn.Module, config: peft.PeftConfig, adapter: str, weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The weights of an adapter's file by their names in the model, as peft maps them; others keep their names."""
    if PEFT_ASKS_TUNERS:
        return BaseTuner._remap_adapter_state_dict_for_load(model, config, adapter, weights)
    return save_and_load._insert_adapter_name_into_state_dict(weights, adapter_name=adapter, parameter_prefix=prefix)


def ask_tuner(tuner: type[BaseTuner]) -> None:
    """Let every peft ask a tuner for the weights of its adapters, as peft 0.21 does.

    Whoever imported peft's functions before keeps those that go by the names alone.
    """
    if PEFT_ASKS_TUNERS:
        return
    places = (peft, peft.utils, peft.functional, peft.peft_model, save_and_load)
    for name, asking in (("get_peft_model_state_dict", _getting), ("set_peft_model_state_dict", _setting)):
        function = asking(getattr(save_and_load, name), tuner)
        for place in places:
            if hasattr(place, name):
                setattr(place, name, function)


def _setting(peft_sets: Callable[..., Any], tuner: type[BaseTuner]) -> Callable[..., Any]:
    @wraps(peft_sets)
    def set_weights(
        model: Any, peft_model_state_dict: dict[str, Tensor], adapter_name: str = "default", *args: Any, **kwargs: Any
    ) -> Any:
        config = model.peft_config[adapter_name]
        if PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type) is tuner:
            named = re.compile(rf"(\.{tuner.prefix}\w+)\.{re.escape(adapter_name)}(\.weight)?$")
            checked = tuner._remap_adapter_state_dict_for_load(model, config, adapter_name, peft_model_state_dict)
            # peft names them again.
            peft_model_state_dict = {named.sub(r"\1\2", name): weight for name, weight in checked.items()}
        return peft_sets(model, peft_model_state_dict, adapter_name, *args, **kwargs)

    return set_weights


def _getting(peft_gets: Callable[..., Any], tuner: type[BaseTuner]) -> Callable[..., Any]:
    @wraps(peft_gets)
    def get_weights(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        # peft 0.18 takes the adapter's own name out of the names, and leaves the other adapters' weights among them.
        others = re.compile(rf"\.{tuner.prefix}\w+\.(?!weight$)")
        return {name: weight for name, weight in peft_gets(*args, **kwargs).items() if not others.search(name)}

    return get_weights
