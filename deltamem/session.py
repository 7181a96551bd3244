"""ChatSession: a conversation whose memory outlives its context."""

from __future__ import annotations

import copy
import json
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from deltamem.cache import CACHE
from deltamem.chat_tokens import ChatTokens, Message, check_messages, with_system
from deltamem.contents import Contents
from deltamem.decoder import last_place
from deltamem.session_notes import SessionNotes, notes_in
from deltamem.state import DeltaMemState, read_state_file, write_state_file

FILE = "session.safetensors"
MAX_NEW_TOKENS = 256


class ChatSession:
    """A chat with a memory. The context holds the messages since `forget_context`; the memory holds what all of them left.

    Each turn is written to the memory once: after it has been answered, or, for an adapter trained that way
    (`turn_writes="during"`), the user's message before the answer is generated. A turn that fails or is broken off leaves the
    session as it was.

    Args:
        model: a model with a δ-mem adapter.
        tokenizer: its tokenizer, with a chat template.
        system: the system prompt; the chat template's own if None.
        memory: the memory to go on with, which is copied; empty if None.

    Raises:
        ValueError: the memory does not belong to the model's adapter or has more than one row, or the tokenizer has no chat
            template.
    """

    def __init__(
        self, model: PeftModel, tokenizer: Any, system: str | None = None, memory: DeltaMemState | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.system = system
        self.memory: DeltaMemState = model.new_memory() if memory is None else memory.clone()
        if len(self.memory) != 1:
            raise ValueError(f"a chat has one memory, got one with {len(self.memory)} rows; take one of them: memory[0]")
        with model.memory(self.memory, write=False):  # refuses a memory of another adapter
            pass
        self.messages: list[Message] = []
        self._saves = 0  # how often the session was saved
        self._goes_on_from: set[str] = set()  # the ids of these saves: what they hold is in this session too
        self._tokens([{"role": "user", "content": ""}])  # refuses a tokenizer without a chat template
        self.forget_context()

    def observe(self, text: str | Sequence[Message]) -> None:
        """Write a text, or the messages of a chat, to the memory without keeping it in the context.

        What is longer than the model's context is written in pieces of that length.
        """
        messages: Sequence[Message] = [{"role": "user", "content": text}] if isinstance(text, str) else text
        check_messages(messages)
        tokens = self._tokens(messages)
        before = self.memory.contents, self.memory.fingerprint
        try:
            *pieces, last = tokens.pieces(self.model.config.get_text_config().max_position_embeddings)
            for piece in pieces:
                self._forward(piece, None, self.memory, cut=True)
            self._forward(last, None, self.memory)
        except BaseException:  # a piece that fails must not leave the others written
            self.memory.contents, self.memory.fingerprint = before
            raise

    def reply(self, text: str, **generation: Any) -> str:
        """Answer a message. `generation` goes to `generate`, for instance `max_new_tokens=100, do_sample=False`."""
        return self._turn(text, generation)

    def stream(self, text: str, **generation: Any) -> Iterator[str]:
        """Answer a message piece by piece. A stream that is closed before its end leaves the session as it was."""
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stopped = threading.Event()
        errors: list[BaseException] = []

        def run() -> None:
            try:
                self._turn(text, generation, streamer, stopped)
            except BaseException as error:  # handed to the consumer below
                errors.append(error)
                streamer.end()

        # A thread of its own also keeps the open memory block away from the consumer's code between two pieces.
        thread = threading.Thread(target=run, daemon=True)
        try:
            thread.start()
            yield from (piece for piece in streamer if piece)
        except BaseException:
            stopped.set()
            raise
        finally:
            if thread.ident is not None:  # an interrupt may come before it was started
                thread.join()
        if errors:
            raise errors[0]

    def forget_context(self) -> None:
        """Drop the messages and their keys and values; the memory stays."""
        self.messages = []
        # The context as it was written: its tokens, the passes over them, what the last one left in the memory, and the keys
        # and values of the passes (None: to be computed again).
        self._written: list[int] = []
        self._passes: list[_Pass] = []
        self._left: Contents | None = None
        self._cache: DynamicCache | None = None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the session, memory and messages, into one file in a folder: all of it or nothing.

        Raises:
            ValueError: the folder has a session that this one does not go on from; it is left as it is.
        """
        path = Path(folder) / FILE
        there = notes_in(path)
        if there is not None and there.save not in self._goes_on_from:
            raise ValueError(
                f"{os.fspath(path)!r} holds a session that was saved {there.saves} times, and this one, saved {self._saves} "
                "times, does not go on from it: what was written there would be lost. Load it and go on from there, or give "
                "another folder"
            )
        os.makedirs(folder, exist_ok=True)
        notes = SessionNotes(
            saves=max(self._saves, 0 if there is None else there.saves) + 1,
            save=uuid.uuid4().hex,
            system=self.system,
            messages=[dict(message) for message in self.messages],
            written=self._written,
            passes=[(done.end, done.start is not None) for done in self._passes],
            memory_as_left=self.memory.contents is self._left,
        )
        self._goes_on_from.add(notes.save)  # before it is written: an interrupt may come when the file is in its place already
        memories = DeltaMemState.stack([self.memory, *(done.start for done in self._passes if done.start is not None)])
        write_state_file(path, memories, {"session": json.dumps(asdict(notes))})
        self._saves = notes.saves

    @classmethod
    def load(cls, folder: str | os.PathLike[str], model: PeftModel, tokenizer: Any) -> ChatSession:
        """Go on with a saved session.

        Raises:
            FileNotFoundError: no session in this folder.
            ValueError: a damaged file, or one of another adapter.
        """
        path = Path(folder) / FILE
        memories, metadata = read_state_file(path)
        notes = SessionNotes.read(metadata, path)
        starts = sum(has_start for _, has_start in notes.passes)
        if len(memories) != 1 + starts:
            raise ValueError(f"{os.fspath(path)!r} holds no session: it has {len(memories)} memories, its notes {1 + starts}")
        session = cls(model, tokenizer, notes.system, memories[0])
        vocabulary = model.get_input_embeddings().num_embeddings
        if not all(0 <= token < vocabulary for token in notes.written):
            raise ValueError(f"{os.fspath(path)!r} has tokens that the model does not: it was made with another tokenizer")
        session.messages, session._written = notes.messages, notes.written
        rows = iter(range(1, 1 + starts))
        session._passes = [_Pass(end, memories[next(rows)] if has_start else None) for end, has_start in notes.passes]
        session._left = session.memory.contents if notes.memory_as_left else None
        session._saves, session._goes_on_from = notes.saves, {notes.save}
        return session

    def _turn(
        self,
        text: str,
        generation: dict[str, Any],
        streamer: TextIteratorStreamer | None = None,
        stopped: threading.Event | None = None,
    ) -> str:
        if not isinstance(text, str):
            raise TypeError(f"a message is text, got {type(text).__name__}")
        before = self.memory.contents, self.memory.fingerprint, self.messages, self._written, self._passes, self._left
        try:
            self.messages = [*self.messages, {"role": "user", "content": text}]
            during = self.model.active_peft_config.turn_writes == "during"
            self._write_context(upto=len(self.messages) if during else len(self.messages) - 1)
            answer = self._generate(generation, streamer, stopped)
            if stopped is not None and stopped.is_set():
                raise InterruptedError("the stream was closed before the answer was complete")
            self.messages = [*self.messages, {"role": "assistant", "content": answer}]
            self._write_context(upto=len(self.messages))
        except BaseException:
            self.memory.contents, self.memory.fingerprint, self.messages, self._written, self._passes, self._left = before
            self._cache = None
            raise
        return answer

    def _write_context(self, upto: int) -> None:
        """Write those of the first messages that have not been written yet, as the continuation of the context."""
        if upto == 0:
            return
        tokens = self._tokens(self.messages[:upto])
        ids = tokens.ids.tolist()
        known = _common_prefix(self._written, ids)
        if known < len(self._written):  # the template changed earlier turns
            self._passes, self._left, self._cache = _first(self._passes, known), None, None
        if self._cache is None:  # so it is after a load or a failure, too
            self._cache = self._replay(tokens)
        if known < len(ids):
            # The passes before this one lead to the memory as it is now, unless something else was written in between.
            start = None if self.memory.contents is self._left else self.memory.clone()
            self._forward(tokens.slice(known, len(ids)), self._cache, self.memory)
            self._passes, self._left = [*self._passes, _Pass(len(ids), start)], self.memory.contents
        self._written = ids

    def _replay(self, tokens: ChatTokens) -> DynamicCache:
        """The keys and values of the passes, computed again on copies of the memories they started from."""
        cache, memory, begin = DynamicCache(config=self.model.config), self.memory, 0
        for done in self._passes:
            memory = memory if done.start is None else done.start.clone()
            self._forward(tokens.slice(begin, done.end), cache, memory)
            begin = done.end
        return cache

    @torch.no_grad()
    def _forward(self, tokens: ChatTokens, cache: DynamicCache | None, memory: DeltaMemState, cut: bool = False) -> None:
        """Write tokens to a memory, as the continuation of a cache; `cut` if their last segment goes on in the next call."""
        writes_segments = self.model.active_peft_config.writes_segments
        segment_ids = self._batch(tokens.segment_ids) if writes_segments else None
        with self.model.memory(memory, segment_ids=segment_ids, keep_open=cut and writes_segments):
            ids = self._batch(tokens.ids)
            self.model(input_ids=ids, **{CACHE: cache}, use_cache=cache is not None, logits_to_keep=last_place(ids))

    def _generate(
        self, generation: dict[str, Any], streamer: TextIteratorStreamer | None, stopped: threading.Event | None
    ) -> str:
        prompt = self._batch(self._tokens(self.messages, add_generation_prompt=True).ids)
        options = {"max_new_tokens": MAX_NEW_TOKENS, **generation}
        if stopped is not None:
            options["stopping_criteria"] = StoppingCriteriaList([_Stop(stopped)])
        # The answer is generated on a copy: the context keeps the keys and values of its own, written pass. They are of no use
        # if the template changes earlier turns once another one follows.
        unchanged = _common_prefix(self._written, prompt[0].tolist()) == len(self._written)
        with self.model.memory(self.memory, write=False):
            output = self.model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                **{CACHE: copy.deepcopy(self._cache) if unchanged else None},
                streamer=streamer,
                pad_token_id=self.tokenizer.pad_token_id,
                **options,
            )
        return str(self.tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)).strip()

    def _tokens(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> ChatTokens:
        write = self.model.active_peft_config.write
        return ChatTokens.of(self.tokenizer, with_system(self.system, messages), write, add_generation_prompt)

    def _batch(self, row: Tensor) -> Tensor:
        return row[None].to(self.model.device)


@dataclass(frozen=True)
class _Pass:
    """A write pass over a part of the context.

    Args:
        end: the number of the context's tokens up to its end.
        start: the memory before it, where that is not what the pass before it left.
    """

    end: int
    start: DeltaMemState | None


def _first(passes: Sequence[_Pass], tokens: int) -> list[_Pass]:
    """The passes over the first tokens."""
    begins = [0, *(done.end for done in passes)]
    return [_Pass(min(done.end, tokens), done.start) for done, begin in zip(passes, begins, strict=False) if begin < tokens]


class _Stop(StoppingCriteria):
    """Ends a generation whose consumer has gone."""

    def __init__(self, stopped: threading.Event) -> None:
        self.stopped = stopped

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.stopped.is_set(), device=input_ids.device)


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))
