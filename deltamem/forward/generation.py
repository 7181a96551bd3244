"""The memory in a call of `generate`, whether through the tuner, a PeftModel, a pipeline, or the inner model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any

from torch import nn

from deltamem.forward.owner import PassOwner
from deltamem.forward.scope import Generation, MemoryScope
from deltamem.forward.unsupported import check_guidance, generation_settings


@dataclass(frozen=True)
class GenerateHandle:
    """Restores a model's `generate`.

    Args:
        model: the transformers model.
        before: the `generate` that the instance had; None if it used the method of its class.
    """

    model: nn.Module
    before: Any

    def remove(self) -> None:
        """Take the memory out of the model's `generate`."""
        vars(self.model).pop("generate", None)
        if self.before is not None:
            vars(self.model)["generate"] = self.before


def carry_through_generate(owner: PassOwner, model: nn.Module) -> GenerateHandle | None:
    """Wrap a transformers model's `generate`, so that its passes know that they belong together.

    Args:
        owner: the tuner.
        model: the innermost model.

    Returns:
        A handle that removes the wrapper; None for a model that does not generate.
    """
    generate = getattr(model, "generate", None)
    if generate is None:
        return None
    handle = GenerateHandle(model, vars(model).get("generate"))
    vars(model)["generate"] = update_wrapper(partial(_generate, owner, model, generate), generate)
    return handle


def _generate(owner: PassOwner, model: nn.Module, generate: Any, *args: Any, **kwargs: Any) -> Any:
    if not owner.has_active_layers:
        return generate(*args, **kwargs)
    call = {**dict(zip(inspect.signature(generate).parameters, args, strict=False)), **kwargs}
    with _generating(owner, model, call):
        return generate(*args, **kwargs)


@contextmanager
def _generating(owner: PassOwner, model: nn.Module, call: Mapping[str, Any]) -> Iterator[None]:
    """Let the passes in this block know that they belong to one call of `generate`.

    Raises:
        NotImplementedError: the memory cannot follow the decoding strategy.
        RuntimeError: another thread uses the memory.
        ValueError: the memory and the prompt have different numbers of rows.
    """
    settings = generation_settings(model.generation_config, call)
    scope = MemoryScope.find(owner)
    if scope is None:  # every pass starts from the cache or from an empty memory
        yield
        return
    check_guidance(settings, scope.write)
    prompt = next((call[name] for name in ("inputs", "input_ids", "inputs_embeds") if call.get(name) is not None), None)
    # Compare the rows here, before generate repeats them for its beams: a beam is not another user.
    if prompt is not None and prompt.shape[0] != len(scope.state):
        raise ValueError(
            f"the memory holds {len(scope.state)} rows, but the prompt has {prompt.shape[0]}; give every row its memory: "
            f"model.new_memory({prompt.shape[0]}), or DeltaMemState.stack([...])"
        )
    scope.claim()
    outer, scope.generation = (
        scope.generation,
        Generation(
            beams_per_row=max(settings.num_beams or 1, settings.num_return_sequences or 1),
            prompt_tokens=0 if prompt is None else prompt.shape[1],
            start=scope.state.snapshot,
        ),
    )
    try:
        yield
    finally:
        scope.generation = outer
        scope.release()
