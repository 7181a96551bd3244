"""`deltamem train`: an adapter from a chat data set, or from generated facts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import PeftModel, get_peft_model
from transformers import HfArgumentParser, set_seed

from deltamem.backbones import SMOLLM2, load_backbone
from deltamem.config import VARIANTS, DeltaMemConfig
from deltamem.training.data import DataArguments, training_chats
from deltamem.training.episodes import EpisodeCollator, EpisodeEncoder
from deltamem.training.facts import FactEpisodeConfig
from deltamem.training.trainer import DeltaMemTrainer, DeltaMemTrainingArguments


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
        make = VARIANTS[self.variant]
        return make(task_type="CAUSAL_LM", r=self.r, beta_bias=self.beta_bias, tie_query_init=self.tie_query_init)


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
        train_dataset=training_chats(data, facts, _episodes(training), training.seed, tokenizer),
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


def _episodes(training: DeltaMemTrainingArguments) -> int:
    """How many episodes the training takes."""
    batch: int = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    return training.max_steps * batch


def _resumed(training: DeltaMemTrainingArguments) -> str | bool | None:
    """`--resume_from_checkpoint true` takes the newest checkpoint of the output folder; otherwise a folder."""
    given: str | None = training.resume_from_checkpoint
    return True if given is not None and given.lower() == "true" else given
