"""Measures whether a memory's cost stays constant however much is written to it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from rich.progress import Progress

from deltamem.benchmark.twins import Adapted
from deltamem.hook.text_decoder import last_place
from deltamem.memory.state import DeltaMemState

# Tokens per pass; the next pass sees them only through the memory.
CHUNK = 1000


def memories_after(
    adapted: Adapted, lengths: list[int], batch: int, most_tokens: int, progress: Progress
) -> Iterator[tuple[int, DeltaMemState]]:
    """Write more and more random tokens to a memory, in chunks, each with an empty context.

    Args:
        adapted: the model.
        lengths: numbers of tokens after which to yield the memory.
        batch: number of rows.
        most_tokens: the longest pass that the model supports.
        progress: shows the tokens written.

    Yields:
        Each of the lengths, in ascending order, and the memory after that many tokens.
    """
    model = adapted.model
    vocabulary = model.config.vocab_size
    memory, written = model.new_memory(batch), 0
    task = progress.add_task("writing", total=max(lengths))
    for length in sorted({*lengths}):
        while written < length:
            size = min(CHUNK, most_tokens, length - written)
            tokens = torch.randint(vocabulary, (batch, size), device=model.device)
            with torch.no_grad(), adapted.writing(tokens, memory):
                model(
                    input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False, logits_to_keep=last_place(tokens)
                )
            written += size
            progress.update(task, completed=written)
        yield length, memory
