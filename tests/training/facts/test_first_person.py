"""Facts that users tell about themselves."""

import random
import string

import pytest

from deltamem.training.facts import FactEpisodeConfig, fact_episode
from deltamem.training.facts.vocabulary import USER, attributes, templates, words_of

KINDS = ("statements", "updates", "several", "questions", "count_questions", "list_questions")
ME = {"i", "my", "me", "mine"}


def told_about(name):
    """Sentences about a person, by attribute, kind and split."""
    return {
        (attribute, kind, split): templates(attribute, kind, split, name)
        for attribute, having in attributes().items()
        for kind in KINDS
        if kind in having
        for split in ("train", "held_out")
    }


def test_users_can_say_of_themselves_what_is_said_of_others():
    mine, others = told_about(USER), told_about("Anna")
    assert {place: len(sentences) for place, sentences in mine.items()} == {
        place: len(sentences) for place, sentences in others.items()
    }
    said = [sentence for sentences in mine.values() for sentence in sentences]
    assert len({*said}) == len(said)
    assert all(words_of(sentence) & ME for sentence in said)
    assert not [sentence for sentences in others.values() for sentence in sentences if words_of(sentence) & ({"my", "mine"})]


@pytest.mark.parametrize(("kind", "expected"), [(kind, ["value"] if place < 3 else []) for place, kind in enumerate(KINDS)])
def test_placeholders(kind, expected):
    for (_, of_kind, _), sentences in told_about(USER).items():
        for sentence in sentences if of_kind == kind else ():
            assert [field for _, field, _, _ in string.Formatter().parse(sentence) if field is not None] == expected


def test_a_fact_about_the_user_is_told_and_asked_in_the_first_person():
    config = FactEpisodeConfig(min_facts=4, max_facts=4, first_person=0.5)
    episodes = [fact_episode(random.Random(seed), config, "held_out") for seed in range(40)]
    about_me = [episode for episode in episodes if episode.asked.name == USER]
    assert 5 < len(about_me) < 35
    for episode in episodes:
        assert bool(words_of(episode.question["content"]) & ME) == (episode.asked.name == USER)
        assert not any("the user" in message["content"] for message in episode.messages)
        mine = [fact.attribute for fact in episode.facts if fact.name == USER]
        assert len(mine) == len({*mine})


def test_without_it_the_episodes_are_those_of_before():
    config = FactEpisodeConfig(min_facts=2, max_facts=2)
    assert fact_episode(random.Random(0), config).messages[0]["content"] == (
        "Eileen was born and raised in Pakistan. Nina's job is being a roofer."
    )
