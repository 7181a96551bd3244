"""The keys and values of one row: made, and cut to their first tokens."""

from __future__ import annotations

from typing import Any

from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from deltamem.forward.kv_cache import MemoryCacheLayer


def new_cache(model: Any) -> Cache:
    """An empty cache. It keeps every token also where the model attends to a window, so that it can be cut."""
    cache = DynamicCache(config=model.config)
    return DynamicCache() if can_be_cut(cache) else cache


def can_be_cut(cache: Cache) -> bool:
    """Whether the cache holds nothing but keys and values by token; a recurrent layer cannot go back."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in token_layers(cache))


def token_layers(cache: Cache) -> list[Any]:
    """The layers of the model in a cache, without the memory that a pass left there."""
    return [layer for layer in cache.layers if not isinstance(layer, MemoryCacheLayer)]


def first_tokens(cache: Cache, tokens: int) -> Cache:
    """A copy of the keys and values of the first tokens."""
    cut = DynamicCache()
    for number, layer in enumerate(token_layers(cache)):
        if layer.keys is not None and tokens:  # a layer may use another's
            cut.update(layer.keys[:, :, :tokens], layer.values[:, :, :tokens], number)
    return cut
