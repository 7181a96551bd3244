"""The options of `deltamem train`, shared with the baselines."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoTokenizer, IntervalStrategy

from deltamem.adapter.files import read_config
from deltamem.backbones import SMOLLM2, find_backbone, load_backbone
from deltamem.config import VARIANTS, DeltaMemConfig, RuleArguments, WriteUnit
from deltamem.training.data import DataArguments, eval_chats, training_chats
from deltamem.training.episodes import EpisodeEncoder
from deltamem.training.facts import FactEpisodeConfig
from deltamem.training.learning_rates import backbone_size, suitable_rate
from deltamem.training.option_parser import OptionParser
from deltamem.training.presets import PRESETS, preset
from deltamem.training.trainer import DeltaMemTrainingArguments
from deltamem.training.views import view_weights


@dataclass
class AdapterArguments(RuleArguments):
    """Options of the backbone and its adapter."""

    preset: str | None = field(
        default=None, metadata={"help": f"A recipe that sets defaults for other options; one of {', '.join(PRESETS)}."}
    )
    model: str = field(default=SMOLLM2, metadata={"help": "The backbone: a folder or a Hub name."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "The dtype of the frozen weights."}
    )
    attention: str | None = field(default=None, metadata={"help": "Attention implementation, e.g. eager or sdpa."})
    adapter: str | None = field(default=None, metadata={"help": "Continue training this adapter; ignores the options below."})
    adaptation: str | None = field(
        default=None,
        metadata={
            "help": "A LoRA (of deltamem baseline lora), merged into the backbone while the memory is trained, which then need "
            "not learn what all texts of a kind have in common."
        },
    )
    variant: Literal["tsw", "ssw", "msw"] = field(default="tsw", metadata={"help": "The paper's variant."})
    layers: str | None = field(
        default=None,
        metadata={"help": "Decoder layers with a memory, as FIRST-LAST, counted from 0; all if not given."},
    )
    start: Literal["random", "attention"] = field(
        default="random",
        metadata={"help": "Initialisation: random projections, or projections taken from the frozen attention."},
    )

    def write_unit(self) -> WriteUnit:
        """What the adapter to train writes, without loading it."""
        return self.config().write if self.adapter is None else read_config(self.adapter).write

    def config(self) -> DeltaMemConfig:
        """Build the configuration of a new adapter."""
        return VARIANTS[self.variant](task_type="CAUSAL_LM", layers_to_transform=self._layers(), **self.rule_options())

    def _layers(self) -> list[int] | None:
        if self.layers is None:
            return None
        first, _, last = self.layers.partition("-")
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise ValueError(f"--layers {self.layers} is not accepted; give the first and the last layer, such as 20-29")
        return [*range(int(first), int(last) + 1)]


@dataclass
class RunArguments:
    """Options of the command itself."""

    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Show the first episodes as the model will see them, measure two steps, and estimate time and memory. "
            "Nothing is trained or written."
        },
    )


class TrainingOptions(NamedTuple):
    """The parsed options of a command line, and whether it sets the learning rate itself."""

    adapter: AdapterArguments
    data: DataArguments
    facts: FactEpisodeConfig
    training: DeltaMemTrainingArguments
    run: RunArguments
    sets_learning_rate: bool

    @classmethod
    def parse(cls, arguments: list[str], command: str, description: str | None) -> TrainingOptions:
        """Parse a command line over the defaults of its `--preset`.

        Raises:
            ValueError: a value is not accepted, or the preset does not exist.
        """
        kinds = AdapterArguments, DataArguments, FactEpisodeConfig, DeltaMemTrainingArguments, RunArguments
        parser = OptionParser(kinds, prog=command, description=description)
        recipe = ArgumentParser(add_help=False, allow_abbrev=False)
        recipe.add_argument("--preset")
        recipe.add_argument("--learning_rate", "--learning-rate")
        given, _ = recipe.parse_known_args(arguments)
        if given.preset is not None:
            parser.set_defaults(**preset(given.preset))
        options = cls(*[*parser.parse(arguments), given.learning_rate is not None])
        options.adapter.config()  # rejects invalid options before anything is loaded
        changing = any(weight.first != weight.last for weight in view_weights(options.data.views).values())
        if changing and options.training.train_sampling_strategy != "sequential":
            raise ValueError(
                f"--views {' '.join(options.data.views)} changes from the first chat to the last, which are drawn in no order; "
                "give --train_sampling_strategy sequential"
            )
        return options

    def encoder(self, tokenizer: Any, write: WriteUnit) -> EpisodeEncoder:
        """Create the episode encoder for an adapter with this unit of writing."""
        training = self.training
        whole = training.teacher_weight > 0 or training.hidden_weight > 0 or self.adapter.start == "attention"
        return self.data.encoder(tokenizer, write, whole)

    def training_chats(self, tokenizer: Any) -> Any:
        """The training set: as many chats as training takes, or all there are."""
        return training_chats(self.data, self.facts, self.training.episodes, self.training.seed, tokenizer)

    def eval_chats(self, tokenizer: Any) -> dict[str, Any] | None:
        """The evaluation sets for every view and control; None if evaluation is off."""
        if self.training.eval_strategy == IntervalStrategy.NO and not self.training.eval_on_start:
            return None
        return eval_chats(self.data, self.facts, self.training.seed, tokenizer)

    def suit_learning_rate(self, model: PeftModel) -> str | None:
        """Lower a learning rate that the command line does not set to what suits the backbone.

        Returns:
            What was lowered, or that the given rate is high; None if the rate suits the backbone.
        """
        rate, suitable = self.training.learning_rate, suitable_rate(model)
        if rate <= suitable:
            return None
        high = f"learning rate {rate:g} is high for a backbone of {backbone_size(model) / 1e6:,.0f} million parameters"
        if self.sets_learning_rate:
            return f"The {high}; {suitable:g} is safer."
        self.training.learning_rate = suitable
        return f"The default {high}; training with {suitable:g}. --learning_rate sets another."

    def checkpoint(self) -> str | bool | None:
        """The checkpoint folder to resume from; True, from `--resume_from_checkpoint true`, means the newest."""
        given: str | None = self.training.resume_from_checkpoint
        return True if given is not None and given.lower() == "true" else given


def load_tokenizer(options: AdapterArguments) -> Any:
    """Load the backbone's tokenizer alone, to check the data before anything large is loaded."""
    return AutoTokenizer.from_pretrained(find_backbone(options.model))


def load(options: AdapterArguments) -> PeftModel:
    """Load the backbone with an adapter to train."""
    attention = {} if options.attention is None else {"attn_implementation": options.attention}
    backbone, _ = load_backbone(options.model, dtype=getattr(torch, options.dtype), **attention)
    if options.adaptation is not None:
        backbone = cast(Any, PeftModel.from_pretrained(backbone, options.adaptation)).merge_and_unload()
    if options.adapter is not None:
        return PeftModel.from_pretrained(backbone, options.adapter, is_trainable=True)
    return get_peft_model(backbone, options.config())
