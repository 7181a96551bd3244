"""Refuses options of `TrainingArguments` that have no effect on episodes, or break their training.

transformers accepts them all, and would either ignore these or fail after the first steps.
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

from transformers import IntervalStrategy, Trainer, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

# Why each option is refused, and what to do instead.
USELESS = {
    "label_names": "the labels are those of the answers; leave it out",
    "remove_unused_columns": "the collator reads columns that the model does not take; leave it off",
    "use_cache": "histories and questions are read without a KV cache; leave it off",
    "use_liger_kernel": "its loss is that of a model that is given labels, and δ-mem's is made of logits; leave it off",
    "eval_use_gather_object": "evaluation gathers tensors; leave it off",
    "include_num_input_tokens_seen": "a batch of episodes has no single input; leave it out",
    "do_predict": "a training ends with the adapter; ask it questions with deltamem eval",
}
METRICS = ("loss", "recall", "nats")  # of an evaluation without the caller's `compute_metrics`


def refuse_given(args: TrainingArguments) -> None:
    """Refuse options that would have no effect, before the arguments are initialised.

    Raises:
        ValueError: names the option, why it is refused, and what to give.
    """
    for name, why in USELESS.items():
        value = getattr(args, name)
        if value not in (None, False, "no", []):
            raise ValueError(f"{name}={value!r} is not accepted: {why}")
    if args.do_eval and args.eval_strategy in ("no", IntervalStrategy.NO):
        raise ValueError("do_eval=True is not accepted: eval_strategy says when to evaluate; give steps or epoch")
    default = next(field.default for field in fields(TrainingArguments) if field.name == "num_train_epochs")
    if args.max_steps > 0 and args.num_train_epochs != default:
        raise ValueError(
            f"num_train_epochs={args.num_train_epochs} is not accepted: max_steps={args.max_steps} says when to end; "
            "give max_steps=-1 for epochs"
        )
    if not {*(args.include_for_metrics or [])} <= {"loss"}:
        raise ValueError(
            f"include_for_metrics={args.include_for_metrics!r} is not accepted: a batch of episodes has no single input; give "
            "loss, or leave it out"
        )
    if not 0 <= args.label_smoothing_factor < 1:
        raise ValueError(
            f"label_smoothing_factor={args.label_smoothing_factor} is not accepted; give 0 or more, but less than 1"
        )


def refuse_absent(args: TrainingArguments) -> None:
    """Refuse options that this machine does not support, once the arguments are initialised.

    Raises:
        ValueError: says what is available.
    """
    there = get_available_reporting_integrations()
    missing = [name for name in args.report_to or [] if name not in there]
    if missing:
        raise ValueError(
            f"report_to={missing!r} is not accepted: not installed; give none or one of {', '.join(there) or 'none'}"
        )
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("fp16=True is not accepted: a CPU would ignore it; give bf16=True, or leave it out")


def refuse_for_trainer(made: type[Trainer], *given: Any, **named: Any) -> None:
    """Refuse options that do not fit a Trainer's data and metrics.

    Args:
        made: the Trainer class being constructed.
        given, named: its arguments.

    Raises:
        ValueError: names the option, why it is refused, and what to give.
    """
    options = inspect.signature(made).bind(*given, **named).arguments
    args: TrainingArguments | None = options.get("args")
    if options.get("compute_loss_func") is not None:
        raise ValueError("compute_loss_func is not accepted: what an episode costs depends on its view; leave it out")
    if args is None:
        return
    if args.train_sampling_strategy == "batch_rebalance":
        raise ValueError(
            "train_sampling_strategy='batch_rebalance' is not accepted: it balances texts, and a chat is several; give "
            "group_by_length, random or sequential"
        )
    if options.get("compute_metrics") is not None:
        return
    for name in ("include_for_metrics", "batch_eval_metrics"):
        if getattr(args, name):
            raise ValueError(
                f"{name}={getattr(args, name)!r} is not accepted: it is for metrics of your own; give compute_metrics"
            )
    best, prefixes = args.metric_for_best_model, [""]
    if isinstance(options.get("eval_dataset"), dict):
        prefixes = [f"{name}_" for name in options["eval_dataset"]]
    known = [f"{prefix}{metric}" for prefix in prefixes for metric in METRICS]
    chosen = args.load_best_model_at_end or args.save_strategy == "best"
    if chosen and best is not None and best.removeprefix("eval_") not in known:
        raise ValueError(f"metric_for_best_model={best!r} is not accepted; give one of {', '.join(known)}")
