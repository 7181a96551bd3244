"""AttentionHook: where an architecture's attention is read and corrected; and the registry that finds it by model type."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import entry_points

from torch import nn

ENTRY_POINTS = "deltamem.registry"


@dataclass(frozen=True)
class AttentionHook:
    """Names the modules of a family's attention that a memory reads and corrects.

    A memory reads the hidden states that enter the attention module (`[batch, tokens, width]`, the argument `hidden_states`)
    and adds its corrections to the outputs of four projections inside it.

    Args:
        attention: name of the attention module inside a decoder layer.
        q, k, v, o: names of the query, key, value and output projections inside the attention module.
    """

    attention: str = "self_attn"
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    o: str = "o_proj"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"AttentionHook.{field.name}={value!r} is not accepted; give the name of a module")

    def projections(self, attention: nn.Module) -> dict[str, nn.Module]:
        """The modules under "q", "k", "v" and "o".

        Raises:
            ValueError: `attention` lacks one of them; names what is there.
        """
        found = {}
        for role in ("q", "k", "v", "o"):
            name = getattr(self, role)
            module = getattr(attention, name, None)
            if not isinstance(module, nn.Module):
                present = ", ".join(child for child, _ in attention.named_children()) or "none"
                raise ValueError(
                    f"the attention hook expects the {role} projection at {name!r}, but {type(attention).__name__} has the "
                    f"submodules: {present}. Register a hook that fits: register_hook(model_type, AttentionHook({role}=...))"
                )
            found[role] = module
        return found


_registered: dict[str, AttentionHook] = {}


def register_hook(model_type: str, hook: AttentionHook) -> None:
    """Say how the attention of a model type (`model.config.model_type`) is hooked. Wins over what packages register.

    Raises:
        ValueError: `model_type` is no name or `hook` no AttentionHook.
    """
    if not isinstance(model_type, str) or not model_type:
        raise ValueError(f"model_type={model_type!r} is not accepted; give the model_type of the model's config, a string")
    if not isinstance(hook, AttentionHook):
        raise ValueError(f"hook={hook!r} is not accepted; give an AttentionHook")
    _registered[model_type] = hook


def find_hook(model_type: str) -> AttentionHook:
    """The hook for a model type: one registered by hand, else one of a package.

    Raises:
        ValueError: nobody registered this model type; names those that are known and says how to register.
    """
    known = known_hooks()
    if model_type not in known:
        close = difflib.get_close_matches(model_type, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"no attention hook is registered for the model type {model_type!r}.{hint} Known: {', '.join(sorted(known))}. To "
            f"add it, name the projections of its attention: deltamem.register_hook({model_type!r}, "
            'deltamem.AttentionHook(attention="self_attn", q="q_proj", k="k_proj", v="v_proj", o="o_proj"))'
        )
    return known[model_type]


def known_hooks() -> Mapping[str, AttentionHook]:
    """All registered hooks by model type."""
    return {**_packaged_hooks(), **_registered}


@cache
def _packaged_hooks() -> dict[str, AttentionHook]:
    """The hooks of installed packages: each entry point names a mapping from model types to hooks."""
    hooks: dict[str, AttentionHook] = {}
    sources: dict[str, str] = {}
    for point in entry_points(group=ENTRY_POINTS):
        for model_type, hook in point.load().items():
            if model_type in hooks:
                raise ValueError(
                    f"two packages register a hook for the model type {model_type!r}: {sources[model_type]} and {point.value}. "
                    "Uninstall one, or choose with deltamem.register_hook"
                )
            hooks[model_type], sources[model_type] = hook, point.value
    return hooks
