"""Trains a tiny adapter, alone or as one of several processes: FOLDER BATCH. See test_processes.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from tiny_chat import chat_model, chat_tokenizer

from deltamem.training.episodes import EpisodeCollator, EpisodeEncoder
from deltamem.training.trainer import DeltaMemTrainer, DeltaMemTrainingArguments

VALUES = ("teal", "red", "Oslo", "Rome", "Bob", "friend", "1", "2") * 2


def chat(value: str) -> dict[str, list[dict[str, str]]]:
    turns = [(f"Anna likes {value}.", "Noted."), ("What does Anna like?", value)]
    roles = ("user", "assistant")
    return {"messages": [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]}


def main(folder: str, batch: int) -> None:
    torch.manual_seed(0)
    arguments = DeltaMemTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=batch,
        max_steps=4,
        learning_rate=1e-2,
        train_sampling_strategy="sequential",
        use_cpu=True,
        ddp_backend="gloo" if torch.distributed.is_torchelastic_launched() else None,
        report_to="none",
        disable_tqdm=True,
    )
    collator = EpisodeCollator(EpisodeEncoder(chat_tokenizer(), answer_only=True))
    trainer = DeltaMemTrainer(chat_model(), arguments, train_dataset=[chat(value) for value in VALUES], data_collator=collator)
    trainer.train()
    if trainer.is_world_process_zero():
        trainer.model.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
