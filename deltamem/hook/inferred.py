"""A hook for an unregistered model type, inferred from the names of its projections."""

from __future__ import annotations

import inspect
import logging
from itertools import product
from typing import Any

from torch import nn

from deltamem.hook import AttentionHook
from deltamem.hook.projection import is_linear, width_in, width_out
from deltamem.hook.text_decoder import decoder_modules

logger = logging.getLogger(__name__)

# Common names of query, key and value projections, and of output projections. Packed projections are not inferred: a name does
# not tell their layout.
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
# Words in the names of modules that are not self-attention: they attend to something else, or keep a state instead of keys and
# values.
OTHERS = ("cross", "encoder", "vision", "visual", "image", "audio", "linear", "delta", "lightning")


def infer_hook(model: nn.Module) -> AttentionHook | None:
    """The hook for a model whose attention projections have common names; None if there are none, or several kinds.

    The inferred hook is logged as a warning, because names alone do not tell what a module computes.
    """
    alike = attention_like(model)
    understood = {name: names for name, module in alike.items() if (names := _known_names(module)) is not None}
    kinds = {(_pattern(name), *names) for name, names in understood.items()}
    if len(kinds) != 1:
        return None
    attention, q, k, v, o = kinds.pop()
    keywords = all(_hands_keywords_down(model, name) for name in understood)
    hook = AttentionHook(attention, q=q, k=k, v=v, o=o, keywords=keywords)
    others = [name for name in alike if not any(_nested(name, known) for known in understood)]
    logger.warning(
        "no attention hook is registered for %s; inferred one from the names of its modules: "
        "AttentionHook(attention=%r, q=%r, k=%r, v=%r, o=%r%s), for %d modules such as %s%s. If it is right, register it with "
        "deltamem.register_hook",
        type(model).__name__,
        *(attention, q, k, v, o),
        "" if keywords else ", keywords=False",
        len(understood),
        next(iter(understood)),
        f"; left alone, as not understood: {', '.join(others)}" if others else "",
    )
    return hook


def attention_like(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model's text decoder that look like self-attention by their name or class, and have submodules."""
    return {
        name: module
        for name, module in decoder_modules(model)
        if any(True for _ in module.children()) and _looks_like_attention(name, module)
    }


def linear_maps(module: nn.Module) -> list[str]:
    """The linear maps in a module and in its direct children, each as "NAME (WIDTH IN → WIDTH OUT)"."""
    return [
        f"{name} ({width_in(part)} → {width_out(part)})"
        for name, part in module.named_modules()
        if name.count(".") < 2 and is_linear(part)
    ]


def _looks_like_attention(name: str, module: nn.Module) -> bool:
    if isinstance(module, nn.ModuleList):
        return False
    words = f"{_pattern(name)} {type(module).__name__}".lower()
    return ("attn" in words or "attention" in words) and not any(word in words for word in OTHERS)


def _known_names(attention: nn.Module) -> tuple[str, str, str, str] | None:
    """The names of q, k, v and o in an attention module, if they are common ones with the widths of self-attention."""
    for (q, k, v), o in product(QUERIES_KEYS_VALUES, OUTPUTS):
        parts: list[Any] = [getattr(attention, name, None) for name in (q, k, v, o)]
        if all(map(is_linear, parts)):
            widths = {width_out(parts[3]), *map(width_in, parts[:3])}
            return (q, k, v, o) if len(widths) == 1 else None
    return None


def _pattern(name: str) -> str:
    """The end of a module's name that all layers share: "self_attn", or "attentions.*" for "attentions.0"."""
    parent, _, last = name.rpartition(".")
    return f"{parent.rpartition('.')[2]}.*" if last.isdigit() else last


def _hands_keywords_down(model: nn.Module, name: str) -> bool:
    """Whether every module between a model and one of its attention modules accepts unknown keyword arguments."""
    parts = name.split(".")
    way = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
    return all(_takes_any_keyword(module) for module in way if not isinstance(module, nn.ModuleList))


def _takes_any_keyword(module: nn.Module) -> bool:
    return any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in inspect.signature(module.forward).parameters.values()
    )


def _nested(name: str, other: str) -> bool:
    """Whether one of two modules is inside the other, or both are the same."""
    return f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}.")
