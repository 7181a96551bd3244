"""Batches: several episodes as padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltamem.chat_tokens import left_padded, right_padded
from deltamem.training.chats import Chat
from deltamem.training.episodes import Episode, EpisodeEncoder, Read
from deltamem.training.scripts import IGNORED
from deltamem.training.views import ALL_VIEWS

NO_PLACE = -1


@dataclass(frozen=True)
class EpisodeCollator:
    """Makes a batch of chats: tokenises and pads, chats on the left, so that they end together, and read passes on the right.

    The batch holds `view`, `[reads]`, the place in `ALL_VIEWS` of each read pass's view; `chats`, for the write pass:
    `input_ids`, `attention_mask` and, for adapters that write segments, `segment_ids`, all `[chats, tokens]`; and under the
    name of each view its read passes: `input_ids`, `attention_mask` and `labels`, `[reads, tokens]`, `chat`, `[reads]`, whose
    memory they read, `written`, `[reads]`, how many of its tokens that holds, and `taught`, `[reads, tokens]`, the number of a
    token in its chat, -1 where it is none of its.
    """

    encoder: EpisodeEncoder

    def __call__(self, chats: Sequence[Chat]) -> dict[str, Any]:
        """Make a batch of chats as the encoder takes them."""
        episodes = [self.encoder(chat) for chat in chats]
        reads = [(number, read) for number, episode in enumerate(episodes) for read in episode.reads]
        # First, as that is where a Trainer looks for the size of a batch.
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
        """Read passes of one view, each with the place of its chat."""
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
    """The number in the chat of each token of a read pass, `[tokens]`."""
    others = torch.full((len(read.ids) - read.follows,), NO_PLACE, dtype=torch.long, device="cpu")
    return torch.cat([others, torch.arange(read.written, read.written + read.follows, dtype=torch.long, device="cpu")])
