"""Episodes: a chat turned into the two passes that a memory is trained with.

The *write pass* reads the history into the memory; the *read pass* sees, in a fresh context, only the system prompt, the last
question and its answer, and has to get the rest from the memory. In some views it sees the history as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltamem.chat_tokens import ChatTokens, Message, check_messages, left_padded, render
from deltamem.config import WriteUnit
from deltamem.training.given import Given
from deltamem.training.views import ALL_VIEWS, Chat

IGNORED = -100
MOST_TURNS = range(1, 1_000_001)


@dataclass(frozen=True)
class Episode:
    """A tokenised episode; all sequences are 1-D.

    Args:
        write: the history, `[write tokens]`, with its segments.
        read_ids: system prompt, question and answer, `[read tokens]`.
        labels: the tokens of `read_ids` that are trained on, the others `IGNORED`.
        view: the name of the view that it is passed through the model in.
    """

    write: ChatTokens
    read_ids: Tensor
    labels: Tensor
    view: str


@dataclass(frozen=True)
class EpisodeEncoder:
    """Tokenises chats `[{"role": ..., "content": ...}, ...]` that end with a question and its answer.

    Args:
        tokenizer: a tokenizer with a chat template.
        write: what makes one write, from the adapter's config: it decides the segments.
        answer_only: train on the content of the answer and its end token; otherwise on the header of the turn as well.
        max_write_tokens: longer histories lose their beginning.
        max_read_tokens: longer read passes are refused; where the history is in the context, `max_write_tokens` are added.
    """

    tokenizer: Any
    write: WriteUnit = "token"
    answer_only: bool = False
    max_write_tokens: int = 8192
    max_read_tokens: int = 512

    def __call__(self, messages: Sequence[Message], read_turns: int = 1, view: str = "memory") -> Episode:
        """Tokenise one chat.

        Args:
            messages: the chat.
            read_turns: how many questions and answers at its end are read, one after the other in one context; all before
                them is written.
            view: one of `ALL_VIEWS`, which decides whether the history is in the context as well.

        Raises:
            ValueError: a chat without history, or without questions and answers at the end; too long a read pass.
        """
        check_messages(messages)
        system, history, turns = parts_of(messages, read_turns)
        context = history if ALL_VIEWS[view].context else []
        read_ids, labels = self._read_pass([*system, *context], turns)
        limit = self.max_read_tokens + (self.max_write_tokens if context else 0)
        if len(read_ids) > limit:
            names = "max_read_tokens + max_write_tokens" if context else "max_read_tokens"
            raise ValueError(
                f"the read pass has {len(read_ids)} tokens, more than {names}={limit}; shorten the question or the answer, or "
                "raise the limit"
            )
        written = ChatTokens.of(self.tokenizer, [*system, *history], self.write).last(self.max_write_tokens)
        return Episode(written, read_ids, labels, view)

    def _read_pass(self, system: Sequence[Message], turns: Sequence[Message]) -> tuple[Tensor, Tensor]:
        """Tokens and labels of a context that holds the system prompt and the given questions and answers."""
        ids: list[Tensor] = []
        labels: list[Tensor] = []
        rendered = ""
        for end in range(1, len(turns), 2):
            prompt = render(self.tokenizer, [*system, *turns[:end]], add_generation_prompt=self.answer_only)
            whole = render(self.tokenizer, [*system, *turns[: end + 1]])
            if not prompt.startswith(rendered) or not whole.startswith(prompt):
                raise ValueError(
                    "the tokenizer's chat template changes earlier turns when another is added; cannot train on it"
                )
            asked, answered = (
                _ids(self.tokenizer, text) for text in (prompt.removeprefix(rendered), whole.removeprefix(prompt))
            )
            ids += [asked, answered]
            labels += [torch.full_like(asked, IGNORED), answered]
            rendered = whole
        return torch.cat(ids), torch.cat(labels)


@dataclass(frozen=True)
class EpisodeCollator:
    """Makes a batch of chats: tokenises and pads on the left, so that the answers end together.

    The batch holds `view`, `[batch]`, the place in `ALL_VIEWS` of each chat's view; and under the name of each view its
    chats: for the write pass `write_input_ids`, `write_attention_mask` and, for adapters that write segments,
    `write_segment_ids`; for the read pass `input_ids`, `attention_mask` and `labels`; all `[chats, tokens]`.
    """

    encoder: EpisodeEncoder

    def __call__(self, chats: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch of `{"messages": [...]}`, each with its `"read_turns"` and its `"view"` where not 1 and "memory"."""
        episodes = [self.encoder(chat["messages"], chat.get("read_turns", 1), chat.get("view", "memory")) for chat in chats]
        # First, as that is where a Trainer looks for the size of a batch.
        batch: dict[str, Any] = {
            "view": torch.tensor([[*ALL_VIEWS].index(episode.view) for episode in episodes], dtype=torch.long, device="cpu")
        }
        for view in dict.fromkeys(episode.view for episode in episodes):
            batch[view] = self._padded([episode for episode in episodes if episode.view == view])
        return batch

    def _padded(self, episodes: Sequence[Episode]) -> dict[str, Tensor]:
        pad = self.encoder.tokenizer.pad_token_id or 0
        batch = {
            "write_input_ids": left_padded([episode.write.ids for episode in episodes], pad),
            "write_attention_mask": left_padded([torch.ones_like(episode.write.ids) for episode in episodes], 0),
            "input_ids": left_padded([episode.read_ids for episode in episodes], pad),
            "attention_mask": left_padded([torch.ones_like(episode.read_ids) for episode in episodes], 0),
            "labels": left_padded([episode.labels for episode in episodes], IGNORED),
        }
        if self.encoder.write != "token":
            batch["write_segment_ids"] = left_padded([episode.write.segment_ids for episode in episodes], -1)
        return batch


def read_chats(records: Sequence[Given]) -> list[Chat]:
    """Records as chats, `{"messages": [{"role": ..., "content": ...}, ...]}`, perhaps with their "read_turns".

    Raises:
        ValueError: a record that is something else, with its place.
    """
    return [_chat(record) for record in records]


def read_episodes(records: Sequence[Given]) -> list[Chat]:
    """As `read_chats`, but for chats to train on: a history, then questions, each with its answer.

    Raises:
        ValueError: a record that is something else, with its place.
    """
    return [_episode(record) for record in records]


def parts_of(messages: Sequence[Message], read_turns: int) -> tuple[list[Message], list[Message], list[Message]]:
    """The system prompt if there is one, the history, and the questions of a chat, each with its answer.

    Raises:
        ValueError: no history, or no questions and answers at the end.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    split = len(messages) - 2 * read_turns
    history, turns = [*messages[len(system) : max(split, 0)]], [*messages[max(split, 0) :]]
    roles = [message["role"] for message in turns]
    if not history or read_turns < 1 or roles != ["user", "assistant"] * read_turns:
        raise ValueError(
            f"an episode needs a history, then {read_turns} questions of a user, each with its answer; got the roles: "
            + ", ".join(message["role"] for message in messages)
        )
    return system, history, turns


def _episode(record: Given) -> Chat:
    chat = _chat(record)
    try:
        parts_of(chat["messages"], chat.get("read_turns", 1))
    except ValueError as error:
        raise ValueError(f"{record.place}: {error}") from error
    return chat


def _chat(record: Given) -> Chat:
    messages = [
        {"role": message["role"].text(), "content": message["content"].text(empty=True)}
        for message in record["messages"].items()
    ]
    turns = record["read_turns"]
    return {"messages": messages, **({"read_turns": turns.number(MOST_TURNS)} if turns.is_given else {})}


def _ids(tokenizer: Any, text: str) -> Tensor:
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long, device="cpu")
