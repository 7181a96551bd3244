"""AttentionHook: where an architecture's attention is read and corrected; and the registry that finds it by model type."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal, cast, get_args

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Packing = Literal["contiguous", "by_head"]
ROLES = ("q", "k", "v", "o")
ENTRY_POINTS = "deltamem.registry"


@dataclass(frozen=True)
class Projection:
    """A query, key, value or output projection: a module's output, or the part of a packed one's.

    Its outputs lie in `groups` groups of equal size; of each, the first `before` and the last `after` are somebody else's.
    """

    module: nn.Module
    groups: int = 1
    before: int = 0
    after: int = 0

    @property
    def in_features(self) -> int:
        """Width of the hidden states that enter."""
        return cast(int, self.module.in_features)

    @property
    def out_features(self) -> int:
        """Number of outputs that are this projection's."""
        return cast(int, self.module.out_features) - self.groups * (self.before + self.after)

    def place(self, correction: Tensor) -> Tensor:
        """Put a correction `[batch, tokens, out_features]` where this projection is in the module's output, zero elsewhere."""
        if not self.before and not self.after:
            return correction
        parts = F.pad(rearrange(correction, "b t (g d) -> b t g d", g=self.groups), (self.before, self.after))
        return rearrange(parts, "b t g d -> b t (g d)")

    def rows_of(self, weight: Tensor) -> Tensor:
        """Those rows of the module's weight that are this projection's, `[out_features, in_features]`."""
        groups = rearrange(weight, "(g d) i -> g d i", g=self.groups)
        return rearrange(groups[:, self.before : groups.shape[1] - self.after], "g d i -> (g d) i")


@dataclass(frozen=True)
class AttentionHook:
    """Names the modules of a family's attention that a memory reads and corrects.

    A memory reads the hidden states that enter the attention module (`[batch, tokens, width]`, the argument `hidden_states`)
    and adds its corrections to the outputs of four projections inside it.

    Args:
        attention: name of the attention module inside a decoder layer.
        q, k, v, o: names of the query, key, value and output projections inside the attention module.
        packing: how queries, keys and values lie in the output of one module, if `q`, `k` and `v` name the same: "contiguous"
            (all queries, then all keys, then all values) or "by_head" (for each head its query, its key, its value).
    """

    attention: str = "self_attn"
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    o: str = "o_proj"
    packing: Packing | None = None

    def __post_init__(self) -> None:
        for name in ("attention", *ROLES):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"AttentionHook.{name}={value!r} is not accepted; give the name of a module")
        if self.packing not in (None, *get_args(Packing)):
            raise ValueError(f"AttentionHook.packing={self.packing!r} is not accepted; choose None, 'contiguous' or 'by_head'")
        packed = len({self.q, self.k, self.v}) == 1
        if packed != (self.packing is not None):
            raise ValueError(
                f"AttentionHook(q={self.q!r}, k={self.k!r}, v={self.v!r}, packing={self.packing!r}) is not accepted: a packing "
                "belongs to one module that is q, k and v"
            )

    def projections(self, attention: nn.Module) -> dict[str, Projection]:
        """The projections "q", "k", "v" and "o" of an attention module.

        Raises:
            ValueError: `attention` lacks one of them; names what is there.
        """
        modules = {role: self._module(attention, role) for role in ROLES}
        places = _places(attention, self.packing) if self.packing else {}
        return {role: Projection(module, **places.get(role, {})) for role, module in modules.items()}

    def _module(self, attention: nn.Module, role: str) -> nn.Module:
        name = getattr(self, role)
        module = getattr(attention, name, None)
        if not isinstance(module, nn.Module):
            present = ", ".join(child for child, _ in attention.named_children()) or "none"
            raise ValueError(
                f"the attention hook expects the {role} projection at {name!r}, but {type(attention).__name__} has the "
                f"submodules: {present}. Register a hook that fits: register_hook(model_type, AttentionHook({role}=...))"
            )
        return module


def _places(attention: nn.Module, packing: Packing) -> dict[str, dict[str, int]]:
    """Where queries, keys and values lie in a packed projection; the sizes come from the attention's configuration."""
    config: Any = attention.config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    if packing == "by_head":
        return {role: {"groups": heads, "before": i * width, "after": (2 - i) * width} for i, role in enumerate("qkv")}
    queries, keys = heads * width, (getattr(config, "num_key_value_heads", None) or heads) * width
    return {
        "q": {"after": 2 * keys},
        "k": {"before": queries, "after": keys},
        "v": {"before": queries + keys},
    }


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
