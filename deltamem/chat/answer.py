"""Generates a session's answers: the options of `generate` that the session sets, accepts and refuses."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer
from transformers.generation import GenerationMode

from deltamem.forward.unsupported import merged_settings
from deltamem.model import DeltaMemModel
from deltamem.versions import CACHE, CACHE_NAMES

MAX_NEW_TOKENS = 256
# The arguments of `generate` that the session sets.
DECIDED = ("inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", *CACHE_NAMES, "streamer")


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompt: Tensor,
    cache: DynamicCache | None,
    generation: Mapping[str, Any],
    streamer: TextIteratorStreamer | None = None,
    stop: Stop | None = None,
) -> str:
    """Answer a prompt, with the open memory if there is one.

    Args:
        model: a model with a δ-mem adapter.
        tokenizer: its tokenizer.
        prompt: token ids, `[1, tokens]`.
        cache: the keys and values of the prompt's first tokens; not changed. None if there are none.
        generation: the caller's options for `generate`.
        streamer: receives the tokens.
        stop: ends the answer once it is set.

    Returns:
        The text of the answer; of several sequences, the first one.

    Raises:
        ValueError: the caller gave an option that the session sets.
    """
    config, rest = _settings(model, tokenizer, generation)
    branches = max(config.num_beams or 1, config.num_return_sequences or 1)
    own = copy.deepcopy(cache)
    if own is not None and branches > 1:  # transformers expands the prompt only
        own.batch_repeat_interleave(branches)
    if stop is not None:
        rest["stopping_criteria"] = StoppingCriteriaList([*(rest.get("stopping_criteria") or ()), stop])
    assisted = config.get_generation_mode(rest.get("assistant_model")) == GenerationMode.ASSISTED_GENERATION
    with _only_what_is_new(DeltaMemModel.of(model).model, own) if assisted and own is not None else nullcontext():
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            **{CACHE: own},
            streamer=streamer,
            generation_config=config,
            **rest,
        )
    sequences = getattr(output, "sequences", output)  # [branches, tokens]
    return str(tokenizer.decode(sequences[0, prompt.shape[1] :], skip_special_tokens=True)).strip()


def _settings(model: Any, tokenizer: Any, generation: Mapping[str, Any]) -> tuple[GenerationConfig, dict[str, Any]]:
    """The generation's settings, and the caller's other arguments. The caller's settings override the model's.

    The session adds defaults only for the length and the padding token. Its cache has a fixed type, so `use_cache` and the
    model's `cache_implementation`, which do not change answers, are ignored.
    """
    decided = [name for name in DECIDED if generation.get(name) is not None]
    if decided:
        raise ValueError(f"{decided[0]} is not accepted here: a session makes it from its messages and its context. Omit it")
    config, rest = merged_settings(model.generation_config, generation)
    if config.max_new_tokens is None and config.max_length is None:
        config.max_new_tokens = MAX_NEW_TOKENS
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    config.use_cache, config.cache_implementation = True, None
    return config, rest


@contextmanager
def _only_what_is_new(model: nn.Module, cache: DynamicCache) -> Iterator[None]:
    """Remove the cached tokens from the first pass with a cache: in assisted decoding, transformers passes the whole prompt."""
    get_length = cache.get_seq_length
    known = get_length()

    def cut(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get(CACHE) is not cache or get_length() > known:  # another thread's pass, or a later one
            return None
        whole = {name: kwargs[name] for name in ("input_ids", "position_ids") if kwargs.get(name) is not None}
        return args, {**kwargs, **{name: tensor[..., known:] for name, tensor in whole.items()}}

    handle = model.register_forward_pre_hook(cut, prepend=True, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class Stop(StoppingCriteria):
    """Ends a generation whose consumer has left, or whose process is about to exit."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """End the generation at its next token."""
        self._event.set()

    @property
    def is_set(self) -> bool:
        """Whether the generation should end."""
        return self._event.is_set() or not threading.main_thread().is_alive()

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Whether each row ends, `[rows]`."""
        return torch.full((input_ids.shape[0],), self.is_set, dtype=torch.bool, device=input_ids.device)
