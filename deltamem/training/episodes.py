"""Episodes: a chat turned into the two passes that train a memory.

The *write pass* reads the history into the memory. The *read pass* sees, in a fresh context, only the system prompt and what
follows the history, and must get the rest from the memory. In some views it sees the history as well.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltamem.chat.tokens import ChatTokens, Message, check_messages, left_padded, render, right_padded
from deltamem.config import WriteUnit
from deltamem.training.chats import Chat, naming
from deltamem.training.scripts import IGNORED, NO_PLACE, Part, Script, question_script, talk_script, token_ids
from deltamem.training.views import ALL_VIEWS

OWN_QUESTIONS = ({"view": "memory"},)


@dataclass(frozen=True)
class Read:
    """A read pass.

    Args:
        view: the name of the view it is run in.
        ids: its input, `[tokens]`.
        labels: `[tokens]`; equal to `ids` where they are trained on, `IGNORED` elsewhere.
        written: how many of the chat's tokens are in the memory.
        follows: how many tokens at the end of `ids` continue the chat after those written; 0 if something else is read.
    """

    view: str
    ids: Tensor
    labels: Tensor
    written: int
    follows: int


@dataclass(frozen=True)
class Episode:
    """A tokenised chat and its read passes.

    Args:
        chat: the chat's tokens with their segments, without trailing tokens that no pass needs.
        reads: the read passes.
    """

    chat: ChatTokens
    reads: tuple[Read, ...]


@dataclass(frozen=True)
class EpisodeEncoder:
    """Tokenises chats, `{"messages": [{"role": ..., "content": ...}, ...]}`.

    The last "read_turns" questions of a chat (1 if not given) are read, each with its answer; everything before them is
    written. A chat marked "talk" has no questions: a read may begin at any of its messages.

    Args:
        tokenizer: a tokenizer with a chat template.
        write: the adapter's unit of writing, from its config; it determines the segments.
        answer_only: train on the answer's content and end token only; otherwise also on the header of its turn.
        max_write_tokens: histories longer than this lose their beginning.
        max_read_tokens: read passes longer than this are refused; with the history in context, `max_write_tokens` is added.
        talk_tokens: maximum tokens read of talk.
        label_talk: whether talk is trained on as answers are, beside what a teacher says.
        whole: keep the whole chat in the episode, for a teacher that has the history in its context.
    """

    tokenizer: Any
    write: WriteUnit = "token"
    answer_only: bool = False
    max_write_tokens: int = 8192
    max_read_tokens: int = 512
    talk_tokens: int = 64
    label_talk: bool = True
    whole: bool = False

    def __call__(self, chat: Chat) -> Episode:
        """Tokenise one chat.

        Args:
            chat: its "reads" list how it is read, each `{"view": ...}` with a view's name and, if something other than the chat
                is read, that as "instead": messages or a raw text. Without "reads" it is read once, in the view "memory".

        Raises:
            ValueError: the chat has no history or nothing to read after it; a read pass is too long.
        """
        check_messages(chat["messages"])
        with naming(chat):
            asked = chat.get("reads", OWN_QUESTIONS)
            script = self._script(chat, len(asked))
            reads = tuple(self._read(script, number, read) for number, read in enumerate(asked))
        tokens = len(script.chat.ids) if self.whole else max(read.written for read in reads)
        return Episode(script.chat.slice(0, tokens), reads)

    def _script(self, chat: Chat, parts: int) -> Script:
        messages = chat["messages"]
        if chat.get("talk"):
            seed = f"{chat.get('seed', 0)}-talk"
            limits = self.max_write_tokens, self.talk_tokens
            return talk_script(self.tokenizer, messages, parts, seed, *limits, labelled=self.label_talk)
        turns = chat.get("read_turns", 1)
        return question_script(self.tokenizer, self.write, messages, turns, self.answer_only, self.max_write_tokens)

    def _read(self, script: Script, number: int, read: Mapping[str, Any]) -> Read:
        part = script.parts[number % len(script.parts)]
        in_context = ALL_VIEWS[read["view"]].context
        ids, labels, follows = part.ids, part.labels, part.length
        if "instead" in read:
            ids = self._other(read["instead"], script.chat.ids)
            labels, follows = torch.full_like(ids, IGNORED), 0
        elif ALL_VIEWS[read["view"]].target == "history":
            ids, labels = self._again(script.chat, part, number)
            follows = 0
        elif in_context:
            before = script.chat.ids[: part.written]
            ids = torch.cat([before, script.chat.ids[part.written : part.written + follows]])
            labels = torch.cat([torch.full_like(before, IGNORED), part.labels[-follows:]])
        elif self.whole:
            _check_same(part, script.chat)
        self._check_length(len(ids), in_context)
        return Read(read["view"], ids, labels, part.written, follows)

    def _again(self, chat: ChatTokens, part: Part, number: int) -> tuple[Tensor, Tensor]:
        """Tokens and labels of a random piece of what was written before a part, with the part's opening tokens before it."""
        places = part.written - self.talk_tokens
        start = random.Random(f"{number}-{part.written}-again").randrange(places) if places > 0 else 0
        piece = chat.ids[start : min(start + self.talk_tokens, part.written)]
        head = part.ids[: -part.length]
        return torch.cat([head, piece]), torch.cat([torch.full_like(head, IGNORED), piece])

    def _other(self, instead: str | Sequence[Message], chat: Tensor) -> Tensor:
        """Tokenise messages or a raw text unrelated to the chat, `[tokens]`.

        They are cut after `talk_tokens`, not counting a beginning shared with the chat (a system prompt).
        """
        text = instead if isinstance(instead, str) else render(self.tokenizer, instead)
        ids = token_ids(self.tokenizer, text)
        most = min(len(ids), len(chat))
        shared = int((ids[:most] == chat[:most]).long().cumprod(0).sum())
        return ids[: shared + self.talk_tokens]

    def _check_length(self, tokens: int, in_context: bool) -> None:
        limit = self.max_read_tokens + (self.max_write_tokens if in_context else 0)
        if tokens > limit:
            names = "max_read_tokens + max_write_tokens" if in_context else "max_read_tokens"
            raise ValueError(
                f"the read pass has {tokens} tokens, more than {names}={limit}; shorten the question or the answer, or "
                "raise the limit"
            )


@dataclass(frozen=True)
class EpisodeCollator:
    """Tokenises and pads chats into a batch: chats on the left, so that they end together, and read passes on the right.

    The batch holds `view`, `[reads]`, the index in `ALL_VIEWS` of each read pass's view; `chats`, for the write pass:
    `input_ids`, `attention_mask` and, for adapters that write segments, `segment_ids`, all `[chats, tokens]`; and under the
    name of each view its read passes: `input_ids`, `attention_mask` and `labels`, `[reads, tokens]`, `chat`, `[reads]`, the
    chat whose memory is read, `written`, `[reads]`, how many of that chat's tokens the memory holds, and `taught`,
    `[reads, tokens]`, each token's index in its chat, or -1 if it is not part of it.
    """

    encoder: EpisodeEncoder

    def __call__(self, chats: Sequence[Chat]) -> dict[str, Any]:
        """Collate chats in the form the encoder takes."""
        episodes = [self.encoder(chat) for chat in chats]
        reads = [(number, read) for number, episode in enumerate(episodes) for read in episode.reads]
        # Comes first: the Trainer takes the batch size from the first entry.
        batch: dict[str, Any] = {
            "view": torch.tensor([[*ALL_VIEWS].index(read.view) for _, read in reads], dtype=torch.long, device="cpu"),
            "chats": self._written(episodes),
        }
        for view in dict.fromkeys(read.view for _, read in reads):
            batch[view] = self._read([(number, read) for number, read in reads if read.view == view])
        return batch

    def _written(self, episodes: Sequence[Episode]) -> dict[str, Tensor]:
        written = {
            "input_ids": left_padded([episode.chat.ids for episode in episodes], self._pad),
            "attention_mask": left_padded([torch.ones_like(episode.chat.ids) for episode in episodes], 0),
        }
        if self.encoder.write != "token":
            written["segment_ids"] = left_padded([episode.chat.segment_ids for episode in episodes], -1)
        return written

    def _read(self, reads: Sequence[tuple[int, Read]]) -> dict[str, Tensor]:
        """Collate the read passes of one view, each with the index of its chat."""
        return {
            "input_ids": right_padded([read.ids for _, read in reads], self._pad),
            "attention_mask": right_padded([torch.ones_like(read.ids) for _, read in reads], 0),
            "labels": right_padded([read.labels for _, read in reads], IGNORED),
            "chat": torch.tensor([number for number, _ in reads], dtype=torch.long, device="cpu"),
            "written": torch.tensor([read.written for _, read in reads], dtype=torch.long, device="cpu"),
            "taught": right_padded([_taught(read) for _, read in reads], NO_PLACE),
        }

    @property
    def _pad(self) -> int:
        pad: int = self.encoder.tokenizer.pad_token_id or 0
        return pad


def _taught(read: Read) -> Tensor:
    """The index in the chat of each token of a read pass, `[tokens]`."""
    others = torch.full((len(read.ids) - read.follows,), NO_PLACE, dtype=torch.long, device="cpu")
    return torch.cat([others, torch.arange(read.written, read.written + read.follows, dtype=torch.long, device="cpu")])


def _check_same(part: Part, chat: ChatTokens) -> None:
    """Check that a part has the same tokens in a fresh context as after its history."""
    if not torch.equal(part.ids[-part.length :], chat.ids[part.written : part.written + part.length]):
        raise ValueError(
            "the tokenizer's chat template renders questions differently after a history than alone, so the model cannot "
            "follow a teacher that has the history token by token; leave out the system prompt, or the teacher"
        )
