"""`deltamem train`: train an adapter on a chat data set or on generated facts."""

from __future__ import annotations

from functools import partial

from transformers import set_seed

from deltamem.hub.training_record import GENERATED_FACTS, note_training
from deltamem.io.shareable import shareable
from deltamem.training.data import FACTS, DataArguments
from deltamem.training.dry_run import estimate, show_episodes
from deltamem.training.episodes import EpisodeCollator
from deltamem.training.launch import for_others, suit_learning_rate, train
from deltamem.training.options import TrainingOptions, load, load_tokenizer
from deltamem.training.progress import say
from deltamem.training.start import START_CHATS, start_from_attention
from deltamem.training.trainer import DeltaMemTrainer
from deltamem.training.views import check_views, view_weights


def main(arguments: list[str]) -> None:
    """Parse the command line, train, and save the adapter to `--output_dir`; with `--push_to_hub`, also upload it."""
    options = TrainingOptions.parse(arguments, "deltamem train", __doc__)
    set_seed(options.training.seed)
    tokenizer = load_tokenizer(options.adapter)
    chats, eval_chats = options.training_chats(tokenizer), options.eval_chats(tokenizer)
    if options.run.dry_run:
        collator = EpisodeCollator(options.encoder(tokenizer, options.adapter.write_unit()))
        show_episodes(chats, collator, options.training.weighing)
    model = load(options.adapter)
    suit_learning_rate(options, model)
    config = model.active_peft_config
    collator = EpisodeCollator(options.encoder(tokenizer, config.write))
    if options.adapter.start == "attention" and options.adapter.adapter is None:
        size = options.training.train_batch_size
        places = range(min(START_CHATS, len(chats)))
        start_from_attention(
            model, (collator([chats[place] for place in places[first : first + size]]) for first in places[::size])
        )
    check_views(view_weights(options.data.views), config.writes_segments)
    make = partial(DeltaMemTrainer, model, train_dataset=chats, data_collator=collator, processing_class=tokenizer)
    if options.run.dry_run:
        estimate(make, options.training)
        return
    trainer = make(options.training, eval_dataset=eval_chats)
    if trainer.is_world_process_zero():
        note_training(
            options.training.output_dir, _data_in_words(options.data), for_others(arguments, options.training.hub_token)
        )
    train(trainer, options, ["deltamem", "train", *arguments])
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathered from all processes if the model is sharded
    if trainer.is_world_process_zero():
        model.save_pretrained(options.training.output_dir, state_dict=weights)
        say(f"The adapter is in {options.training.output_dir}.")
    if options.training.push_to_hub:
        trainer.push_to_hub()


def _data_in_words(data: DataArguments) -> str:
    return ", ".join(GENERATED_FACTS if source == FACTS else f"`{shareable(source)}`" for source in data.data)
