"""By hand, after the benchmarks' own definitions."""

import sys

import pytest

from deltamem.evaluation.answer_scores import exact_match, hotpotqa_f1, locomo_f1, locomo_multi_f1, squad_scores


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("7 May 2023", "7 May, 2023", 1.0),  # commas are no matter
        (
            "on the 7th of May",
            "7 May 2023",
            2 * (1 / 4) * (1 / 3) / (1 / 4 + 1 / 3),
        ),  # on 7th of may: one of four, one of three
        ("She was running", "runs", 0.5),  # stems: she wa run / run; 1/3 and 1
        ("1,000 dogs", "1000 dog", 1.0),
        ("Zoë and Anna", "zoë anna", 1.0),  # "and" counts as an article; accents stay
        ("Zoe", "Zoë", 0.0),
        ("the", "the", 0.0),  # nothing is left
        ("", "Oslo", 0.0),
    ],
)
def test_locomo(prediction, gold, expected):
    assert locomo_f1(prediction, gold) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("pottery, camping", "camping, pottery, swimming", 2 / 3),
        ("pottery, camping, painting, hiking", "camping, pottery", 1.0),  # what is too much costs nothing
        ("pottery camping", "camping, pottery", 2 / 3),  # one part of two words: 1/2 and 1 for each
        ("none", "a, b", 0.0),
    ],
)
def test_locomo_with_several_parts(prediction, gold, expected):
    assert locomo_multi_f1(prediction, gold) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "gold", "f1", "em"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0, 1.0),
        ("Eiffel Tower in Paris", "Eiffel Tower", 2 * 0.5 * 1 / 1.5, 0.0),
        ("yes", "Yes.", 1.0, 1.0),
        ("yes it is", "yes", 0.0, 0.0),
        ("no", "yes", 0.0, 0.0),
    ],
)
def test_hotpotqa(prediction, gold, f1, em):
    assert hotpotqa_f1(prediction, gold) == pytest.approx(f1)
    assert exact_match(prediction, gold) == em


def test_a_missing_stemmer_is_said(monkeypatch):
    from deltamem.evaluation import answer_scores

    answer_scores._stem.cache_clear()
    monkeypatch.setitem(sys.modules, "nltk.stem.porter", None)
    with pytest.raises(ValueError, match=r"needs the package nltk.*deltamem\[eval\]"):
        locomo_f1("Oslo", "Oslo")


def test_squad_takes_the_best_of_the_accepted_answers():
    assert squad_scores("The red car.", ["a bus", "red car"]) == {"em": 1.0, "f1": 1.0}
    assert squad_scores("a red bus", ["blue bus", "red car there"]) == {"em": 0.0, "f1": 0.5}
    assert squad_scores("yes it is", ["yes"]) == {"em": 0.0, "f1": 0.5}  # HotpotQA's would be 0
