"""What a request says about its memory: `{"memory": "anna", "write": "after"}` in its `extra_args` or `vllm_xargs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from deltamem.store.records import Key

Write = Literal["after", "during", "prompt", False]
WRITES: tuple[Write, ...] = ("after", "during", "prompt", False)
MEMORY, WRITE, KNOWN, TENANT = "memory", "write", "known", "tenant"
# The tenant of `deltamem serve` without keys, so that both servers find the same memories.
LOCAL = "local"


class MemoryUse(NamedTuple):
    """The memory of a request.

    Args:
        key: its name in the store.
        write: whether the tokens are written: "after" the answer; "during", as they are read and generated; those of the
            "prompt", without an answer; or not at all.
        known: how many of the prompt's tokens, from the first, are read and not written.
    """

    key: Key
    write: Write
    known: int = 0


def memory_use(extra_args: Mapping[str, Any] | None) -> MemoryUse | None:
    """The memory that a request names; None if it names none.

    Args:
        extra_args: the request's `extra_args`. JSON's `false` may arrive as 0.

    Raises:
        ValueError: a name or the choice of `write` is not accepted, or there is a choice without a memory.
    """
    given = extra_args or {}
    if given.get(MEMORY) is None:
        alone = [name for name in (WRITE, KNOWN, TENANT) if name in given]
        if alone:
            raise ValueError(f"a request with {alone[0]!r} needs the name of a memory; add 'memory': NAME, or leave it out")
        return None
    key = Key(given.get(TENANT, LOCAL), given[MEMORY])
    write, known = given.get(WRITE, "after"), given.get(KNOWN, 0)
    if not isinstance(known, int) or isinstance(known, bool) or known < 0:
        raise ValueError(f"'known': {known!r} is not accepted; give the number of the first tokens that are not written")
    for accepted in WRITES:
        if write == accepted:
            return MemoryUse(key, accepted, known)
    raise ValueError(f"'write': {write!r} is not accepted; give 'after', 'during', 'prompt' or false")


def check_sampling(use: MemoryUse | None, choices: int, stop: object, prompt_logprobs: int | None) -> None:
    """Check that a request's tokens can be written.

    Args:
        use: its memory.
        choices: how many answers it asks for.
        stop: the texts at which its answers end; empty or None for none.
        prompt_logprobs: how many log-probabilities it asks for with each token of its prompt; None for none.

    Raises:
        ValueError: they cannot; the message says why.
    """
    if use is None or not use.write:
        return
    if choices != 1:
        raise ValueError(
            f"n={choices} is not accepted with a memory that is written, because only one answer can be; ask for one, or give "
            "'write': false"
        )
    if stop:
        raise ValueError(
            f"stop={stop!r} is not accepted with a memory that is written: vLLM ends such a request like one that was given "
            "up, which writes nothing. Give stop_token_ids, or 'write': false"
        )
    if prompt_logprobs is not None:
        raise ValueError(
            "prompt_logprobs is not accepted with a memory that is written, because the prompt is read twice; leave it out, or "
            "give 'write': false"
        )
