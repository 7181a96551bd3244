"""The bodies of requests that OpenAI's endpoints share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from deltamem.chat.tokens import Message
from deltamem.serve.api.errors import ApiError
from deltamem.serve.turn import Write
from deltamem.store import Key

# The header that names the memory, for clients that cannot add to the body.
MEMORY_HEADER = "x-memory-id"
MOST_MESSAGES = 1000


def _check_whole(text: str) -> str:
    """Refuse text that no tokenizer reads and no answer can repeat.

    Raises:
        ValueError: it has half of a surrogate pair, which JSON can write.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("the text has half of a surrogate pair; send whole characters")
    return text


Text = Annotated[str, AfterValidator(_check_whole)]


class TextPart(BaseModel):
    """A part of a message; only text is accepted."""

    type: Literal["text", "input_text", "output_text"]
    text: Text


class ChatMessage(BaseModel):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    def message(self) -> Message:
        """The message in the form of a chat template."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)]


class MemoryOptions(BaseModel):
    """Which memory a request uses, and whether it is written."""

    model_config = ConfigDict(extra="forbid")

    id: str | None = None
    write: Literal["after", "during", False] | None = None


class TextRequest(BaseModel):
    """What requests for an answer have in common."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    user: str | None = None
    memory: MemoryOptions | None = None

    @property
    def chosen_temperature(self) -> float:
        """The temperature, by default OpenAI's."""
        return 1.0 if self.temperature is None else self.temperature

    @property
    def chosen_top_p(self) -> float:
        """The probability of the tokens drawn from, by default OpenAI's."""
        return self.top_p or 1.0

    def key(self, tenant: str, request: Request) -> Key | None:
        """The memory that the request names: in `memory`, in a header, or by `user`; None without one."""
        named = (self.memory and self.memory.id) or request.headers.get(MEMORY_HEADER) or self.user
        return Key(tenant, named) if named else None

    def write(self, default: Write) -> Write:
        """Whether the turn is written."""
        return default if self.memory is None or self.memory.write is None else self.memory.write


def refuse_unsupported(request: BaseModel, defaults: Mapping[str, Any]) -> None:
    """Refuse options that would change the answer and have no effect here.

    Args:
        request: the request.
        defaults: the values that change nothing, by option.

    Raises:
        ApiError: the message names the option.
    """
    for name, value in (request.model_extra or {}).items():
        if name in defaults and value not in (None, defaults[name]):
            raise ApiError(400, f"{name} is not supported by this server; leave it out", "unsupported_parameter", name)


def check_no_special_tokens(tokenizer: Any, messages: list[Message]) -> None:
    """Refuse texts with the chat template's own tokens, which would begin messages in another role.

    Raises:
        ApiError: the message names the token.
    """
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for message in messages:
        found = next((token for token in special if token in message["content"]), None)
        if found is not None:
            raise ApiError(
                400,
                f"a message has the model's special token {found!r}; leave it out, or write it with a space",
                "special_token",
                "messages",
            )
