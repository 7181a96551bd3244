"""Answers in sentences."""

import random
import re

import pytest

from deltamem.training.facts import FactEpisodeConfig, fact_questions
from deltamem.training.facts.answers import sentence, to_second_person
from deltamem.training.facts.episode import Fact
from deltamem.training.facts.vocabulary import USER, attributes, templates

PARTS = ("train", "held_out")


@pytest.mark.parametrize("attribute", attributes())
def test_what_the_user_says_is_said_back_to_the_user(attribute):
    for template in (text for part in PARTS for text in templates(attribute, "statements", part, USER)):
        said = to_second_person(template)
        assert not re.search(r"\b(I|me|my|mine|myself|we|our|us|am)\b", said, re.IGNORECASE), said
        assert re.search(r"\byour?\b", said, re.IGNORECASE), said
        assert "{value}" in said
        assert said[0].isupper()


@pytest.mark.parametrize(
    ("said", "back"),
    [
        ("For a living, I am a baker.", "For a living, you are a baker."),
        ("I was born in Oslo.", "You were born in Oslo."),
        ("My pick is teal.", "Your pick is teal."),
        ("No drink pleases me more.", "No drink pleases you more."),
    ],
)
def test_the_second_person(said, back):
    assert to_second_person(said) == back


def test_another_person_stays():
    fact = Fact("Miriam", "favourite colour", "teal")
    assert {"Miriam", "teal"} <= {*re.findall(r"\w+", sentence(random.Random(0), fact, "train"))}


@pytest.mark.parametrize(("share", "stated"), [(0.0, 0), (1.0, 40)])
def test_the_share_of_sentences(share, stated):
    config = FactEpisodeConfig(min_facts=2, max_facts=2, sentence_answers=share, first_person=0.5)
    episodes = [episode for seed in range(20) for episode in fact_questions(random.Random(seed), config)]
    said = [episode.messages[-1]["content"] for episode in episodes]
    assert sum(text != episode.answer for text, episode in zip(said, episodes, strict=True)) == stated
    assert all(
        episode.answer in text and episode.answer in episode.candidates for text, episode in zip(said, episodes, strict=True)
    )


def test_numbers_and_lists_have_no_sentence():
    config = FactEpisodeConfig(min_facts=2, max_facts=2, sentence_answers=1.0, counting=1.0)
    episode = fact_questions(random.Random(0), config)[0]
    assert episode.messages[-1]["content"] == episode.answer
