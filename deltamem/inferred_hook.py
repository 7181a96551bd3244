"""A hook for a model type that nobody registered, inferred from the names of its projections."""

from __future__ import annotations

import logging
from itertools import product

from torch import nn

from deltamem.decoder import decoder_modules
from deltamem.hook import AttentionHook
from deltamem.projection import is_linear

logger = logging.getLogger(__name__)

# Names in use for queries, keys and values, and for outputs. Packed projections are not inferred: from a name nobody can tell
# how they lie.
QUERIES_KEYS_VALUES = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("wq", "wk", "wv"),
    ("Wq", "Wk", "Wv"),
    ("to_q", "to_k", "to_v"),
)
OUTPUTS = ("o_proj", "out_proj", "dense", "wo", "Wo", "c_proj", "out_lin", "to_out", "proj")
# How names of self-attention modules tell them from those that attend to something else.
ELSEWHERE = ("cross", "encoder", "vision", "visual", "image", "audio")


def infer_hook(model: nn.Module) -> AttentionHook | None:
    """The hook for the attention modules of a model whose projections have names in use.

    None if there are none, or several kinds.

    What was inferred is logged, as a warning: from names alone nobody knows what a module computes.
    """
    hooks = {
        (name.rpartition(".")[2], *names, output): name
        for name, module in attention_like(model).items()
        for names, output in product(QUERIES_KEYS_VALUES, OUTPUTS)
        if all(is_linear(getattr(module, part, None)) for part in (*names, output))
    }
    if len(hooks) != 1:
        return None
    (attention, q, k, v, o), example = hooks.popitem()
    hook = AttentionHook(attention, q=q, k=k, v=v, o=o)
    logger.warning(
        "no attention hook is registered for %s; inferred one from %s: AttentionHook(attention=%r, q=%r, k=%r, v=%r, o=%r). If "
        "that is right, say so with deltamem.register_hook",
        type(model).__name__,
        example,
        *(attention, q, k, v, o),
    )
    return hook


def attention_like(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model's text decoder that are named or called attention, have parts, and attend to the text itself."""
    return {
        name: module
        for name, module in decoder_modules(model)
        if any(True for _ in module.children()) and _looks_like_attention(name, module)
    }


def _looks_like_attention(name: str, module: nn.Module) -> bool:
    if isinstance(module, nn.ModuleList):
        return False
    words = f"{name.rpartition('.')[2]} {type(module).__name__}".lower()
    return ("attn" in words or "attention" in words) and not any(word in words for word in ELSEWHERE)
