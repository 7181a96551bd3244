"""Checks that refuse what a memory cannot follow, before anything is written."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig
from transformers.generation import GenerationMode

# Keywords of transformers' paged attention and packed rows, where one batch row holds several users' tokens.
PACKED_KEYWORDS = ("block_table", "cu_seq_lens_q")
GENERATION_MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
    GenerationMode.ASSISTED_GENERATION,
)


def check_call(model: nn.Module, call: Mapping[str, Any]) -> None:
    """Refuse a call of the model in which a row holds the texts of several users.

    Raises:
        NotImplementedError: the message names what was found.
    """
    if getattr(model, "_is_replica", False):
        raise NotImplementedError(
            "δ-mem does not run under nn.DataParallel: its replicas are discarded after the pass, and the memory with them. "
            "Use DistributedDataParallel, or one model per device"
        )
    packed = [name for name in PACKED_KEYWORDS if call.get(name) is not None]
    if call.get("cache") is not None and not isinstance(call["cache"], Cache):  # a paged cache
        packed.append("cache")
    if packed:
        raise NotImplementedError(
            f"δ-mem does not run with {packed[0]} (continuous batching, packed rows): one row would hold several users' "
            "tokens. Use generate() or a padded batch"
        )


def check_compiling(model: nn.Module, keywords: bool) -> None:
    """Refuse tracing by torch.compile for a model that does not hand keyword arguments down to its attention.

    Raises:
        NotImplementedError: the message names the model.
    """
    if not keywords and torch.compiler.is_compiling():
        raise NotImplementedError(
            f"δ-mem does not run in a compiled {type(model).__name__}: this model does not hand keyword arguments down to its "
            "attention, and only these carry the memory into a graph. Run it without torch.compile"
        )


def check_learns(model: nn.Module, segments_of: str, prefix: str) -> None:
    """Refuse to train a memory of segments (SSW) with a pass that neither writes it nor reads anything from it.

    Args:
        model: the model.
        segments_of: the unit of a write, such as "message".
        prefix: the prefix of the adapters' parameter names.

    Raises:
        ValueError: the model is in training mode and the adapter is trained.
    """
    if not (model.training and torch.is_grad_enabled()):
        return
    if any(weight.requires_grad for name, weight in model.named_parameters() if f".{prefix}" in name):
        raise ValueError(
            f"this adapter writes one {segments_of} at a time, as marked by model.memory(state, segment_ids=...). A pass "
            "without a memory writes nothing, so nothing would be learnt from it. Train this adapter with DeltaMemTrainer, or "
            "one that writes tokens (write='token')"
        )


def check_positions(position_ids: Any, valid: Tensor | None) -> None:
    """Refuse rows in which the positions restart, because they hold several packed documents.

    torch.compile cannot look at values while it traces, so there is no check then.

    Args:
        position_ids: the call's `[batch, tokens]`, or `[text | time | height | width, batch, tokens]` for multimodal models,
            of which only the text positions are checked. Other forms are not checked.
        valid: `[batch, tokens]`, False for padding; None if every token is real.

    Raises:
        NotImplementedError: the message names the row and the token.
    """
    if not isinstance(position_ids, Tensor):
        return
    if position_ids.ndim == 3 and position_ids.shape[0] == 4:
        position_ids = position_ids[0]
    if position_ids.ndim != 2 or position_ids.shape[1] < 2:
        return
    if torch.compiler.is_compiling() or position_ids.is_meta:
        return
    restarts = position_ids.diff(dim=1) <= 0
    if valid is not None:
        restarts = restarts & (valid[:, 1:] & valid[:, :-1]).to(restarts.device)
    if bool(restarts.any()):
        row, token = restarts.nonzero()[0].tolist()
        raise NotImplementedError(
            f"position_ids start anew at token {token + 1} of row {row}: packed documents would share one memory. Give each "
            "document a separate, padded row"
        )


def check_guidance(settings: GenerationConfig, write: bool) -> None:
    """Refuse classifier-free guidance if tokens are written.

    Raises:
        NotImplementedError: the negative prompt would be written to the memory.
    """
    if write and settings.guidance_scale not in (None, 1):
        raise NotImplementedError(
            f"δ-mem does not write a memory with guidance_scale={settings.guidance_scale}: the passes over the negative prompt "
            "would be written too. Open the memory with write=False, and write the text in a pass without guidance"
        )


def merged_settings(default: GenerationConfig, kwargs: Mapping[str, Any]) -> tuple[GenerationConfig, dict[str, Any]]:
    """The settings of a call `generate(**kwargs)`, and its arguments that are not settings.

    The order of precedence is that of transformers: the call's arguments, then its `generation_config`, then the model's.
    """
    given = kwargs.get("generation_config")
    settings = copy.deepcopy(default if given is None else given)
    settings.update(**default.to_dict(), defaults_only=True, allow_custom_entries=True)
    named = {name: value for name, value in kwargs.items() if name != "generation_config" and value is not None}
    return settings, settings.update(**named)


def generation_settings(default: GenerationConfig, kwargs: Mapping[str, Any]) -> GenerationConfig:
    """The settings of a call `generate(**kwargs)`.

    Raises:
        NotImplementedError: the memory cannot follow the decoding strategy.
    """
    settings, _ = merged_settings(default, kwargs)
    if settings.assistant_early_exit is not None:
        raise NotImplementedError(
            f"δ-mem does not generate with assistant_early_exit={settings.assistant_early_exit}: a draft by the first layers "
            "is written to the memories of these layers alone. Use prompt lookup or an assistant_model"
        )
    mode = settings.get_generation_mode(kwargs.get("assistant_model"))
    if mode not in GENERATION_MODES or isinstance(kwargs.get("custom_generate"), str):
        found = f"custom_generate={kwargs['custom_generate']!r}" if kwargs.get("custom_generate") else mode.value
        raise NotImplementedError(
            f"δ-mem does not generate with {found}: its code is outside transformers and does not carry the memory. Use "
            f"one of {', '.join(known.value for known in GENERATION_MODES)}"
        )
    return settings
