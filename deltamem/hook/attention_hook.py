"""AttentionHook: a declarative description of where a memory reads and corrects an architecture's attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from torch import nn

from deltamem.hook.packing import KV_HEADS, OTHER_NAMES, Packing
from deltamem.hook.projection import Projection, is_linear, width_in
from deltamem.hook.text_decoder import decoder_modules

# The projections of an attention module that a memory can correct.
Role = Literal["q", "k", "v", "o"]
ROLES: tuple[str, ...] = get_args(Role)
Names = str | tuple[str, ...]


@dataclass(frozen=True)
class AttentionHook:
    """Names the modules of a family's attention that a memory reads and corrects.

    A memory reads the hidden states that enter the attention module (`[batch, tokens, width]`, the argument `hidden_states` or
    the first one). If the module applies a norm before its projections, the memory reads the normalised states. It adds its
    corrections to the outputs of up to four projections inside the module.

    Every name may be dotted ("output.dense"). A tuple of names means the first one that a module has.

    Args:
        attention: the last part of an attention module's name; "*" matches any text.
        q, o: names of the query and output projections inside the attention module. A module that lacks one of them is not
            treated as attention.
        marker: name of a module that only attention has, if other modules (linear attention) share its name and projections.
        k, v: names of the key and value projections; None if they cannot be corrected. In a layer without them (one that
            shares another layer's keys), only queries and outputs are corrected.
        reads: name of the projection that the hidden states enter first, which gives their width; the query projection if None.
        norm: name of the norm inside the attention module that precedes the projections, if there is one.
        packing: for each module with more than one part, the layout of its output: "q k v" (all queries, then all keys, then
            all values), "heads x (q k v)" (head by head), "kv_heads x (q k v)" (for each key head its queries, key and value),
            "heads x (q gate)". A part whose heads have a different width names that width's option in the configuration:
            "heads x (k:qk_nope_head_dim v:v_head_dim)".
        requires: values that the model's configuration must have, if a family has modes that do not support a memory.
        keywords: whether the model hands unknown keyword arguments down to its attention. If not, the memory works without
            them, except under torch.compile.
    """

    attention: Names = "self_attn"
    q: Names = "q_proj"
    k: Names | None = "k_proj"
    v: Names | None = "v_proj"
    o: Names = "o_proj"
    marker: Names | None = None
    reads: Names | None = None
    norm: Names | None = None
    packing: Mapping[str, str] = field(default_factory=dict)
    requires: Mapping[str, Any] = field(default_factory=dict)
    keywords: bool = True

    def __post_init__(self) -> None:
        for name in ("attention", *ROLES, "marker", "reads", "norm"):
            value = getattr(self, name)
            if value is None and name in ("k", "v", "marker", "reads", "norm"):
                continue
            if not value or not all(isinstance(part, str) and part for part in _alternatives(value)):
                raise ValueError(f"AttentionHook.{name}={value!r} is not accepted; give the name of a module, or several")
        for text in self.packing.values():
            Packing.parse(text)
        named = {part for role in ROLES for part in _alternatives(getattr(self, role))}
        unknown = [name for name in self.packing if name not in named]
        shared = [part for part in _alternatives(self.k) if part in (*_alternatives(self.q), *_alternatives(self.v))]
        missing = [name for name in shared if name not in self.packing]
        if unknown or missing:
            raise ValueError(
                f"AttentionHook.packing={dict(self.packing)!r} is not accepted: it needs an entry for every module that is "
                f"more than one of q, k and v ({', '.join(missing) or 'none is missing'}), and for no others "
                f"({', '.join(unknown) or 'none is too many'})"
            )

    def attention_modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The self-attention modules of a model's text decoder, by name."""
        return {name: module for name, module in decoder_modules(model) if self._matches(name, module)}

    def check(self, config: Any) -> None:
        """Check that a model's configuration has the values that this hook requires.

        Raises:
            ValueError: a value differs.
        """
        for name, value in self.requires.items():
            if getattr(config, name, None) != value:
                raise ValueError(
                    f"a memory fits models of the type {config.model_type!r} with {name}={value!r} only, and this one's "
                    f"configuration has {name}={getattr(config, name, None)!r}"
                )

    def suffix(self, name: str) -> str:
        """The part of an attention module's name that matches the pattern."""
        pattern = next(pattern for pattern in _alternatives(self.attention) if fnmatchcase(f".{name}", f"*.{pattern}"))
        return ".".join(name.split(".")[-len(pattern.split(".")) :])

    def projections(self, attention: nn.Module, config: Any) -> dict[str, Projection]:
        """The projections of an attention module by role: "q" and "o", and "k" and "v" if it has them.

        Args:
            attention: the module.
            config: the configuration of the model's text decoder, for the numbers of heads in a packed projection.

        Raises:
            ValueError: `attention` lacks the query or output projection, or one of them is not a linear map; the message names
                what was found.
        """
        found = {}
        for role in ROLES:
            name = _first(attention, getattr(self, role))
            if name is None and role in ("q", "o"):
                raise ValueError(
                    f"the attention hook expects the {role} projection at {getattr(self, role)!r}, but "
                    f"{type(attention).__name__} has the submodules: {_children(attention)}. Register a hook that fits: "
                    f"register_hook(model_type, AttentionHook({role}=...))"
                )
            if name is None:
                continue
            module = attention.get_submodule(name)
            if not is_linear(module):
                raise ValueError(
                    f"the {role} projection {name!r} of {type(attention).__name__} is a {type(module).__name__}, and no linear "
                    "map, so its output cannot be corrected"
                )
            packing = self.packing.get(name)
            found[role] = (
                Projection(module) if packing is None else Packing.parse(packing).place(role, module, attention, config)
            )
        self._check_heads(attention, found)
        return found

    def _check_heads(self, attention: nn.Module, found: Mapping[str, Projection]) -> None:
        """Detect wrong numbers of heads in a packed projection, as far as possible.

        A model may store its number of key heads under an unknown name, and the output may still be divisible by the number of
        query heads. If values are as wide as queries, all queries together must be as wide as the output projection's input.

        Raises:
            ValueError: the widths differ.
        """
        queries, values, attended = found["q"], found.get("v"), width_in(found["o"].module)
        packed = values is not None and values.module is queries.module
        if packed and not any(":" in text for text in self.packing.values()) and queries.out_features != attended:
            raise ValueError(
                f"packing={dict(self.packing)!r} makes the queries of {type(attention).__name__} {queries.out_features} wide, "
                f"but its output projection takes {attended}: the numbers of heads are not those of {', '.join(KV_HEADS)}. "
                f"{OTHER_NAMES}"
            )

    def entrance(self, attention: nn.Module) -> nn.Module:
        """The projection of an attention module that the hidden states enter first."""
        name = _first(attention, self.reads or self.q)
        if name is None:
            raise ValueError(
                f"the attention hook expects the hidden states to enter {self.reads!r}, but {type(attention).__name__} has the "
                f"submodules: {_children(attention)}. Register a hook that fits: register_hook(model_type, "
                "AttentionHook(reads=...))"
            )
        return attention.get_submodule(name)

    def norm_before(self, attention: nn.Module) -> nn.Module | None:
        """The norm inside an attention module that precedes its projections; None if there is none."""
        name = _first(attention, self.norm)
        return None if name is None else attention.get_submodule(name)

    def _matches(self, name: str, module: nn.Module) -> bool:
        named = any(fnmatchcase(f".{name}", f"*.{pattern}") for pattern in _alternatives(self.attention))
        return named and all(_first(module, names) is not None for names in (self.q, self.o, self.marker) if names)


@dataclass(frozen=True)
class Unsupported:
    """Stands in for the hook of a model type that does not support a memory.

    Args:
        reason: why not, as a clause that follows "MODEL TYPE is not supported: ".
    """

    reason: str


@dataclass(frozen=True)
class LikeItsDecoder:
    """Stands in for the hook of a model type that wraps a text decoder whose type has a hook.

    It has no effect, since such a model uses its decoder's hook in any case. It records that the whole model is tested.
    """


Entry = AttentionHook | Unsupported | LikeItsDecoder


def _alternatives(names: Names | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(names)


def _first(module: nn.Module, names: Names | None) -> str | None:
    """The first of several names that is a submodule of a module."""
    return next((name for name in _alternatives(names) if _has(module, name)), None)


def _has(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True


def _children(module: nn.Module) -> str:
    return ", ".join(name for name, _ in module.named_children()) or "none"
