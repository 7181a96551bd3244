"""The rules that every episode keeps, checked by reading its history back."""

import json
import random
import re
from collections import Counter

import pytest
from examples import examples
from fact_reading import PARTS, filler_count, is_filler, read_history, sentences, values
from hypothesis import given
from hypothesis import strategies as st

from deltamem.training.facts import Fact, FactEpisode, FactEpisodeConfig, fact_episode, fact_episodes, fact_questions

SPLITS = tuple(PARTS)
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
QUESTIONS = {"value": "questions", "update": "questions", "count": "count_questions", "list": "list_questions"}
RICH = FactEpisodeConfig(
    min_facts=2,
    max_facts=12,
    separate_turns=0.5,
    same_attribute=0.5,
    updates=0.4,
    counting=0.25,
    lists=0.25,
    max_fillers=3,
    filler_words_after=40,
)


def as_list(several):
    return several[0] if len(several) == 1 else ", ".join(several[:-1]) + " and " + several[-1]


@st.composite
def configs(draw):
    probabilities = st.sampled_from([0.0, 0.3, 1.0])
    updates, counting = draw(probabilities), draw(probabilities)
    most = draw(st.integers(2, 50 if updates else 64))
    fillers = draw(st.integers(0, 30))
    return FactEpisodeConfig(
        min_facts=draw(st.integers(2, most)),
        max_facts=most,
        separate_turns=draw(probabilities),
        same_attribute=draw(probabilities),
        updates=updates,
        counting=counting,
        lists=draw(st.sampled_from([0.0, 1 - counting])),
        min_fillers=draw(st.integers(0, fillers)),
        max_fillers=fillers,
        filler_words_after=draw(st.integers(0, 100)),
        values=draw(st.sampled_from([None, 10])),
    )


@examples(100)
@given(configs(), st.sampled_from(SPLITS), st.integers(0, 2**32))
def test_every_episode_keeps_the_rules(config, split, seed):
    episodes = fact_questions(random.Random(seed), config, split)
    told = read_history(episodes[0], split)  # fails on whatever is not of this split
    check_history(config, episodes[0], split, told)
    assert len({(episode.asked.name, episode.asked.attribute) for episode in episodes}) == len(episodes)
    for episode in episodes:
        assert (episode.history, episode.facts) == (episodes[0].history, episodes[0].facts)
        check_question(config, episode, split, told)
        check_candidates(episode, split, told)


def check_history(config, episode, split, told):
    assert [(fact.name, fact.attribute, fact.value) for fact in episode.facts] == [one[:3] for one in told]
    assert [fact.replaced is not None for fact in episode.facts] == [one.kind == "updates" for one in told]
    updates = sum(fact.replaced is not None for fact in episode.facts)
    assert config.min_facts <= len(told) - updates <= config.max_facts
    assert config.updates or not updates
    assert len({one.value for one in told}) == len(told)
    assert max(Counter(one.attribute for one in told).values()) <= 10
    roles = [message["role"] for message in episode.messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert filler_count(episode, split) >= config.min_fillers
    if not config.filler_words_after:
        assert filler_count(episode, split) <= config.max_fillers


def check_question(config, episode, split, told):
    asked = episode.asked
    about = [one for one in told if (one.name, one.attribute) == (asked.name, asked.attribute)]
    questions = sentences(asked.attribute, QUESTIONS[episode.kind], split)
    assert episode.question["content"] in [question.format(name=asked.name) for question in questions]
    assert episode.answer == asked.value
    assert episode.messages[-1]["role"] == "assistant"
    values_told = [one.value for one in about]
    kinds = [one.kind for one in about]
    if episode.kind == "value":
        assert (kinds, [episode.answer], asked.replaced) == (["statements"], values_told, None)
    elif episode.kind == "update":  # the newest is told last
        assert (kinds, [asked.replaced, episode.answer]) == (["statements", "updates"], values_told)
    elif episode.kind == "count":
        assert config.counting
        assert {*kinds} == {"several"}
        assert episode.answer == NUMBERS[len(about) - 1]
        assert len(about) <= 5
    else:
        assert config.lists
        assert {*kinds} == {"several"}
        assert episode.answer == as_list(values_told)
        assert 2 <= len(about) <= 5


def check_candidates(episode, split, told):
    candidates = episode.candidates
    assert len({*candidates}) == len(candidates) == 10
    assert [*candidates] == sorted(candidates)
    assert episode.answer in candidates
    of_attribute = {one.value for one in told if one.attribute == episode.asked.attribute}
    known = {*values(episode.asked.attribute, split)}
    if episode.kind == "count":
        assert {*candidates} == {*NUMBERS}
    elif episode.kind == "list":
        lists = [re.split(", | and ", candidate) for candidate in candidates]
        right = re.split(", | and ", episode.answer)
        assert {len({*several}) for several in lists} == {len(right)}
        assert all({*several} <= known for several in lists)
        assert [{*several} for several in lists].count({*right}) == 1
    else:
        assert of_attribute <= {*candidates} <= known


@pytest.mark.parametrize("split", SPLITS)
def test_sixty_four_facts(split):
    for episode in fact_episodes(5, 0, FactEpisodeConfig(min_facts=64, max_facts=64), split):
        assert len({(fact.name, fact.attribute) for fact in episode.facts}) == 64
        assert len(read_history(episode, split)) == 64


@pytest.mark.parametrize("split", SPLITS)
def test_distractors_fill_the_candidates(split):
    """Of 64 facts, the asked attribute has nine of other people, where attributes are used up one by one."""
    config = FactEpisodeConfig(min_facts=64, max_facts=64, same_attribute=1.0)
    counts = Counter(fact.attribute for fact in fact_episode(random.Random(0), config, split).facts)
    assert sorted(counts.values()) == [4, 10, 10, 10, 10, 10, 10]


def test_lists_are_told_from_lists_with_values_of_other_people():
    config = FactEpisodeConfig(min_facts=10, max_facts=10, lists=1.0, same_attribute=1.0)
    mixed = 0
    for episode in fact_episodes(20, 0, config):
        own = {*re.split(", | and ", episode.answer)}
        others = {fact.value for fact in episode.facts if fact.attribute == episode.asked.attribute} - own
        wrong = {value for candidate in episode.candidates for value in re.split(", | and ", candidate)} - own
        mixed += bool(others & wrong)
    assert mixed >= 15


def test_kinds_are_asked_as_often_as_configured():
    config = FactEpisodeConfig(min_facts=2, max_facts=6, updates=0.5, counting=0.2, lists=0.3)
    kinds = Counter(episode.kind for episode in fact_episodes(1000, 1, config))
    for kind, expected in {"count": 200, "list": 300, "value": 250, "update": 250}.items():
        assert abs(kinds[kind] - expected) < 50


def test_an_update_is_not_always_told_next():
    config = FactEpisodeConfig(min_facts=4, max_facts=4, updates=1.0)
    distances = Counter(
        [fact.value for fact in episode.facts].index(episode.asked.value)
        - [fact.value for fact in episode.facts].index(episode.asked.replaced)
        for episode in fact_episodes(200, 1, config)
    )
    assert {*distances} == {1, 2, 3, 4, 5, 6, 7}


def test_a_seed_determines_the_episodes():
    assert fact_episodes(20, 3, RICH) == fact_episodes(20, 3, RICH)
    assert fact_episodes(20, 3, RICH) != fact_episodes(20, 4, RICH)
    assert fact_episodes(5, 3, RICH) == fact_episodes(20, 3, RICH)[:5]
    assert fact_episodes(0, 3, RICH) == []


@pytest.mark.parametrize(("separate_turns", "messages"), [(0.0, 1), (1.0, 4)])
def test_separate_turns(separate_turns, messages):
    config = FactEpisodeConfig(min_facts=4, max_facts=4, max_fillers=2, separate_turns=separate_turns)
    for episode in fact_episodes(20, 1, config):
        assert len(episode.history) // 2 - filler_count(episode, "train") == messages


@pytest.mark.parametrize(("same_attribute", "attributes"), [(0.0, 5), (1.0, 1)])
def test_same_attribute(same_attribute, attributes):
    config = FactEpisodeConfig(min_facts=5, max_facts=5, same_attribute=same_attribute)
    for episode in fact_episodes(20, 1, config):
        assert len({fact.attribute for fact in episode.facts}) == attributes


def test_a_third_of_further_facts_is_about_a_known_person():
    people = [{fact.name for fact in episode.facts} for episode in fact_episodes(600, 1, FactEpisodeConfig(2, 2))]
    assert 150 < sum(len(told) == 1 for told in people) < 250


def test_each_fact_may_be_asked():
    asked = Counter(episode.facts.index(episode.asked) for episode in fact_episodes(300, 1, FactEpisodeConfig(3, 3)))
    assert min(asked[place] for place in range(3)) > 70


def test_fillers_stand_before_between_and_after_the_facts():
    config = FactEpisodeConfig(min_facts=2, max_facts=2, separate_turns=1.0, min_fillers=1, max_fillers=1)
    places = Counter(
        [is_filler(message["content"], "train") for message in episode.history[::2]].index(True)
        for episode in fact_episodes(300, 1, config)
    )
    assert min(places[place] for place in range(3)) > 70


def test_words_after_the_facts_are_drawn_up_to_the_most():
    config = FactEpisodeConfig(filler_words_after=100)
    words = [
        sum(len(message["content"].split()) for message in episode.history[2:]) for episode in fact_episodes(300, 1, config)
    ]
    assert max(words) <= 101  # a turn is cut in both of its messages at once
    assert all(any(low <= count < low + 20 for count in words) for low in range(0, 100, 20))


def test_to_dict_is_a_chat_record():
    episode = fact_episode(random.Random(0), RICH)
    assert json.loads(json.dumps(episode.to_dict())) == {"messages": episode.messages}


def test_an_episode_by_hand_asks_for_a_value():
    fact = Fact("Anna", "favourite colour", "teal")
    assert FactEpisode([], (fact,), fact, ("red", "teal")).kind == "value"


def test_values_can_be_any_word():
    pool = [f"word{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]

    def told(share):
        config = FactEpisodeConfig(min_facts=4, max_facts=4, updates=0.5, any_word=share)
        episodes = (fact_questions(random.Random(seed), config, words=pool)[0] for seed in range(50))
        return [fact.value for episode in episodes for fact in episode.facts]

    assert not {*told(0.0)} & {*pool}
    assert {*told(1.0)} <= {*pool}
    mixed = told(0.5)
    assert 0.3 < sum(value in pool for value in mixed) / len(mixed) < 0.7


def test_any_word_episodes_have_ten_candidates_however_few_the_words():
    pool = [f"word{number}" for number in range(10)]
    config = FactEpisodeConfig(min_facts=2, max_facts=20, same_attribute=0.8, lists=0.5, any_word=0.9)
    for seed in range(50):
        for episode in fact_questions(random.Random(seed), config, words=pool):
            assert len({*episode.candidates}) == 10
            assert episode.answer in episode.candidates


# Errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_facts": 0}, "min_facts=0"),
        ({"min_facts": 3, "max_facts": 2}, "min_facts=3 and max_facts=2"),
        ({"max_facts": 65}, "max_facts <= 64"),
        ({"max_facts": 51, "updates": 0.1}, "max_facts <= 50 with updates"),
        ({"max_facts": 4, "lists": 0.1}, "min_facts of at least 2"),
        ({"min_fillers": 2, "max_fillers": 1}, "min_fillers=2 and max_fillers=1"),
        ({"min_fillers": -1}, "min_fillers=-1"),
        ({"filler_words_after": -1}, "filler_words_after=-1"),
        ({"values": 9}, "values=9"),
        ({"separate_turns": 1.5}, "separate_turns=1.5"),
        ({"same_attribute": float("nan")}, "same_attribute=nan"),
        ({"updates": -0.1}, "updates=-0.1"),
        ({"counting": 2.0}, "counting=2.0"),
        ({"min_facts": 2, "max_facts": 2, "counting": 0.6, "lists": 0.6}, "their sum must be at most 1"),
    ],
)
def test_config_errors(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FactEpisodeConfig(**settings)


def test_errors_of_drawing():
    with pytest.raises(ValueError, match="split='test' is unknown"):
        fact_episode(random.Random(0), RICH, "test")
    with pytest.raises(ValueError, match="count=-1 is negative"):
        fact_episodes(-1, 0, RICH)
    with pytest.raises(ValueError, match=r"any_word=0\.5 needs words"):
        fact_questions(random.Random(0), FactEpisodeConfig(any_word=0.5))
    config = FactEpisodeConfig(min_facts=5, max_facts=5, same_attribute=1.0, any_word=1.0)
    with pytest.raises(ValueError, match="from 2 words, too few"):
        fact_questions(random.Random(0), config, words=["zebra", "anchor"])
