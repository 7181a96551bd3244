"""Named recipes for `deltamem train --preset`: defaults for its options, which the command line overrides."""

from __future__ import annotations

from typing import Any

# Binds a memory to its own dialogue: docs/experiments.md.
TALK: dict[str, Any] = {
    "variant": "msw",
    "layers": "20-29",  # the upper third of SmolLM2-135M's 30
    "start": "attention",
    "data": ["talk:chitchat"],
    "views": ["memory=0.67", "another=0.16", "unrelated=0.17"],
    "unrelated": ["small_talk", "chitchat"],
    "reads": 8,
    "max_write_tokens": 320,
    "talk_tokens": 32,
    "teacher_weight": 1.0,
    "answer_weight": 0.0,
    "write_from": "backbone",
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 20,
    "per_device_train_batch_size": 4,
    "max_steps": 1000,
    "write_penalty": 0.0,
}
PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2605.12357, as run by its code (2,219 episodes of QASPER); the write penalty is on the write pass, where it belongs.
    "paper": {
        "variant": "tsw",
        "r": 8,
        "decay": "coupled",
        "beta_bias": -1.5,
        "tie_query_init": False,
        "views": ["memory=1"],
        "questions": 1,
        "answer_only": False,
        "max_write_tokens": 8192,
        "max_read_tokens": 512,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "weight_decay": 0.0,
        "per_device_train_batch_size": 32,
        "max_steps": 70,
        "write_penalty": 0.01,
        "write_target": 0.05,
    },
    # Made small backbones recall facts: docs/experiments.md; without decay: docs/results.md.
    "facts": {
        "decay": "none",
        "beta_bias": -3.0,
        "tie_query_init": True,
        "views": ["memory=1"],
        "questions": 4,
        "answer_only": True,
        "data": ["facts"],
        "max_facts": 4,
        "learning_rate": 4e-3,
        "per_device_train_batch_size": 16,
        "max_steps": 1000,
        "write_penalty": 0.0,
    },
    "talk": TALK,
    # Talk, and facts that are answered in sentences: "Answers in sentences" in docs/experiments.md.
    "dialogue": {
        **TALK,
        "r": 16,
        "alpha": 32.0,
        "decay": "learned",
        "data": ["talk:chitchat=0.5", "facts=0.5"],
        "label_talk": False,
        "answer_weight": 0.35,
        "answer_only": True,
        "questions": 8,
        "max_facts": 3,
        "any_word": 0.5,
        "first_person": 0.35,
        "sentence_answers": 0.8,
        "fillers": "chitchat",
        "max_fillers": 1,
    },
}


def preset(name: str) -> dict[str, Any]:
    """The options of a recipe.

    Raises:
        ValueError: no recipe has this name.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
