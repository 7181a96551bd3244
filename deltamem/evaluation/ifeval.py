"""IFEval: verifiable instructions, scored by lm-evaluation-harness's checkers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltamem.evaluation.benchmark_data import benchmark_records, sampled_numbers
from deltamem.evaluation.extras import needs
from deltamem.evaluation.lm_eval.task import LmEvalTask, capped, quiet, task_identity, weighted
from deltamem.evaluation.task import Options, Row, share
from deltamem.training.given import Given

NAME = "ifeval"
HUB = ("google/IFEval", None, "train")
# Prompt level: all instructions of a prompt are followed. Instruction level: each counts separately. Loose: the answer also
# passes without its first line, its last line or its asterisks.
PROMPTS = ("prompt_level_strict_acc", "prompt_level_loose_acc")
INSTRUCTIONS = ("inst_level_strict_acc", "inst_level_loose_acc")
METRICS = {**{name: share(name) for name in PROMPTS}, **{name: weighted(name) for name in INSTRUCTIONS}}
PUNKT = "punkt_tab"  # NLTK's sentence tokenizer, for instructions that count sentences


def tasks(options: Options) -> list[LmEvalTask]:
    """Create the task: each prompt is a chat message, answered greedily with at most 1,280 tokens.

    Raises:
        ValueError: the data is missing or malformed; the checkers, or data that they need, are not installed.
    """
    records = benchmark_records(NAME, HUB, options)
    lm_eval = needs("lm_eval")
    needs("langdetect")
    needs("immutabledict")
    _find_punkt()
    from datasets import Dataset
    from lm_eval.tasks import TaskManager

    quiet()
    for record in records:
        _check(record)
    folder = Path(str(lm_eval.__file__)).parent / "tasks" / NAME
    manager = TaskManager(include_defaults=False, include_path=folder)
    rows = [dict(record.mapping()) for record in records]
    ours = {"task": NAME, "custom_dataset": lambda **_: {"train": Dataset.from_list(rows)}}
    found = manager.load({"group": "ours", "task": [ours]})  # only within a group can a task's configuration be overridden
    task = capped(found["tasks"][NAME], options)
    numbers = sampled_numbers(len(records), options)
    return [LmEvalTask(NAME, task, numbers, METRICS, task_identity(task, options), _figures, chat=True, seed=options.seed)]


def _figures(judged: Mapping[str, Any]) -> Row:
    """Whether all of a prompt's instructions are followed, and how many of how many are."""
    return {
        **{name: float(judged[name]) for name in PROMPTS},
        **{name: [float(sum(judged[name])), float(len(judged[name]))] for name in INSTRUCTIONS},
    }


def _find_punkt() -> None:
    """Check that NLTK's sentence data is available, or download it, before the long run that needs it starts.

    Raises:
        ValueError: it is neither installed nor downloadable.
    """
    nltk = needs("nltk")
    try:
        nltk.data.find(f"tokenizers/{PUNKT}")
    except LookupError:
        if not nltk.download(PUNKT, quiet=True):
            raise ValueError(
                f"{NAME} needs NLTK's data {PUNKT}, which could not be downloaded; run `python -m nltk.downloader {PUNKT}` "
                "where there is a network, and put the folder nltk_data that it makes into the home folder, or name it in "
                "NLTK_DATA"
            ) from None


def _check(record: Given) -> None:
    """Check that the checkers accept an instruction's `kwargs`, before the long run that needs them starts."""
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    record["prompt"].text()
    record["key"].text_or_number()
    given = record["kwargs"].items()
    for place, instruction in enumerate(record["instruction_id_list"].items()):
        if instruction.text() not in INSTRUCTION_DICT:
            instruction.refuse(f"an instruction that the checkers know, {', '.join(INSTRUCTION_DICT)}")
        if len(given) <= place:
            break
        options = {name: value for name, value in given[place].mapping().items() if value is not None}
        try:
            INSTRUCTION_DICT[instruction.value](instruction.value).build_description(**options)
        except Exception as error:  # each checker raises its own types
            given[place].refuse(f"what the checker of {instruction.value} takes ({error!r})")
    if len(given) != len(record["instruction_id_list"].value):
        record["kwargs"].refuse("as many as there are instructions")
