"""Finds the attention hook for a model: registered by the user, from an installed package, or inferred from its modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from deltamem.hook.attention_hook import AttentionHook, Entry, Unsupported
from deltamem.hook.inferred import attention_like, infer_hook, linear_maps
from deltamem.hook.projection import is_linear
from deltamem.hook.text_decoder import decoder_modules

ENTRY_POINTS = "deltamem.registry"
ENCODER_DECODER = "it is an encoder-decoder, and a memory follows one text"

_registered: dict[str, AttentionHook] = {}


def register_hook(model_type: str, hook: AttentionHook) -> None:
    """Register the hook for a model type (`model.config.model_type`). It takes precedence over those of packages.

    Raises:
        ValueError: `model_type` is not a name, or `hook` is not an AttentionHook.
    """
    if not isinstance(model_type, str) or not model_type:
        raise ValueError(f"model_type={model_type!r} is not accepted; give the model_type of the model's config, a string")
    if not isinstance(hook, AttentionHook):
        raise ValueError(f"hook={hook!r} is not accepted; give an AttentionHook")
    _registered[model_type] = hook


def hook_for(model: nn.Module) -> AttentionHook:
    """The hook for a model: that of its type, else that of its text decoder's type, else one inferred from its modules.

    Raises:
        ValueError: the model does not support a memory, or its type is not registered and no hook can be inferred; the message
            shows what was found and how to register a hook.
    """
    for config in _configs(model):
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(_refused(config.model_type, ENCODER_DECODER))
        hook = registered_hook(config.model_type)
        if isinstance(hook, Unsupported):
            raise ValueError(_refused(config.model_type, hook.reason))
        if isinstance(hook, AttentionHook):
            hook.check(config)
            return hook
    hook = infer_hook(model)
    if hook is None:
        raise ValueError(_not_understood(model))
    return hook


def attention_modules(model: nn.Module, hook: AttentionHook) -> dict[str, nn.Module]:
    """The attention modules that a hook finds in a model, by name.

    Raises:
        ValueError: there are none; the message shows similar modules.
    """
    modules = hook.attention_modules(model)
    if not modules:
        raise ValueError(
            f"the attention hook finds nothing in {type(model).__name__}: no module whose name ends in {hook.attention!r} has "
            f"the projections {hook.q!r} and {hook.o!r}. {_found(model)}"
        )
    return modules


def registered_hook(model_type: str) -> Entry | None:
    """The entry registered for a model type, by the user or by a package.

    Raises:
        ValueError: two packages register the type.
    """
    if model_type in _registered:
        return _registered[model_type]
    entries = _packaged().get(model_type, [])
    if len(entries) > 1:
        sources = " and ".join(entry.source for entry in entries)
        raise ValueError(
            f"two packages register a hook for the model type {model_type!r}: {sources}. Uninstall one, or choose with "
            "deltamem.register_hook"
        )
    return entries[0].hook if entries else None


def package_of(model_type: str) -> str | None:
    """The package whose hook for a model type is in use; None if the user registered the hook, or if there is none."""
    entries = [] if model_type in _registered else _packaged().get(model_type, [])
    return entries[0].package if entries else None


def registered_types() -> list[str]:
    """All registered model types, sorted."""
    return sorted({*_packaged(), *_registered})


@dataclass(frozen=True)
class _Entry:
    """A package's entry for a model type; `source` names the package and the place in it."""

    hook: Entry
    package: str
    source: str


@cache
def _packaged() -> Mapping[str, list[_Entry]]:
    """The entries of all installed packages; each entry point names a mapping from model types to hooks."""
    found: dict[str, list[_Entry]] = {}
    for point in entry_points(group=ENTRY_POINTS):
        package = point.dist.name if point.dist else point.name
        source = f"{package} ({point.value})"
        try:
            hooks = {**point.load()}
        except Exception as error:  # a foreign module may raise anything
            raise ValueError(f"the attention hooks of the package {source} cannot be loaded: {error!r}") from error
        for model_type, hook in hooks.items():
            if not isinstance(hook, Entry):
                raise ValueError(
                    f"the package {source} registers {hook!r} for the model type {model_type!r}; an AttentionHook is accepted"
                )
            found.setdefault(model_type, []).append(_Entry(hook, package, source))
    return found


def _configs(model: nn.Module) -> list[Any]:
    """The configuration of a model, and that of its text decoder if it is a different one."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return []
    text = config.get_text_config()
    return [config] if text is config else [config, text]


def _refused(model_type: str, reason: str) -> str:
    return f"the model type {model_type!r} is not supported: {reason}"


def _not_understood(model: nn.Module) -> str:
    model_type = next((config.model_type for config in _configs(model)), None)
    return (
        f"no attention hook is registered for the model type {model_type!r}, and none could be inferred. {_found(model)} "
        f"To add it, name the projections of its attention: deltamem.register_hook({model_type!r}, "
        'deltamem.AttentionHook(attention="self_attn", q="q_proj", k="k_proj", v="v_proj", o="o_proj")); docs/porting.md has '
        "more"
    )


def _found(model: nn.Module) -> str:
    """Describe possible attention modules: the first one of each kind, with the linear maps in it."""
    alike = attention_like(model)
    if alike:
        return f"Modules that look like attention: {_listed(alike)}."
    several = {name: module for name, module in decoder_modules(model) if sum(map(is_linear, module.children())) > 1}
    return f"No module is called attention. Modules with several linear maps: {_listed(several) or 'none'}."


def _listed(modules: Mapping[str, nn.Module]) -> str:
    kinds: dict[tuple[str, ...], str] = {}
    for name, module in modules.items():
        children = [child for child, _ in module.named_children()]
        parts = ", ".join(linear_maps(module) or children)
        kinds.setdefault((type(module).__name__, *children), f"{name} ({type(module).__name__}) with {parts}")
    return "; ".join(kinds.values())
