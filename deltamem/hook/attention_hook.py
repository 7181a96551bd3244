"""AttentionHook: where an architecture's attention is read and corrected, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from torch import nn

from deltamem.hook.packing import KV_HEADS, OTHER_NAMES, Packing
from deltamem.hook.projection import Projection, is_linear, width_in
from deltamem.hook.text_decoder import decoder_modules

# The projections of an attention that a memory can correct.
Role = Literal["q", "k", "v", "o"]
ROLES: tuple[str, ...] = get_args(Role)
Names = str | tuple[str, ...]


@dataclass(frozen=True)
class AttentionHook:
    """Names the modules of a family's attention that a memory reads and corrects.

    A memory reads the hidden states that enter the attention module (`[batch, tokens, width]`, the argument `hidden_states`, or
    the first one), behind a norm if the module has one before its projections, and adds its corrections to the outputs of up to
    four projections inside it.

    Every name may be dotted ("output.dense"), and a tuple of names means the first of them that a module has.

    Args:
        attention: what the name of an attention module ends in; "*" stands for any text.
        q, o: names of the query and output projections inside the attention module. A module that lacks one of them is no
            attention, so it is left alone.
        marker: name of a module that attention has, where something else (linear attention) has its name and projections.
        k, v: names of the key and value projections. None where they cannot be corrected; a layer without them (one that
            shares another layer's keys) is corrected in its queries and outputs only.
        reads: name of the projection that the hidden states enter first, for their width; the query's if None.
        norm: name of a norm inside the attention module that the hidden states pass before the projections, if it has one.
        packing: for each module that holds more than one part, how they lie in its output: "q k v" (all queries, then all keys,
            then all values), "heads x (q k v)" (for each head its own), "kv_heads x (q k v)" (for each head of the keys its
            queries, its key, its value), "heads x (q gate)". A part whose heads have another width names it:
            "heads x (k:qk_nope_head_dim v:v_head_dim)".
        requires: what the model's configuration must say, where a family has modes that a memory does not fit.
        keywords: whether the model hands keywords that it does not know down to its attention. Where it does not, the memory
            finds its way without them, but not under torch.compile.
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
        """Make sure that a model's configuration says what this hook requires.

        Raises:
            ValueError: it says something else.
        """
        for name, value in self.requires.items():
            if getattr(config, name, None) != value:
                raise ValueError(
                    f"a memory fits models of the type {config.model_type!r} with {name}={value!r} only, and this one's "
                    f"configuration has {name}={getattr(config, name, None)!r}"
                )

    def suffix(self, name: str) -> str:
        """The end of an attention module's name, as long as the pattern that it matches."""
        pattern = next(pattern for pattern in _alternatives(self.attention) if fnmatchcase(f".{name}", f"*.{pattern}"))
        return ".".join(name.split(".")[-len(pattern.split(".")) :])

    def projections(self, attention: nn.Module, config: Any) -> dict[str, Projection]:
        """The projections of an attention module by role: "q" and "o", and "k" and "v" where it has them.

        Args:
            attention: the module.
            config: the configuration of the model's text decoder, for the numbers of heads in a packed projection.

        Raises:
            ValueError: `attention` lacks the query or output projection, or one is not a linear map; names what is there.
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
                    "map whose outputs could be corrected"
                )
            packing = self.packing.get(name)
            found[role] = (
                Projection(module) if packing is None else Packing.parse(packing).place(role, module, attention, config)
            )
        self._check_heads(attention, found)
        return found

    def _check_heads(self, attention: nn.Module, found: Mapping[str, Projection]) -> None:
        """Make sure of the numbers of heads that divide a projection, where they can be told to be wrong.

        A model may have fewer heads of keys than of queries under an unknown name; the output may be divisible all
        the same. With values as wide as queries, all queries together are as wide as what enters the output projection.

        Raises:
            ValueError: they are not.
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
        """The projection of an attention module that the hidden states enter."""
        name = _first(attention, self.reads or self.q)
        if name is None:
            raise ValueError(
                f"the attention hook expects the hidden states to enter {self.reads!r}, but {type(attention).__name__} has the "
                f"submodules: {_children(attention)}. Register a hook that fits: register_hook(model_type, "
                "AttentionHook(reads=...))"
            )
        return attention.get_submodule(name)

    def norm_before(self, attention: nn.Module) -> nn.Module | None:
        """The norm of an attention module that the hidden states pass before its projections."""
        name = _first(attention, self.norm)
        return None if name is None else attention.get_submodule(name)

    def _matches(self, name: str, module: nn.Module) -> bool:
        named = any(fnmatchcase(f".{name}", f"*.{pattern}") for pattern in _alternatives(self.attention))
        return named and all(_first(module, names) is not None for names in (self.q, self.o, self.marker) if names)


@dataclass(frozen=True)
class Unsupported:
    """Takes a hook's place for a model type that a memory cannot be attached to.

    Args:
        reason: why not, to be read behind "MODEL TYPE is not supported: ".
    """

    reason: str


@dataclass(frozen=True)
class LikeItsDecoder:
    """Takes a hook's place for a model type around a text decoder, whose own type has the hook.

    It changes nothing: such a model has its decoder's hook anyway. It says that the whole model was tested.
    """


Entry = AttentionHook | Unsupported | LikeItsDecoder


def _alternatives(names: Names | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(names)


def _first(module: nn.Module, names: Names | None) -> str | None:
    """The first of some names under which a module has a submodule."""
    return next((name for name in _alternatives(names) if _has(module, name)), None)


def _has(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True


def _children(module: nn.Module) -> str:
    return ", ".join(name for name, _ in module.named_children()) or "none"
