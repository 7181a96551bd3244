"""The words that episodes are drawn from."""

import re
import string

import pytest
from fact_reading import ATTRIBUTES, NAMES, SMALL_TALK, TELLING

from deltamem.training.facts.vocabulary import words_of

PARTS = ("train", "held_out")
ASKING = ("questions", "count_questions", "list_questions")
LEAST = {"statements": (8, 3), "questions": (6, 3), "updates": (4, 2), "several": (4, 2)}


def all_values(part):
    return [value for attribute in ATTRIBUTES.values() for value in attribute["values"][part]]


def templates(kinds, part):
    having = [attribute[kind] for attribute in ATTRIBUTES.values() for kind in kinds if kind in attribute]
    return [template for parts in having for template in parts[part]]


def test_there_is_enough_of_everything():
    assert (len(NAMES["train"]), len(NAMES["held_out"])) == (300, 60)
    assert (len(SMALL_TALK["turns"]["train"]), len(SMALL_TALK["turns"]["held_out"])) == (60, 20)
    assert len(ATTRIBUTES) == 10
    assert sum("several" in attribute for attribute in ATTRIBUTES.values()) == 6
    for attribute in ATTRIBUTES.values():
        assert len(attribute["values"]["train"]) >= 40
        assert len(attribute["values"]["held_out"]) == 10
        assert {"count_questions", "list_questions", "several"} & {*attribute} in (
            set(),
            {"count_questions", "list_questions", "several"},
        )
        for kind, least in LEAST.items():
            if kind in attribute:
                assert all(len(attribute[kind][part]) >= count for part, count in zip(PARTS, least, strict=True))


def test_nothing_occurs_twice_in_or_across_the_splits():
    told = [word.lower() for part in PARTS for word in NAMES[part] + all_values(part)]
    assert len({*told}) == len(told)
    assert all(words_of(word) == {word} for word in told)
    sentences = [sentence for part in PARTS for sentence in templates(TELLING + ASKING, part)]
    assert len({*sentences}) == len(sentences)
    talk = [tuple(turn) for part in PARTS for turn in SMALL_TALK["turns"][part]]
    assert len({*talk}) == len(talk)


def test_no_sentence_to_train_on_has_a_held_out_one_in_it():
    trained = templates(TELLING + ASKING, "train")
    assert not [held_out for held_out in templates(TELLING + ASKING, "held_out") if any(held_out in one for one in trained)]


@pytest.mark.parametrize(("kinds", "expected"), [(TELLING, ["name", "value"]), (ASKING, ["name"])])
@pytest.mark.parametrize("part", PARTS)
def test_placeholders(kinds, expected, part):
    for template in templates(kinds, part):
        assert sorted(field for _, field, _, _ in string.Formatter().parse(template) if field is not None) == expected


def test_no_sentence_and_no_small_talk_mentions_a_name_or_a_value():
    told = {word.lower() for part in PARTS for word in NAMES[part] + all_values(part)}
    sentences = [re.sub("{.*?}", "", one) for part in PARTS for one in templates(TELLING + ASKING, part)]
    talk = [message for part in PARTS for turn in SMALL_TALK["turns"][part] for message in turn]
    assert not [sentence for sentence in sentences + talk if words_of(sentence) & told]


def test_values_suit_the_article_before_them():
    for attribute in ATTRIBUTES.values():
        sentences = [sentence for kind in TELLING for part in PARTS for sentence in attribute.get(kind, {}).get(part, [])]
        if any(re.search(r"\ba (\w+ )?{value}", sentence, re.IGNORECASE) for sentence in sentences):
            values = attribute["values"]["train"] + attribute["values"]["held_out"]
            assert not [value for value in values if value[0] in "aeiou"]
