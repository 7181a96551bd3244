"""MemoryAgentBench's data sets, by the prefix of their names: their prompts and their scores."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deltamem.evaluation.answer_scores import exact_match, hotpotqa_f1, squad_normalised

ANSWER = re.compile(r"(?:answer:[ \t]*)+(.*)", re.IGNORECASE)
RECALL = "recall@5"


@dataclass(frozen=True)
class Family:
    """The data sets of one kind.

    Args:
        instruction: the prompt, with a placeholder for the question.
        max_new_tokens: maximum tokens of an answer, as published.
        metrics: the names of its scores, the official one first.
        whole: whether the whole answer is scored as well as its answer line, keeping the better score.
        ranked: whether answers are short enough to be ranked among candidates.
    """

    instruction: str
    max_new_tokens: int
    metrics: tuple[str, ...]
    whole: bool = True
    ranked: bool = True


# The benchmark has GPT-4o judge LongMemEval and the summaries. Here they get the scores that δ-mem's evaluation uses instead:
# whether the answer contains the gold one, and token F1. The stories' questions ask for JSON, which never equals the gold
# option, so they get both scores.
FAMILIES: Mapping[str, Family] = {
    "ruler_qa": Family(
        "Answer the question from the documents that you have read, with the answer alone.\n\nQuestion: {question}\nAnswer:",
        50,
        ("substring_exact_match",),
    ),
    "longmemeval": Family(
        "You have talked with the user before. Answer the question from these conversations as briefly as you can, with one "
        "phrase if possible.\n\n{question}\nAnswer:",
        50,
        ("substring_exact_match",),
    ),
    "eventqa": Family(
        "Complete the task from the book that you have read.\n\n{question}\n\nThe event that happens next is:",
        40,
        ("substring_exact_match",),
        whole=False,
    ),
    "icl": Family(
        "You have seen examples, each with the number of its label. Label the text below in the same way, and answer with the "
        "number alone.\n\n{question}\nlabel:",
        20,
        ("exact_match",),
        whole=False,
    ),
    "recsys": Family(
        "You recommend films, and have seen dialogues in which this is done. Answer the new dialogue below with a numbered "
        "list of 20 films and nothing else, each on a line of its own, such as:\n1. a film\n2. another film\n\n"
        "Dialogue: {question}\n\nRecommendations:",
        300,
        (RECALL,),
    ),
    "infbench_sum": Family(
        "You have read a book. Summarise it.\n\n{question}\n\nSummary:",
        1200,
        ("f1",),
        ranked=False,
    ),
    "detective_qa": Family(
        "Answer the question about the story that you have read, in exactly the format that it asks for.\n\n{question}",
        50,
        ("exact_match", "substring_exact_match"),
    ),
    "factconsolidation": Family(
        "You have read facts with their numbers. Where facts contradict each other, the one with the largest number is the "
        "newest and counts. Answer the question from these facts, not from what you know of the world, as briefly as you can."
        "\n\nQuestion: {question}\nAnswer:",
        10,
        ("substring_exact_match",),
    ),
}


def family_of(source: str) -> str | None:
    """The family of a data set; None if it belongs to none."""
    return next((name for name in FAMILIES if source.startswith(name)), None)


def scores(family: Family, prediction: str, golds: Sequence[str]) -> dict[str, float]:
    """Compute the scores of an answer, each the best over the accepted answers."""
    read = (prediction, answer_line(prediction)) if family.whole else (answer_line(prediction),)
    return {name: max(SCORES[name](text, gold) for text in read for gold in golds) for name in family.metrics}


def answer_line(prediction: str) -> str:
    """The text after "Answer:" on its line, or the first line if there is none."""
    found = ANSWER.search(prediction)
    return (found[1] if found else prediction.split("\n", 1)[0]).strip()


def substring_exact_match(prediction: str, gold: str) -> float:
    """1 if the prediction contains the gold answer, both normalised as SQuAD does."""
    return float(squad_normalised(gold) in squad_normalised(prediction))


SCORES: Mapping[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "substring_exact_match": substring_exact_match,
    "f1": hotpotqa_f1,
}
