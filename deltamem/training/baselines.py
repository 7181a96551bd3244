"""`deltamem baseline lora|prefix`: measures what adaptation alone gains, without a memory.

Trains LoRA or prefix tuning with as many parameters as a δ-mem adapter, on the same episodes in the same order, but only on
their questions and answers: no pass contains the history. All other options are those of `deltamem train`; they also set the
number of parameters, either by describing an adapter or through `--adapter`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from peft import LoraConfig, PeftConfig, PrefixTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import set_seed

from deltamem.backbones import kv_numbers
from deltamem.hook.projection import width_in, width_out
from deltamem.hook.registered import attention_modules, hook_for
from deltamem.hook.text_decoder import text_config
from deltamem.training.batching import ChatTrainer
from deltamem.training.costs import Weighing, answer_loss, predicts
from deltamem.training.dry_run import estimate, show_episodes
from deltamem.training.episodes import EpisodeCollator, EpisodeEncoder
from deltamem.training.launch import suit_learning_rate, train
from deltamem.training.options import TrainingOptions, load, load_tokenizer
from deltamem.training.progress import say, trainable
from deltamem.training.views import view_weights

VIEW = "memory"


def equal_lora_config(model: nn.Module, parameters: int) -> LoraConfig:
    """Configure LoRA on the query and output projections, which δ-mem corrects by default, with about as many parameters.

    Args:
        model: the backbone.
        parameters: the target; the rank (at least 1) comes as close to it as possible.

    Raises:
        ValueError: the model's attention is not understood.
    """
    hook = hook_for(model)
    found = attention_modules(model, hook).values()
    corrected = [hook.projections(attention, text_config(model)) for attention in found]
    modules = {id(projections[role].module) for projections in corrected for role in ("q", "o")}
    targets = {name: module for name, module in model.named_modules() if id(module) in modules}
    of_one_rank = sum(width_in(module) + width_out(module) for module in targets.values())
    rank = max(round(parameters / of_one_rank), 1)
    return LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=[*targets])


def equal_prefix_config(model: nn.Module, parameters: int) -> PrefixTuningConfig:
    """Configure prefix tuning, a trained KV cache before every text, with about as many parameters.

    Args:
        model: the backbone.
        parameters: the target; the number of virtual tokens (at least 1) comes as close to it as possible.
    """
    tokens = max(round(parameters / kv_numbers(model.config)), 1)
    return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)


BASELINES: dict[str, Callable[[nn.Module, int], PeftConfig]] = {"lora": equal_lora_config, "prefix": equal_prefix_config}


@dataclass(frozen=True)
class ReadCollator:
    """Collates questions and answers into `input_ids`, `attention_mask` and `labels`, each `[chats, tokens]`."""

    encoder: EpisodeEncoder

    def __call__(self, chats: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate records `{"messages": [...]}`, each with `"read_turns"` if it asks more than one question."""
        batch = EpisodeCollator(self.encoder)([{**chat, "reads": [{"view": VIEW}]} for chat in chats])[VIEW]
        return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}


class BaselineTrainer(ChatTrainer):
    """Trains any PEFT adapter on batches of a `ReadCollator`, with the loss that δ-mem uses for its questions."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy of the answers given only their questions, averaged over `num_items_in_batch`."""
        costs = answer_loss(model, inputs, self.args.label_smoothing_factor)
        tokens = predicts(inputs["labels"]).sum() if num_items_in_batch is None else num_items_in_batch
        loss = costs.answers / tokens
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # counts the tokens of all processes, and their gradients are averaged
        return (loss, {"loss": loss}) if return_outputs else loss


def main(arguments: list[str]) -> None:
    """Parse the command line, train, and save the adapter to `--output_dir`.

    Raises:
        ValueError: the baseline is unknown, or views are given that only a memory has.
    """
    kind, others = _kind(arguments)
    options = TrainingOptions.parse(others, f"deltamem baseline {kind}", __doc__)
    if [*view_weights(options.data.views)] != [VIEW]:
        raise ValueError(
            f"--views {' '.join(options.data.views)}: a baseline has no memory, and reads questions only; give --views memory=1"
        )
    set_seed(options.training.seed)
    tokenizer = load_tokenizer(options.adapter)
    chats, evaluated = options.training_chats(tokenizer), options.eval_chats(tokenizer)
    encoder = options.encoder(tokenizer, "token")
    if options.run.dry_run:
        show_episodes(chats, EpisodeCollator(encoder), Weighing(), written=False)
    adapted = load(options.adapter)
    suit_learning_rate(options, adapted)
    wanted = trainable(adapted)
    backbone = adapted.unload()
    config = BASELINES[kind](backbone, wanted)
    set_seed(options.training.seed)
    model = get_peft_model(backbone, config)
    say(f"{kind}: {trainable(model):,} parameters are trained; a δ-mem adapter of these options has {wanted:,}.")
    make = partial(BaselineTrainer, model, train_dataset=chats, data_collator=ReadCollator(encoder))
    if options.run.dry_run:
        estimate(make, options.training)
        return
    trainer = make(options.training, eval_dataset=None if evaluated is None else evaluated[VIEW])
    train(trainer, options, ["deltamem", "baseline", kind, *others])
    if trainer.is_world_process_zero():
        model.save_pretrained(options.training.output_dir)
        say(f"The adapter is in {options.training.output_dir}.")


def _kind(arguments: list[str]) -> tuple[str, list[str]]:
    """Split the arguments into the baseline's name and its options."""
    if arguments[:1] in (["--help"], ["--help-all"]):
        return "|".join(BASELINES), arguments
    if not arguments or arguments[0] not in BASELINES:
        given = f"{arguments[0]!r} is no baseline" if arguments else "no baseline is given"
        raise ValueError(f"{given}; give {' or '.join(BASELINES)}, then the options of deltamem train")
    return arguments[0], arguments[1:]
