"""Scores for short answers: exact match and token F1."""

from __future__ import annotations

from deltamem.evaluation.answer_scores import squad_scores
from deltamem.evaluation.history import HistoryQuestion
from deltamem.evaluation.task import Metric, mean, share

METRICS = {"em": share("em"), "f1": Metric("f1", mean)}


def squad_judge(question: HistoryQuestion, prediction: str) -> dict[str, float]:
    """SQuAD's scores, the best over the accepted answers."""
    return squad_scores(prediction, question.golds)
