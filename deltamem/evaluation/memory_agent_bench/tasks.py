"""MemoryAgentBench's tasks: one for each family of data sets, with results summarised by data set."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import hf_hub_download

from deltamem.evaluation.answer_scores import squad_normalised
from deltamem.evaluation.benchmark_data import benchmark_records, identity, sampled_numbers
from deltamem.evaluation.history import History, HistoryQuestion
from deltamem.evaluation.history_task import HistoryTask
from deltamem.evaluation.memory_agent_bench.families import FAMILIES, RECALL, scores
from deltamem.evaluation.memory_agent_bench.films import FILE, Films
from deltamem.evaluation.memory_agent_bench.records import LongText
from deltamem.evaluation.memory_agent_bench.sections import sections
from deltamem.evaluation.task import Metric, Options, mean, share

NAME = "memory_agent_bench"
DATA_SET = "ai-hyz/MemoryAgentBench"
HUB = (DATA_SET, None, "Accurate_Retrieval+Test_Time_Learning+Long_Range_Understanding+Conflict_Resolution")
METRICS: Mapping[str, Metric] = {
    "exact_match": share("exact_match"),
    "substring_exact_match": share("substring_exact_match"),
    "f1": Metric("f1", mean),
    RECALL: Metric(RECALL, mean),
}
SECTION = 2000  # characters: about 500 tokens, as the chunks of the paper's agents
CANDIDATES = 10


def tasks(options: Options) -> list[HistoryTask]:
    """Create a task for each family of data sets in the data, or for those of `--source`.

    Raises:
        ValueError: the data is missing or malformed, or lacks one of the sources.
    """
    texts = [LongText.from_record(record) for record in benchmark_records(NAME, HUB, options)]
    absent = [name for name in options.source if not any(text.source.startswith(name) for text in texts)]
    if absent:
        there = ", ".join(dict.fromkeys(text.source for text in texts))
        raise ValueError(f"--source {', '.join(absent)} is not accepted; the data has {there}, or give the beginnings of names")
    chosen = [text for text in texts if text.source.startswith(options.source or "")]
    return [
        _task(family, [text for text in chosen if text.family == family], options)
        for family in dict.fromkeys(text.family for text in chosen)
    ]


def _task(name: str, texts: Sequence[LongText], options: Options) -> HistoryTask:
    family = FAMILIES[name]
    films = _films(options) if RECALL in family.metrics else None
    asked = [
        (place, question, golds if films is None else films.names(golds))
        for place, text in enumerate(texts)
        for question, golds in text.questions
    ]
    answers: dict[str, set[str]] = defaultdict(set)  # by data set
    for place, _, golds in asked:
        answers[texts[place].source].add(golds[0])
    questions = [
        HistoryQuestion(
            number,
            history=str(place),
            prompt=family.instruction.format(question=question),
            golds=golds,
            wrong=_wrong(number, golds, answers[texts[place].source]) if family.ranked else (),
            group=texts[place].source,
            query=question,
        )
        for number in sampled_numbers(len(asked), options)
        for place, question, golds in [asked[number]]
    ]
    return HistoryTask(
        name=f"{NAME}-{name}",
        histories={key: _history(texts[int(key)]) for key in dict.fromkeys(question.history for question in questions)},
        questions=questions,
        judge=partial(judge, name, films),
        metrics={metric: METRICS[metric] for metric in family.metrics},
        identity={**identity(options), "source": options.source},
        max_new_tokens=family.max_new_tokens,
    )


def judge(name: str, films: Films | None, question: HistoryQuestion, prediction: str) -> dict[str, float]:
    """Score an answer to a question of a family; `films` is given only for recommendations."""
    if films is not None:
        return {RECALL: films.recall(prediction, question.golds)}
    return scores(FAMILIES[name], prediction, question.golds)


def _wrong(number: int, golds: Sequence[str], answers: set[str]) -> tuple[str, ...]:
    """Draw answers to other questions of the data set."""
    right = {squad_normalised(gold) for gold in golds}
    others = [answer for answer in sorted(answers) if squad_normalised(answer) not in right]
    return tuple(random.Random(f"{NAME}-{number}").sample(others, min(CANDIDATES - 1, len(others))))


def _history(text: LongText) -> History:
    parts = tuple(part.strip() for part in sections(text.context, SECTION) if part.strip())
    return History(parts, parts)


def _films(options: Options) -> Films:
    """Load the films from the data's folder, or from the Hub."""
    folder = options.data.parent if options.data is not None else options.data_dir
    return Films(folder / FILE if folder is not None else Path(hf_hub_download(DATA_SET, FILE, repo_type="dataset")))
