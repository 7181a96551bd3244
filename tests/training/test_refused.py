"""Every option of transformers' that `deltamem train` takes does something, or is refused in words before the training."""

import json

import pytest
import torch
from tiny_chat import chat_model
from tiny_training import ENCODER, MEMORY, arguments
from transformers import Trainer

from deltamem.training.episodes import EpisodeCollator
from deltamem.training.options import TrainingOptions
from deltamem.training.trainer import DeltaMemTrainer


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label_names": ["labels"]}, "those of the answers"),
        ({"remove_unused_columns": True}, "leave it off"),
        ({"use_cache": True}, "without a KV cache"),
        ({"use_liger_kernel": True}, "leave it off"),
        ({"eval_use_gather_object": True}, "leave it off"),
        ({"include_num_input_tokens_seen": "all"}, "leave it out"),
        ({"do_predict": True}, "deltamem eval"),
        ({"do_eval": True}, "give steps or epoch"),
        ({"num_train_epochs": 5}, "give max_steps=-1"),
        ({"include_for_metrics": ["inputs"]}, "give loss"),
        ({"include_for_metrics": ["nothing"]}, "give loss"),
        ({"label_smoothing_factor": 1.5}, "give 0 or more"),
        ({"label_smoothing_factor": -0.1}, "give 0 or more"),
        ({"fp16": True}, "give bf16=True"),
        ({"report_to": ["nosuch"]}, "not installed; give none or one of|nosuch is not supported"),
    ],
)
def test_an_option_without_effect_is_refused(tmp_path, given, message):
    (name,) = given
    with pytest.raises(ValueError, match=message) as refused:
        arguments(tmp_path, **given)
    assert name.split("_")[0] in str(refused.value)


@pytest.mark.parametrize(
    "line",
    [
        "--use_cache true",
        "--label_names a b",
        "--include_for_metrics inputs",
        "--num_train_epochs 2",
        "--label_smoothing_factor 2",
    ],
)
def test_the_command_line_refuses_it_before_a_model_is_loaded(tmp_path, line):
    with pytest.raises(ValueError, match="is not accepted"):
        TrainingOptions.parse(["--output_dir", str(tmp_path), *line.split()], "deltamem train", None)


def trainer(folder, options=None, **given):
    return DeltaMemTrainer(
        chat_model(spread=0.5),
        arguments(folder, **given),
        train_dataset=MEMORY,
        eval_dataset={"memory": MEMORY[:5]},
        data_collator=EpisodeCollator(ENCODER),
        **(options or {}),
    )


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"batch_eval_metrics": True}, {}, "give compute_metrics"),
        ({"include_for_metrics": ["loss"]}, {}, "give compute_metrics"),
        ({"train_sampling_strategy": "batch_rebalance"}, {}, "give group_by_length, random or sequential"),
        (
            {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps", "metric_for_best_model": "f1"},
            {},
            "give one of memory_loss, memory_recall",
        ),
        ({}, {"compute_loss_func": print}, "leave it out"),
    ],
)
def test_what_does_not_fit_the_trainer_is_refused(tmp_path, given, options, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, options, **given)


@pytest.mark.parametrize("option", [{"eval_do_concat_batches": False}, {"eval_accumulation_steps": 1}])
def test_evaluation_in_parts_has_the_same_figures(tmp_path, option):
    whole, parts = (trainer(tmp_path, per_device_eval_batch_size=2, **given).evaluate() for given in ({}, option))
    for name in ("eval_memory_loss", "eval_memory_recall"):
        assert parts[name] == pytest.approx(whole[name])


def test_the_loss_alone(tmp_path):
    figures = trainer(tmp_path, prediction_loss_only=True).evaluate()
    assert "eval_memory_loss" in figures
    assert "eval_memory_recall" not in figures


def test_metrics_of_the_callers_are_given_the_losses(tmp_path):
    def seen(prediction):
        return {"mean": float(prediction.losses.mean())}

    figures = trainer(tmp_path, {"compute_metrics": seen}, include_for_metrics=["loss"]).evaluate()
    assert figures["eval_memory_mean"] == pytest.approx(figures["eval_memory_loss"])


def test_metrics_of_the_callers_batch_by_batch(tmp_path):
    counts = []

    def seen(prediction, compute_result):
        counts.append(prediction.predictions)
        return {"asked": int(torch.cat(counts)[:, 1].sum())} if compute_result else {}

    given = {"batch_eval_metrics": True, "per_device_eval_batch_size": 2}
    assert trainer(tmp_path, {"compute_metrics": seen}, **given).evaluate()["eval_memory_asked"] == 5
    assert len(counts) == 3


def test_a_smaller_batch_is_found(tmp_path, monkeypatch):
    sizes = []
    step = Trainer.training_step

    def cramped(self, model, inputs, *given):
        sizes.append(len(inputs["view"]))
        if sizes[-1] > 3:
            raise RuntimeError("CUDA out of memory.")
        return step(self, model, inputs, *given)

    monkeypatch.setattr(Trainer, "training_step", cramped)
    trainer(tmp_path, auto_find_batch_size=True, max_steps=2).train()
    assert sizes[0] == 6
    assert sizes[-1] <= 3


def test_noise_in_the_embeddings_reaches_the_loss(tmp_path):
    runs = [trainer(tmp_path / str(alpha), neftune_noise_alpha=alpha, logging_steps=1) for alpha in (None, 20.0)]
    losses = []
    for run in runs:
        run.train()
        losses.append(run.state.log_history[0]["loss"])
    assert json.dumps(losses[0]) != json.dumps(losses[1])
