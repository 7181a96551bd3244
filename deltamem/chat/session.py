"""ChatSession: a conversation whose memory outlives its context."""

from __future__ import annotations

import copy
import os
import threading
import uuid
from collections.abc import AsyncGenerator, Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AsyncTextIteratorStreamer, TextIteratorStreamer

from deltamem.chat.answer import Stop, generate
from deltamem.chat.context import Context, Pass, forward
from deltamem.chat.continuation import new_from
from deltamem.chat.journal import Journal, Write, remaining
from deltamem.chat.saved import SavedSession, notes_in
from deltamem.chat.tokens import ChatTokens, Message, check_messages, told, with_system
from deltamem.chat.turn_thread import TurnThread
from deltamem.hook.text_decoder import longest_context
from deltamem.memory.state import DeltaMemState
from deltamem.memory.state_file import read_state_file, write_state_file

FILE = "session.safetensors"
PIECE = 2048  # tokens per pass over a long text, for a model without a maximum context length in its configuration


class ChatSession:
    """A chat with a memory. The context holds the messages since `forget_context`; the memory is written by all messages.

    Each message is written to the memory once: after its turn has been answered, or, for an adapter trained that way
    (`turn_writes="during"`), the user's message before the answer is generated. This also holds for chat templates that later
    render earlier turns differently: with another date, or without an answer's reasoning. Such turns are read again for the
    context, but not written again. A turn that fails or is interrupted leaves the session as it was.

    A session serves one call at a time; while a stream is open, other calls are refused.

    Args:
        model: a model with a δ-mem adapter.
        tokenizer: its tokenizer, with a chat template.
        system: the system prompt; the chat template's default if None.
        memory: the initial memory, which is copied; empty if None.
        template_options: further options of the chat template, such as `{"enable_thinking": False}` or `{"tools": [...]}`. They
            are saved with the session.
        journal: whether the session keeps the messages that it writes, to list them in `journal.entries` and `forget` them.
            Otherwise it keeps none but those in its context.

    Raises:
        ValueError: the memory does not belong to the model's adapter or has more than one row, or the tokenizer has no chat
            template.
        TypeError: the system prompt is not text.
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer: Any,
        system: str | None = None,
        memory: DeltaMemState | None = None,
        template_options: Mapping[str, Any] | None = None,
        journal: bool = False,
    ) -> None:
        if not isinstance(system, str | None):
            raise TypeError(f"a system prompt is text or None, got {type(system).__name__}")
        self.model = model
        self.tokenizer = tokenizer
        self.system = system
        self.template_options = dict(template_options or {})
        self.memory: DeltaMemState = model.new_memory() if memory is None else memory.clone()
        if len(self.memory) != 1:
            raise ValueError(f"a chat has one memory, got one with {len(self.memory)} rows; take one of them: memory[0]")
        model.memory(self.memory, write=False)  # refuses a memory of another adapter
        self.messages: list[Message] = []
        self.journal = Journal() if journal else None
        self._saves = 0  # how often the session was saved
        self._goes_on_from: set[str] = set()  # the ids of the saves that this session continues, so it may replace them
        self._in_use = threading.Lock()
        self._written = 0  # the number of messages in the context that were written to the memory
        self._context = Context(model)
        self._tokens([{"role": "user", "content": ""}])  # refuses a tokenizer without a chat template

    def observe(self, text: str | Sequence[Message]) -> None:
        """Write a text, or the messages of a chat, to the memory without keeping it in the context.

        A text is written in the form of the training episodes: as a user's message that the assistant acknowledges ("Noted.").
        Input that is longer than the model's context is written in pieces of that length.

        Raises:
            ValueError: the input is neither a text nor messages.
            RuntimeError: the session is in use.
        """
        messages: Sequence[Message] = told(text) if isinstance(text, str) else text
        check_messages(messages)
        with self._claimed():
            self._observe(messages)

    def forget(self, ids: Collection[str]) -> None:
        """Forget messages: afterwards, the memory and the context are those of a session that never heard them.

        The rest of the journal is written again, from the last write before them that had an empty context.

        Args:
            ids: the ids of entries of the journal.

        Raises:
            ValueError: the session keeps no journal, or it has no such message.
            RuntimeError: the session is in use.
        """
        if self.journal is None:
            raise ValueError("this session keeps no journal, so single messages cannot be forgotten; make it with journal=True")
        with self._claimed():
            first = self.journal.from_before(ids)
            writes = self.journal.writes[first:]
            if not (ids and writes):
                return
            again = ChatSession(self.model, self.tokenizer, self.system, writes[0].begins, self.template_options, journal=True)
            for write in writes:
                again._write_again(remaining(write, ids))
            if not self._written:
                again.forget_context()
            self.memory.snapshot, self.memory.fingerprint = again.memory.snapshot, again.memory.fingerprint
            self.messages, self._written, self._context = again.messages, again._written, again._context
            self.journal = Journal([*self.journal.writes[:first], *(again.journal or Journal()).writes])

    def reply(self, text: str, *, keep: bool = True, **generation: Any) -> str:
        """Answer a message.

        Args:
            text: the user's message.
            keep: whether the turn stays in the context and is written to the memory; otherwise the session stays as it was.
            generation: options for `generate`, for instance `max_new_tokens=100, do_sample=False`. If neither these nor the
                model's `generation_config` set a length, an answer has at most 256 tokens. With several sequences, the first
                is the answer (with beams, the best). The session always uses its KV cache: `use_cache` has no effect.

        Raises:
            ValueError: an option is one that the session sets, such as `attention_mask`.
            RuntimeError: the session is in use.
        """
        with self._claimed():
            return self._turn(text, generation, keep)

    def stream(self, text: str, *, keep: bool = True, **generation: Any) -> Generator[str, None, None]:
        """Like `reply`, but yield the answer piece by piece.

        A stream that is closed before its end leaves the session as it was. The session is in use until the stream has ended or
        is closed.
        """
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        turn = self._turn_in_thread(text, generation, keep, streamer)
        with self._claimed(), turn:
            yield from (piece for piece in streamer if piece)
        turn.result()

    async def areply(self, text: str, *, keep: bool = True, **generation: Any) -> str:
        """Like `reply`, but let other coroutines run meanwhile. If the call is cancelled, the session stays as it was."""
        turn = self._turn_in_thread(text, generation, keep, None)
        with self._claimed(), turn:
            await turn.ended()
        return turn.result()

    async def astream(self, text: str, *, keep: bool = True, **generation: Any) -> AsyncGenerator[str, None]:
        """Like `stream`, but let other coroutines run meanwhile."""
        streamer = AsyncTextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        turn = self._turn_in_thread(text, generation, keep, streamer)
        with self._claimed(), turn:
            async for piece in streamer:
                if piece:
                    yield piece
            await turn.ended()
        turn.result()

    def forget_context(self) -> None:
        """Drop the messages and their keys and values; the memory stays.

        Raises:
            RuntimeError: the session is in use.
        """
        with self._claimed():
            self.messages = []
            self._written, self._context = 0, Context(self.model)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the session, memory and messages, to one file in a folder, completely or not at all.

        Raises:
            ValueError: the folder holds a session that this one does not continue, which is not changed; or the template's
                options are not JSON.
            RuntimeError: the session is in use.
        """
        with self._claimed():
            self._save(folder)

    def _save(self, folder: str | os.PathLike[str]) -> None:
        path = Path(folder) / FILE
        there = notes_in(path)
        if there is not None and there.save not in self._goes_on_from:
            raise ValueError(
                f"{os.fspath(path)!r} holds a session that was saved {there.saves} times, and this one, saved {self._saves} "
                "times, does not continue it: what was written there would be lost. Load it and continue from there, or give "
                "another folder"
            )
        context = self._context
        notes = SavedSession(
            saves=max(self._saves, 0 if there is None else there.saves) + 1,
            save=uuid.uuid4().hex,
            system=self.system,
            messages=[dict(message) for message in self.messages],
            written=list(context.ids),
            passes=[(done.end, done.start is not None) for done in context.passes],
            memory_as_left=self.memory.snapshot is context.left,
            first_pass_writes=all(done.writes for done in context.passes[:1]),
            template_options=self.template_options,
            journal=None if self.journal is None else self.journal.to_notes(),
        )
        as_json = notes.to_json()
        self._goes_on_from.add(notes.save)  # before writing: an interrupt may come when the file is already in place
        starts = [done.start for done in context.passes if done.start is not None]
        begins = [write.begins for write in self.journal.writes if write.begins is not None] if self.journal is not None else []
        memories = DeltaMemState.stack([self.memory, *starts, *begins])
        os.makedirs(folder, exist_ok=True)
        write_state_file(path, memories.snapshot, memories.fingerprint, {"session": as_json})
        self._saves = notes.saves

    @classmethod
    def load(cls, folder: str | os.PathLike[str], model: PeftModel, tokenizer: Any) -> ChatSession:
        """Load a saved session, to continue it.

        Raises:
            FileNotFoundError: the folder holds no session.
            ValueError: the file is damaged, or was written with another adapter.
        """
        path = Path(folder) / FILE
        snapshot, fingerprint, metadata = read_state_file(path)
        memories = DeltaMemState(snapshot, fingerprint)
        notes = SavedSession.read(metadata, path)
        starts = sum(has_start for _, has_start in notes.passes)
        expected = 1 + starts + sum(write["begins"] for write in notes.journal or ())
        if len(memories) != expected:
            raise ValueError(f"{os.fspath(path)!r} holds no session: it has {len(memories)} memories, its notes {expected}")
        session = cls(model, tokenizer, notes.system, memories[0], notes.template_options)
        vocabulary = model.get_input_embeddings().num_embeddings
        if not all(0 <= token < vocabulary for token in notes.written):
            raise ValueError(f"{os.fspath(path)!r} has tokens that the model does not: it was made with another tokenizer")
        session.messages, session._written = notes.messages, len(notes.messages)
        if notes.journal is not None:
            session.journal = Journal.from_notes(notes.journal, [memories[row] for row in range(1 + starts, expected)])
        rows = iter(range(1, 1 + starts))
        session._context = Context(
            model,
            tuple(notes.written),
            tuple(
                Pass(end, memories[next(rows)] if has_start else None, number > 0 or notes.first_pass_writes)
                for number, (end, has_start) in enumerate(notes.passes)
            ),
            session.memory.snapshot if notes.memory_as_left else None,
        )
        session._saves, session._goes_on_from = notes.saves, {notes.save}
        return session

    def _claimed(self) -> threading.Lock:
        """The lock of the session, for one call; two threads that call at the same moment take turns.

        Raises:
            RuntimeError: the session is in use.
        """
        if self._in_use.locked():
            raise RuntimeError(
                "this session is in use: a stream of it is open, or another thread is in one of its calls. Read the stream to "
                "its end or close() it first; for another conversation at the same time, use another session"
            )
        return self._in_use  # the caller's `with` enters it directly, so that no interrupt can come in between

    def _turn_in_thread(
        self, text: str, generation: Mapping[str, Any], keep: bool, streamer: TextIteratorStreamer | None
    ) -> TurnThread:
        return TurnThread(lambda stop: self._turn(text, generation, keep, streamer, stop), streamer)

    def _turn(
        self,
        text: str,
        generation: Mapping[str, Any],
        keep: bool,
        streamer: TextIteratorStreamer | None = None,
        stop: Stop | None = None,
    ) -> str:
        if not isinstance(text, str):
            raise TypeError(f"a message is text, got {type(text).__name__}")
        before, begins = (self.messages, self._written, copy.copy(self._context)), self._begins()
        try:
            with self.memory.unchanged_on_error():
                self.messages = [*self.messages, {"role": "user", "content": text}]
                if keep and self.model.active_peft_config.turn_writes == "during":
                    self._write_messages()
                answer = self._answer(generation, streamer, stop)
                if stop is not None and stop.is_set:
                    raise InterruptedError("the stream was closed before the answer was complete")
                if keep:
                    self.messages = [*self.messages, {"role": "assistant", "content": answer}]
                    self._write_messages()
                    if self.journal is not None:
                        self.journal.add(self.messages[-2:], False, begins, self.memory)
                else:
                    self.messages = before[0]
        except BaseException:
            self.messages, self._written, self._context = before
            self._context.cache = None  # it has already grown
            raise
        return answer

    def _observe(self, messages: Sequence[Message]) -> None:
        begins = self._begins()
        *pieces, last = self._tokens(messages).pieces(longest_context(self.model) or PIECE)
        with self.memory.unchanged_on_error():  # a piece that fails must not leave the others written
            for piece in pieces:
                forward(self.model, piece, None, self.memory, cut=True)
            forward(self.model, last, None, self.memory)
        if self.journal is not None:
            self.journal.add(messages, True, begins, self.memory)

    def _begins(self) -> DeltaMemState | None:
        """What the journal keeps of the memory before a write."""
        return self.memory.clone() if self.journal is not None and not self._written else None

    def _write_again(self, write: Write) -> None:
        """Write what remains of a write of the journal."""
        if write.begins is not None:
            self.forget_context()
        messages = [entry.message for entry in write.entries]
        if not messages:
            return
        if write.observed:
            self._observe(messages)
        else:
            begins, self.messages = self._begins(), [*self.messages, *messages]
            self._write_messages()
            if self.journal is not None:
                self.journal.add(messages, False, begins, self.memory)
        if self.journal is not None:
            self.journal.keep_names(write)

    def _write_messages(self) -> None:
        """Write the new messages as the continuation of the context."""
        tokens = self._tokens(self.messages)
        if self._written and not self._context.begins(tokens):
            prompts = [] if self.system is None else [self.system]
            messages = with_system(self.system, self.messages)
            known = new_from(self.tokenizer, messages, len(prompts) + self._written, self.template_options)
            self._context.read_again(tokens.slice(0, known), self.memory)
        self._context.write(tokens, self.memory)
        self._written = len(self.messages)

    def _answer(self, generation: Mapping[str, Any], streamer: TextIteratorStreamer | None, stop: Stop | None) -> str:
        tokens = self._tokens(self.messages, add_generation_prompt=True)
        # The answer is generated on a copy: the context keeps the keys and values of the pass that wrote it. They are of no use
        # if the template changes earlier turns when another one follows.
        cache = self._context.keys_and_values(tokens) if self._written and self._context.begins(tokens) else None
        with self.model.memory(self.memory, write=False):
            prompt = tokens.ids[None].to(self.model.device)
            return generate(self.model, self.tokenizer, prompt, cache, generation, streamer, stop)

    def _tokens(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> ChatTokens:
        write = self.model.active_peft_config.write
        chat = with_system(self.system, messages)
        return ChatTokens.from_messages(self.tokenizer, chat, write, add_generation_prompt, self.template_options)
