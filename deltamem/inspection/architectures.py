"""Implements `deltamem inspect --architectures`: the model types that a memory can be attached to, where, and which not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformers
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from deltamem.hook.attention_hook import ROLES, AttentionHook, Unsupported
from deltamem.hook.registered import ENCODER_DECODER, package_of, registered_hook, registered_types

# The package whose hooks tests/contract covers.
TESTED = "deltamem"
NOT_REGISTERED = (
    "no hook is registered, so it is not tested; a memory can still be attached if its projections have common names"
)
MARKDOWN = """\
# Architectures

All model types in transformers {version} with a causal language model, or one that reads images, and all other registered
types. This page is the output of `deltamem inspect --architectures --markdown`; a test compares it with the registry.

A supported type passes [the contract](../tests/contract/test_contract.py) on a small random model. The table lists its
attention module and the projections that a memory corrects: query, key, value and output. Brackets give the layout of a packed
projection, as in an [AttentionHook](porting.md).

## Supported: {supported}

| model type | attention |
|---|---|
{supported_rows}

## Not supported: {others}

| model type | why not |
|---|---|
{other_rows}
"""


def architectures() -> list[dict[str, Any]]:
    """List all model types that have a causal or image-reading language model in transformers or are registered, sorted.

    Returns:
        For each its `model_type`; `supported`, whether the contract covers it; `attention`, where it is corrected, or None; and
        `reason`, why it is not supported, or None.
    """
    in_transformers = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    return [describe(model_type) for model_type in sorted({*in_transformers, *registered_types()})]


def describe(model_type: str) -> dict[str, Any]:
    """Create one entry of the list that `architectures` returns."""
    attention, reason = _verdict(model_type)
    return {"model_type": model_type, "supported": reason is None, "attention": attention, "reason": reason}


def describe_hook(hook: AttentionHook) -> str:
    """Summarise a hook: `self_attn: q_proj, k_proj, v_proj, o_proj`, packed ones as `qkv_proj [q k v]`."""
    parts: dict[str, None] = {}
    for role in ROLES:
        names = getattr(hook, role)
        if names is None:
            parts[f"no {role}"] = None
            continue
        alternatives = (names,) if isinstance(names, str) else names
        packed = (f"{name} [{hook.packing[name]}]" if name in hook.packing else name for name in alternatives)
        parts[" or ".join(packed)] = None
    attention = hook.attention if isinstance(hook.attention, str) else " or ".join(hook.attention)
    required = "".join(f"; with {name}={value!r} only" for name, value in hook.requires.items())
    return f"{attention}: {', '.join(parts)}{required}"


def print_architectures(found: Sequence[dict[str, Any]]) -> None:
    """Print the result of `architectures` as a table."""
    table = Table("model type", "supported", "attention, or why not", box=box.SIMPLE, pad_edge=False)
    for row in found:
        said = row["attention"] if row["supported"] else row["reason"]
        table.add_row(row["model_type"], "yes" if row["supported"] else "no", escape(said))
    console = Console()
    console.print(table)
    console.print(
        f"{sum(row['supported'] for row in found)} of {len(found)} supported; transformers {transformers.__version__}"
    )


def as_markdown(found: Sequence[dict[str, Any]]) -> str:
    """Format the result of `architectures` as docs/architectures.md."""
    supported = [f"| {row['model_type']} | `{row['attention']}` |" for row in found if row["supported"]]
    others = [f"| {row['model_type']} | {row['reason']} |" for row in found if not row["supported"]]
    return MARKDOWN.format(
        version=transformers.__version__,
        supported=len(supported),
        supported_rows="\n".join(supported),
        others=len(others),
        other_rows="\n".join(others),
    )


def _verdict(model_type: str) -> tuple[str | None, str | None]:
    """Where a model type's attention is corrected, and why it is not supported; None for either that does not apply."""
    try:
        hook = registered_hook(model_type)
    except ValueError as error:  # two packages register the type
        return None, str(error)
    if isinstance(hook, Unsupported):
        return None, hook.reason
    package = package_of(model_type)
    untested = None if package == TESTED else f"not tested here: it is registered by {package}"
    if isinstance(hook, AttentionHook):
        return describe_hook(hook), untested
    if getattr(CONFIG_MAPPING[model_type], "is_encoder_decoder", False):
        return None, ENCODER_DECODER
    decoder = _decoder_type(model_type)
    if decoder == model_type:
        return None, NOT_REGISTERED
    attention, reason = _verdict(decoder)
    if hook is None and attention is not None:
        untested = f"not tested as a whole; a memory is attached to its text decoder, {decoder}"
    return attention and f"as {decoder}, {attention}", reason or untested


def _decoder_type(model_type: str) -> str:
    """The type of a model's text decoder in its default configuration."""
    try:
        return CONFIG_MAPPING[model_type]().get_text_config().model_type
    except Exception:  # the configuration has no defaults, or no text decoder
        return model_type
