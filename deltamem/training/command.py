"""`deltamem train`: an adapter from a chat data set, or from generated facts."""

from __future__ import annotations

from transformers import set_seed

from deltamem.training.episodes import EpisodeCollator
from deltamem.training.options import TrainingOptions, load
from deltamem.training.trainer import DeltaMemTrainer
from deltamem.training.views import check_views, view_weights


def main(arguments: list[str]) -> None:
    """Parse the command line, train, and save the adapter to `--output_dir`."""
    options = TrainingOptions.parse(arguments, "deltamem train", __doc__)
    set_seed(options.training.seed)
    model, tokenizer = load(options.adapter)
    config = model.active_peft_config
    check_views(view_weights(options.data.views), config.writes_segments)
    trainer = DeltaMemTrainer(
        model,
        options.training,
        train_dataset=options.training_chats(tokenizer),
        eval_dataset=options.eval_chats(),
        data_collator=EpisodeCollator(options.encoder(tokenizer, config.write)),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=options.checkpoint())
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # of all processes, where each has a part
    if trainer.is_world_process_zero():
        model.save_pretrained(options.training.output_dir, state_dict=weights)
