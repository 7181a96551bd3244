"""The hooks on a whole model, which begin and end a memory pass with each of its forward passes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from deltamem.forward.call import begin_pass, end_pass, new_tokens, release_pass
from deltamem.forward.generation import GenerateHandle, carry_through_generate
from deltamem.forward.kv_cache import MemoryCacheLayer, cache_in
from deltamem.forward.memory_pass import MemoryPass
from deltamem.forward.owner import PassOwner
from deltamem.forward.running import PASS_KEYWORD, running
from deltamem.hook.text_decoder import may_skip_tokens


class ModelHooks:
    """The hooks of one model, registered by the constructor.

    Args:
        owner: the tuner.
        model: the innermost model.
    """

    def __init__(self, owner: PassOwner, model: nn.Module) -> None:
        self.owner = owner
        self._argument_names = tuple(inspect.signature(model.forward).parameters)
        # Whether `logits_to_keep` must be passed as positions, not as a count.
        self._may_skip_tokens = may_skip_tokens(model)
        # This pre-hook comes first, so that other hooks find the pass among the keyword arguments.
        self._handles: list[RemovableHandle | GenerateHandle] = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, with_kwargs=True),
            model.register_forward_hook(self._release, with_kwargs=True, always_call=True),
        ]
        carried = carry_through_generate(owner, model)
        if carried is not None:
            self._handles.append(carried)

    def remove(self) -> None:
        """Remove the hooks and restore the model's `generate`."""
        for handle in self._handles:
            handle.remove()

    def _before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the pass and hand it down with the keyword arguments."""
        if not self.owner.has_active_layers:
            return None
        call = self._named(args, kwargs)
        memory = begin_pass(self.owner, model, call)
        kept = kwargs.get("logits_to_keep")
        if self._may_skip_tokens and isinstance(kept, int) and kept:
            positions = torch.arange(max(memory.tokens - kept, 0), memory.tokens, device=new_tokens(call).device)
            kwargs = {**kwargs, "logits_to_keep": positions}
        if self.owner.hands_keywords_down:
            return args, {**kwargs, PASS_KEYWORD: memory}
        running.memory_pass = memory
        return None

    def _after_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Store the outcome of the pass; after a pass without the memory, only record that the cache has grown."""
        memory = self._pass_in(kwargs)
        if memory is not None:
            self.owner.check_reached(memory.reached)
            end_pass(memory, output)
            return
        call = self._named(args, kwargs)
        carried = MemoryCacheLayer.find(cache_in(call))
        if carried is not None:
            carried.record_unread(new_tokens(call).shape[1])

    def _release(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Release the pass. This is the last hook, and also runs after an error."""
        memory = self._pass_in(kwargs)
        if memory is not None:
            release_pass(memory)
        running.memory_pass = None

    def _pass_in(self, kwargs: Mapping[str, Any]) -> MemoryPass | None:
        return kwargs.get(PASS_KEYWORD) if self.owner.hands_keywords_down else running.memory_pass

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call of the model, by name."""
        return {**dict(zip(self._argument_names, args, strict=False)), **kwargs}
