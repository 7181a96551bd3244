"""Scores of free-text answers, as their benchmarks define them."""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from deltamem.evaluation.extras import needs

PUNCTUATION = str.maketrans("", "", string.punctuation)
SQUAD_ARTICLES = re.compile(r"\b(a|an|the)\b")
LOCOMO_ARTICLES = re.compile(r"\b(a|an|the|and)\b")


def squad_normalised(text: str) -> str:
    """Lowercase a text and remove punctuation and articles, as SQuAD's and HotpotQA's scores do."""
    return " ".join(SQUAD_ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """1 if both are equal after SQuAD's normalisation."""
    return float(squad_normalised(prediction) == squad_normalised(gold))


def squad_scores(prediction: str, golds: Sequence[str]) -> dict[str, float]:
    """SQuAD's exact match (`em`) and token F1 (`f1`), each the best over the accepted answers."""
    told = squad_normalised(prediction).split()
    return {
        "em": max(exact_match(prediction, gold) for gold in golds),
        "f1": max(token_f1(told, squad_normalised(gold).split()) for gold in golds),
    }


def hotpotqa_f1(prediction: str, gold: str) -> float:
    """HotpotQA's token F1: "yes", "no" and "noanswer" are either right or wrong as a whole."""
    told, expected = squad_normalised(prediction), squad_normalised(gold)
    if told != expected and {told, expected} & {"yes", "no", "noanswer"}:
        return 0.0
    return token_f1(told.split(), expected.split())


def locomo_f1(prediction: str, gold: str) -> float:
    """LoCoMo's token F1: without commas, articles and punctuation, on stemmed words."""
    return token_f1(_locomo_tokens(prediction), _locomo_tokens(gold))


def locomo_multi_f1(prediction: str, gold: str) -> float:
    """LoCoMo's score for multi-part answers: the mean over the gold's parts of the best match among the answer's parts."""
    parts = [part.strip() for part in prediction.split(",")]
    golds = [part.strip() for part in gold.split(",")]
    return sum(max(locomo_f1(part, expected) for part in parts) for expected in golds) / len(golds)


def token_f1(told: Sequence[str], expected: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the tokens; 0 if they share none."""
    same = sum((Counter(told) & Counter(expected)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(told), same / len(expected)
    return 2 * precision * recall / (precision + recall)


def _locomo_tokens(text: str) -> list[str]:
    plain = LOCOMO_ARTICLES.sub(" ", text.replace(",", "").lower().translate(PUNCTUATION))
    return [_stem()(word) for word in plain.split()]


@functools.cache
def _stem() -> Callable[[str], str]:
    stem: Callable[[str], str] = needs("nltk.stem.porter").PorterStemmer().stem
    return stem


def is_said(value: str, text: str) -> bool:
    """Whether a text contains a value as whole words, not within a longer word or number; both are case-folded."""
    whole = rf"(?<!\w)(?<!\d[.:,]){re.escape(value)}(?!\w|[.:,]\d)"
    return value in text and re.search(whole, text) is not None
