"""Scripts: tokenised chats, and the parts of them that are read in a fresh context."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from deltamem.chat.tokens import ChatTokens, Message, render
from deltamem.config import WriteUnit
from deltamem.training.chats import parts_of, split_system

IGNORED = -100  # label of a token that is not trained on
NO_PLACE = -1  # for a token that is not part of the chat
LEAST_TALK = 8  # minimum tokens to read of talk
CHARACTERS_A_TOKEN = 3  # a rough estimate, for cutting a long chat before tokenising it


@dataclass(frozen=True)
class Part:
    """A part of a chat, read in a fresh context.

    Args:
        written: how many tokens of the chat come before it.
        ids: what the context begins with (a system prompt), then the part, `[tokens]`.
        labels: `[tokens]`; equal to `ids` where they are trained on, `IGNORED` elsewhere.
        length: how many of `ids` belong to the part.
    """

    written: int
    ids: Tensor
    labels: Tensor
    length: int


@dataclass(frozen=True)
class Script:
    """A tokenised chat.

    Args:
        chat: its tokens.
        parts: the parts that can be read.
    """

    chat: ChatTokens
    parts: tuple[Part, ...]


def question_script(
    tokenizer: Any, write: WriteUnit, messages: Sequence[Message], read_turns: int, answer_only: bool, most_written: int
) -> Script:
    """Tokenise a chat whose only part is the questions at its end, each with its answer.

    Args:
        tokenizer: has a chat template.
        write: the adapter's unit of writing.
        messages: the chat.
        read_turns: the number of questions.
        answer_only: train on an answer's content and end token, but not on the header of its turn.
        most_written: maximum tokens of the history; a longer one loses its beginning.

    Raises:
        ValueError: there is no history, or the chat does not end with questions and answers.
    """
    system, history, turns = parts_of(messages, read_turns)
    told = ChatTokens.from_messages(tokenizer, [*system, *history], write).last(most_written)
    asked, _ = _tokenised(tokenizer, [*system, *history], turns, answer_only)
    ids, labels = _tokenised(tokenizer, system, turns, answer_only, with_before=True)
    chat = ChatTokens(torch.cat([told.ids, asked]), torch.cat([told.segment_ids, torch.full_like(asked, -1)]))
    return Script(chat, (Part(len(told.ids), ids, labels, len(asked)),))


def talk_script(
    tokenizer: Any,
    messages: Sequence[Message],
    parts: int,
    seed: str,
    most_written: int,
    most_read: int,
    labelled: bool = True,
) -> Script:
    """Tokenise a chat that is continued from some of its messages, drawn at random; a long one is cut first.

    Args:
        tokenizer: has a chat template.
        messages: the chat; a long one is cut to begin with a user's message.
        parts: how many parts to draw, if it has enough messages.
        seed: seeds the sampling.
        most_written: maximum tokens of a history.
        most_read: maximum tokens of a part.
        labelled: whether the parts' tokens are trained on as answers are.

    Raises:
        ValueError: the chat has fewer than two messages, or its template renders a message differently depending on its
            position.
    """
    rng = random.Random(seed)
    system, talk = split_system(messages)
    texts = _texts(tokenizer, system, _window(talk, rng, most_written + most_read))
    pieces = [token_ids(tokenizer, text) for text in texts]
    start = max(len(pieces[0]) - most_written, 0)  # keep the end of a long first message
    ends = [end - start for end in accumulate(len(piece) for piece in pieces)]
    whole = torch.cat(pieces)[start:][: most_written + most_read]
    # Prefer parts of the maximum length, to keep padding low.
    behind = {end: len(whole) - end for end in ends[:-1] if end <= most_written}
    long_enough = ([end for end, left in behind.items() if left >= least] for least in (most_read, LEAST_TALK))
    cuts = next(filter(None, long_enough), ends[:1])
    head = token_ids(tokenizer, _head(tokenizer, system))
    read = [
        Part(cut, torch.cat([head, part]), torch.cat([torch.full_like(head, IGNORED), labels]), len(part))
        for cut in sorted(rng.sample(cuts, min(parts, len(cuts))))
        for part in [whole[cut : cut + most_read]]
        for labels in [part if labelled else torch.full_like(part, IGNORED)]
    ]
    return Script(ChatTokens(whole, torch.full_like(whole, -1)), tuple(read))


def token_ids(tokenizer: Any, text: str) -> Tensor:
    """Tokenise a text without special tokens at its ends, `[tokens]`."""
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long, device="cpu")


def _tokenised(
    tokenizer: Any, before: Sequence[Message], turns: Sequence[Message], answer_only: bool, with_before: bool = False
) -> tuple[Tensor, Tensor]:
    """Tokenise and label questions and answers that follow other messages, optionally including these."""
    ids: list[Tensor] = []
    labels: list[Tensor] = []
    rendered = "" if with_before or not before else render(tokenizer, before)
    for end in range(1, len(turns), 2):
        prompt = render(tokenizer, [*before, *turns[:end]], add_generation_prompt=answer_only)
        whole = render(tokenizer, [*before, *turns[: end + 1]])
        asked, answered = (token_ids(tokenizer, text) for text in (_behind(prompt, rendered), _behind(whole, prompt)))
        ids += [asked, answered]
        labels += [torch.full_like(asked, IGNORED), answered]
        rendered = whole
    return torch.cat(ids), torch.cat(labels)


def _texts(tokenizer: Any, system: Sequence[Message], messages: Sequence[Message]) -> list[str]:
    """What each message adds to the rendered chat; the first includes the system prompt."""
    rendered = ["", *(render(tokenizer, [*system, *messages[:end]]) for end in range(1, len(messages) + 1))]
    return [_behind(whole, before) for before, whole in pairwise(rendered)]


def _behind(text: str, beginning: str) -> str:
    if not text.startswith(beginning):
        raise ValueError("the tokenizer's chat template changes earlier turns when another is added; cannot train on it")
    return text.removeprefix(beginning)


def _head(tokenizer: Any, system: Sequence[Message]) -> str:
    """What the template puts before the first message of a chat."""
    user, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}
    first, _, again = _texts(tokenizer, system, [user, answer, user])
    if not first.endswith(again):
        raise ValueError(
            "the tokenizer's chat template renders a first message differently from a later one, so a chat cannot be continued "
            "from its middle; leave out the system prompt, or train on questions"
        )
    return first.removesuffix(again)


def _window(messages: Sequence[Message], rng: random.Random, tokens: int) -> Sequence[Message]:
    """Cut out consecutive messages of about `tokens` tokens, at least two, from a user's on; a shorter chat stays whole."""
    left = [*accumulate(len(message["content"]) for message in reversed(messages))][::-1]  # characters from each message on
    wanted = CHARACTERS_A_TOKEN * tokens
    starts = [place for place, message in enumerate(messages[:-1]) if message["role"] == "user" and left[place] >= wanted]
    if not starts:
        return messages
    start = rng.choice(starts)
    ends = (place for place in range(start + 2, len(messages)) if left[start] - left[place] >= 2 * wanted)
    return messages[start : next(ends, len(messages))]
