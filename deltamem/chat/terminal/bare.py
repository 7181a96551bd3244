"""BareChat: the backbone's answers without the memory, in a branch of a conversation that does not change it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers import TextIteratorStreamer

from deltamem.chat.session import ChatSession
from deltamem.chat.tokens import ChatTokens, Message, with_system


class BareChat:
    """A chat with the backbone alone: it has a context and no memory.

    Args:
        session: the session that it continues, with its model, system prompt, template options and messages. The adapter is off
            while the model answers.
    """

    def __init__(self, session: ChatSession) -> None:
        self.model = session.model
        self.tokenizer = session.tokenizer
        self.system = session.system
        self.template_options = session.template_options
        self.messages: list[Message] = [*session.messages]

    def stream(self, text: str, **generation: Any) -> Iterator[str]:
        """Answer a message piece by piece. A stream that is closed before its end leaves the chat as it was."""
        messages: list[Message] = [*self.messages, {"role": "user", "content": text}]
        chat = with_system(self.system, messages)
        tokens = ChatTokens.from_messages(
            self.tokenizer, chat, add_generation_prompt=True, template_options=self.template_options
        )
        streamer = _Streamer(self.tokenizer)
        with ThreadPoolExecutor(max_workers=1) as thread:
            try:
                answering = thread.submit(self._generate, tokens.ids[None].to(self.model.device), streamer, generation)
                yield from (piece for piece in streamer if piece)
            finally:
                streamer.stopped.set()
        self.messages = [*messages, {"role": "assistant", "content": answering.result()}]

    def _generate(self, prompt: Tensor, streamer: _Streamer, generation: dict[str, Any]) -> str:
        try:
            with self.model.disable_adapter():
                output = self.model.generate(
                    input_ids=prompt,  # [1, tokens]
                    attention_mask=torch.ones_like(prompt),
                    streamer=streamer,
                    pad_token_id=self.tokenizer.pad_token_id,
                    **generation,
                )
        except BaseException:
            streamer.end()  # otherwise its reader would wait for ever
            raise
        return str(self.tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)).strip()


class _Streamer(TextIteratorStreamer):
    """Ends the generation that feeds it when its reader has left."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.stopped = threading.Event()

    def put(self, value: Tensor) -> None:
        """Receive the next token."""
        if self.stopped.is_set():
            raise InterruptedError("the stream was closed before the answer was complete")
        super().put(value)
