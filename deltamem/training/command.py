"""`deltamem train`: an adapter from a chat data set, or from generated facts."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import PeftModel, get_peft_model
from torch.utils.data import Dataset
from transformers import HfArgumentParser, set_seed

from deltamem.backbones import SMOLLM2, load_backbone
from deltamem.config import DeltaMemConfig
from deltamem.training.episodes import EpisodeCollator, EpisodeEncoder, read_chats
from deltamem.training.facts import FactEpisodeConfig, fact_questions, held_out_values
from deltamem.training.trainer import DeltaMemTrainer, DeltaMemTrainingArguments

FACTS = "facts"
# How byte-level and SentencePiece vocabularies write a word behind a space.
WORD = re.compile("[Ġ▁](?P<letters>[A-Za-z][a-z]{2,})")


@dataclass
class AdapterArguments:
    """The backbone and the adapter on it."""

    model: str = field(default=SMOLLM2, metadata={"help": "Backbone: a folder or a Hub name."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Of the frozen weights."})
    attention: str | None = field(default=None, metadata={"help": "Attention implementation, e.g. eager or sdpa."})
    adapter: str | None = field(default=None, metadata={"help": "Go on training this adapter; ignores the options below."})
    variant: Literal["tsw", "ssw", "msw"] = field(default="tsw", metadata={"help": "The paper's variant."})
    r: int = field(default=8, metadata={"help": "Width of a memory."})
    beta_bias: float = field(default=-1.5, metadata={"help": "Bias of the write gate's logit at the start."})
    tie_query_init: bool = field(default=False, metadata={"help": "Start the query projection equal to the key's."})

    def config(self) -> DeltaMemConfig:
        """The configuration of a new adapter."""
        make = {"tsw": DeltaMemConfig.tsw, "ssw": DeltaMemConfig.ssw, "msw": DeltaMemConfig.msw}[self.variant]
        return make(task_type="CAUSAL_LM", r=self.r, beta_bias=self.beta_bias, tie_query_init=self.tie_query_init)


@dataclass
class DataArguments:
    """What is trained on."""

    data: str = field(default=FACTS, metadata={"help": 'A file of JSON lines {"messages": [...]}, or "facts": generated.'})
    system: str | None = field(default=None, metadata={"help": "System prompt put before every chat that has none."})
    questions: int = field(default=1, metadata={"help": "Generated facts asked for after each history, at most."})
    answer_only: bool = field(default=False, metadata={"help": "Train on the answer without the header of its turn."})


class FactDataset(Dataset[dict[str, Any]]):
    """Generated fact episodes as chats; episode i depends on the seed and i alone."""

    def __init__(self, count: int, seed: int, config: FactEpisodeConfig, questions: int, words: Sequence[str] = ()) -> None:
        self.count, self.seed, self.config, self.questions, self.words = count, seed, config, questions, words

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"{self.seed}-{index}")
        asked = fact_questions(rng, self.config, words=self.words)
        asked = rng.sample(asked, min(self.questions, len(asked)))
        turns = [message for episode in asked for message in episode.messages[-2:]]
        return {"messages": asked[0].history + turns, "read_turns": len(asked)}


class WithSystemPrompt(Dataset[dict[str, Any]]):
    """Chats with a system prompt put before those that have none."""

    def __init__(self, chats: Any, system: str) -> None:
        self.chats, self.system = chats, system

    def __len__(self) -> int:
        return len(self.chats)

    def __getitem__(self, index: int) -> dict[str, Any]:
        chat = self.chats[index]
        if chat["messages"][0]["role"] == "system":
            return dict(chat)
        return {**chat, "messages": [{"role": "system", "content": self.system}, *chat["messages"]]}


def main(arguments: list[str]) -> None:
    """Parse the command line, train, and save the adapter to `--output_dir`."""
    parser = HfArgumentParser(
        (AdapterArguments, DataArguments, FactEpisodeConfig, DeltaMemTrainingArguments),
        prog="deltamem train",
        description=__doc__,
    )
    adapter, data, facts, training = parser.parse_args_into_dataclasses(arguments)
    set_seed(training.seed)
    model, tokenizer = _model(adapter)
    encoder = EpisodeEncoder(tokenizer, write=model.active_peft_config.write, answer_only=data.answer_only)
    trainer = DeltaMemTrainer(
        model,
        training,
        train_dataset=_chats(data, facts, training, tokenizer),
        data_collator=EpisodeCollator(encoder),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=_resumed(training))
    model.save_pretrained(training.output_dir)


def _model(options: AdapterArguments) -> tuple[PeftModel, Any]:
    attention = {} if options.attention is None else {"attn_implementation": options.attention}
    backbone, tokenizer = load_backbone(options.model, dtype=getattr(torch, options.dtype), **attention)
    if options.adapter is not None:
        return PeftModel.from_pretrained(backbone, options.adapter, is_trainable=True), tokenizer
    return get_peft_model(backbone, options.config()), tokenizer


def _chats(data: DataArguments, facts: FactEpisodeConfig, training: DeltaMemTrainingArguments, tokenizer: Any) -> Any:
    if data.data == FACTS:
        batch = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
        words = _training_words(tokenizer) if facts.any_word else ()
        chats: Any = FactDataset(training.max_steps * batch, training.seed, facts, data.questions, words)
    else:
        chats = read_chats(data.data)
    return chats if data.system is None else WithSystemPrompt(chats, data.system)


def whole_words(tokenizer: Any) -> list[str]:
    """The words that are one token for a tokenizer: letters, three at least, capitals only at the start, behind a space."""
    words = (WORD.fullmatch(token) for token in tokenizer.get_vocab())
    return sorted({word["letters"] for word in words if word})


def _training_words(tokenizer: Any) -> list[str]:
    """All whole words but those that are held out, with a capital or without."""
    held_out = {value.lower() for value in held_out_values()}
    return [word for word in whole_words(tokenizer) if word.lower() not in held_out]


def _resumed(training: DeltaMemTrainingArguments) -> str | bool | None:
    """`--resume_from_checkpoint true` takes the newest checkpoint of the output folder; otherwise a folder."""
    given: str | None = training.resume_from_checkpoint
    return True if given is not None and given.lower() == "true" else given
