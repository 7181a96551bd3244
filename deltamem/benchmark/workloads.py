"""The workloads to time with a bare or an adapted model: a prefill, greedy decoding, a training step.

Each is a context manager: entering it prepares a run, untimed, and yields the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from deltamem.benchmark.twins import Adapted, Subject
from deltamem.hook.text_decoder import last_place
from deltamem.memory.state import DeltaMemState
from deltamem.versions import CACHE


@dataclass
class Prefill:
    """The pass over a prompt, into a new KV cache and a new memory; creating, opening and closing the memory counts as well.

    Args:
        subject: the model.
        prompt: token ids `[batch, tokens]`.
    """

    subject: Subject
    prompt: Tensor

    @contextmanager
    def __call__(self) -> Iterator[Callable[[], object]]:
        """Prepare a run and yield its work."""
        model, prompt, mask = self.subject.model, self.prompt, torch.ones_like(self.prompt)
        last = last_place(prompt)

        def work() -> None:
            cache = DynamicCache(config=model.config)
            with self.subject.writing(prompt):
                model(input_ids=prompt, attention_mask=mask, **{CACHE: cache}, use_cache=True, logits_to_keep=last)

        with torch.no_grad():  # as in generate()
            yield work


@dataclass
class Decoding:
    """Greedy decoding after a prompt, one token at a time; the prompt's own pass is not timed.

    Args:
        subject: the model.
        prompt: token ids `[batch, tokens]`.
        new_tokens: number of steps.
        memory: the initial memory, which stays unchanged; None for an empty one.
        static: whether to use a static KV cache.
        forward: runs a step, for instance a compiled model; None for the model itself.
        tokens: the tokens of the last run, row by row: `new_tokens + 1` token ids.
    """

    subject: Subject
    prompt: Tensor
    new_tokens: int
    memory: DeltaMemState | None = None
    static: bool = False
    forward: Callable[..., Any] | None = None
    tokens: list[list[int]] = field(default_factory=list, init=False)
    _cache: Any = field(default=None, init=False)

    @contextmanager
    def __call__(self) -> Iterator[Callable[[], object]]:
        """Read the prompt and yield the steps."""
        step = self.subject.model if self.forward is None else self.forward  # not `or`: a compiled model has no truth value
        cache = self._empty_cache()
        batch, read = self.prompt.shape
        # generate() passes a mask with every step. A static cache needs a mask of constant shape, so none is passed.
        mask = None if self.static else self.prompt.new_ones(batch, read + self.new_tokens)

        def greedy(forward: Callable[..., Any], tokens: Tensor, seen: int) -> Tensor:
            """The most likely next token, `[batch, 1]`, after a pass that ends at token `seen`."""
            masked = {} if mask is None else {"attention_mask": mask[:, :seen]}
            output = forward(input_ids=tokens, **{CACHE: cache}, use_cache=True, logits_to_keep=last_place(tokens), **masked)
            return output.logits[:, -1].argmax(-1, keepdim=True)

        def work() -> None:
            for seen in range(read + 1, read + self.new_tokens + 1):
                said.append(greedy(step, said[-1], seen))

        with torch.no_grad(), self.subject.decoding(batch, self.memory):
            said = [greedy(self.subject.model, self.prompt, read)]
            yield work
            self.tokens = torch.cat(said, dim=1).tolist()

    def _empty_cache(self) -> Any:
        config = self.subject.model.config
        if not self.static:
            return DynamicCache(config=config)
        if self._cache is None:
            self._cache = StaticCache(config=config, max_cache_len=self.prompt.shape[1] + self.new_tokens)
        else:  # reuse the tensors: a compiled graph may hold their addresses
            self._cache.reset()
        return self._cache


@dataclass
class TrainingStep:
    """The write pass of a training step, forward and backward, without the optimiser.

    The gradients of an adapted model come from the writes and go to the adapter's weights; those of a bare model come from its
    last logits and go to its inputs, since its weights are frozen.

    Args:
        subject: the model.
        prompt: token ids `[batch, tokens]`.
    """

    subject: Subject
    prompt: Tensor

    @contextmanager
    def __call__(self) -> Iterator[Callable[[], object]]:
        """Prepare a step and yield its work."""
        model = self.subject.model.train()
        try:
            yield self._adapted if isinstance(self.subject, Adapted) else self._bare
        finally:
            model.zero_grad(set_to_none=True)
            model.eval()

    def _adapted(self) -> None:
        with self.subject.writing(self.prompt, detach=False) as block:
            logits = self._logits(input_ids=self.prompt)
        written = torch.stack([tensor.sum() for tensor in block.state.tensors.values()]).sum()
        (logits.float().sum() + written).backward()

    def _bare(self) -> None:
        embeddings = self.subject.model.get_input_embeddings()(self.prompt).detach().requires_grad_()
        self._logits(inputs_embeds=embeddings).float().sum().backward()

    def _logits(self, **inputs: Tensor) -> Tensor:
        """The logits of the last token only, as in training."""
        mask, last = torch.ones_like(self.prompt), last_place(self.prompt)
        return self.subject.model(**inputs, attention_mask=mask, use_cache=False, logits_to_keep=last).logits
