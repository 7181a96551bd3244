"""The passes of one turn, in pieces between which other turns run."""

from __future__ import annotations

import sys
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from deltamem.chat.context import forward
from deltamem.chat.tokens import ChatTokens, Message
from deltamem.hook.text_decoder import longest_context
from deltamem.memory.state import DeltaMemState
from deltamem.serve.answer_stream import AnswerStream
from deltamem.serve.caches import can_be_cut, first_tokens, new_cache
from deltamem.serve.turn import Finished, Sampling, Turn
from deltamem.serve.turn_tokens import TurnTokens

# Tokens per piece: about as long as a few decode steps, so that a long prompt does not stop other users' answers.
PIECE = 128


@dataclass
class Decoding:
    """An answer that is ready to be decoded.

    Args:
        sampling: how the tokens are chosen.
        memory: the memory that is read.
        cache: the keys and values of the prompt; not changed.
        prompt: number of tokens of the prompt.
        logits: [vocabulary], for the first token.
        answer: the answer, filled in by the decoding.
    """

    sampling: Sampling
    memory: DeltaMemState
    cache: Cache
    prompt: int
    logits: Tensor
    answer: AnswerStream


# Yields None between two pieces, and a Decoding that must have ended before the generator goes on; returns the result.
Steps = Generator[Decoding | None, None, Finished]


class TurnPasses:
    """Runs a turn: reads the known messages, reads or writes the new ones, has the answer decoded, and writes the rest.

    Args:
        model: a model with a δ-mem adapter.
        tokenizer: its tokenizer.
        turn: the turn.
    """

    def __init__(self, model: Any, tokenizer: Any, turn: Turn) -> None:
        self._model, self._turn = model, turn
        self._tokens = TurnTokens(tokenizer, model.active_peft_config.write, longest_context(model) or sys.maxsize)
        self._memory = turn.memory.clone()
        self._ids: list[int] = []  # the tokens whose keys and values are in the cache
        self._cache = new_cache(model)

    def steps(self) -> Steps:
        """The steps of the turn."""
        turn, messages, known = self._turn, [*self._turn.messages], self._turn.known
        before = self._memory.tokens[0]
        decoded = None
        if turn.sampling is not None:
            if turn.write == "during":
                yield from self._write(messages, known)
                known = len(messages)
            decoded = yield from self._answer(messages, turn.sampling)
            messages.append({"role": "assistant", "content": decoded.answer.text})
        if turn.write:
            yield from self._write(messages, known)
        written = self._memory.tokens[0] - before
        if decoded is None:
            return Finished("", "stop", self._memory, written, 0, 0)
        answer = decoded.answer
        return Finished(answer.text, answer.reason, self._memory, written, decoded.prompt, answer.tokens)

    def _answer(self, messages: list[Message], sampling: Sampling) -> Generator[Decoding | None, None, Decoding]:
        """Read the chat, and have the answer decoded."""
        prompt = self._tokens.prompt(messages, sampling)
        length, sampling = len(prompt.tokens.ids), prompt.sampling
        logits = yield from self._pass(prompt.tokens, length - 1, length, write=False)
        answer = AnswerStream(self._tokens.tokenizer, sampling, self._turn.emit)
        decoding = Decoding(sampling, self._memory, self._cache, length, logits, answer)
        if not can_be_cut(self._cache):  # the decoding goes on with the cache itself
            self._forget_context()
        yield decoding
        return decoding

    def _write(self, messages: list[Message], known: int) -> Generator[None, None, None]:
        """Read the known messages, and write the others."""
        tokens, new = self._tokens.written(messages, known)
        yield from self._pass(tokens, new, new, write=False)
        yield from self._pass(tokens, new, len(tokens.ids), write=True)

    def _pass(self, tokens: ChatTokens, keep: int, end: int, write: bool) -> Generator[None, None, Tensor]:
        """Pass over the tokens of a chat up to `end`, without those whose keys and values are known.

        Args:
            tokens: the chat.
            keep: how many of its first tokens may be known; the others are passed over again.
            end: the end of the pass.
            write: whether the tokens are written.

        Returns:
            The logits of the last token, [vocabulary]; none if every token is known.
        """
        self._keep_context(tokens.ids[:keep].tolist())
        logits = torch.empty(0, dtype=torch.float32, device="cpu")
        for start in range(len(self._ids), end, PIECE):
            piece = tokens.slice(start, min(start + PIECE, end))
            logits = forward(self._model, piece, self._cache, self._memory, write, cut=start + PIECE < end)[0]
            self._ids += piece.ids.tolist()
            yield
        return logits

    def _keep_context(self, ids: list[int]) -> None:
        """Cut the cache to its tokens that are also at the beginning of `ids`."""
        pairs = enumerate(zip(self._ids, ids, strict=False))
        kept = next((place for place, (known, token) in pairs if known != token), min(len(self._ids), len(ids)))
        if kept == len(self._ids):
            return
        if not can_be_cut(self._cache):
            self._forget_context()
            return
        self._ids, self._cache = self._ids[:kept], first_tokens(self._cache, kept)

    def _forget_context(self) -> None:
        self._ids, self._cache = [], new_cache(self._model)
