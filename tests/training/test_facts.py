"""Fact episodes: the data they are drawn from, and the rules they keep."""

import importlib.resources
import json
import random
import re
import string
from typing import Any

import pytest

from deltamem.training.data import FactDataset, training_words, whole_words
from deltamem.training.facts import (
    Fact,
    FactEpisode,
    FactEpisodeConfig,
    fact_episode,
    fact_episodes,
    fact_questions,
    held_out_values,
)

DATA: dict[str, Any] = json.loads(
    importlib.resources.files("deltamem.training").joinpath("facts.json").read_text(encoding="utf-8")
)
ATTRIBUTES = DATA["attributes"]
PARTS = ("train", "held_out")
# Which part of the data each split takes its names and sentences from, and its values.
SPLITS = {"train": ("train", "train"), "held_out": ("held_out", "train"), "unseen_values": ("held_out", "held_out")}
RICH = FactEpisodeConfig(min_facts=2, max_facts=6, max_fillers=3, separate_turns=0.5, same_attribute=0.5)
EXTREMES = (
    FactEpisodeConfig(),
    RICH,
    FactEpisodeConfig(min_facts=10, max_facts=10),
    FactEpisodeConfig(min_facts=10, max_facts=10, max_fillers=60, separate_turns=1.0, same_attribute=1.0),
)


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def all_values(part: str) -> list[str]:
    return [value for attribute in ATTRIBUTES.values() for value in attribute["values"][part]]


def templates(kind: str, part: str) -> list[str]:
    return [template for attribute in ATTRIBUTES.values() for template in attribute[kind][part]]


def history_text(episode: FactEpisode) -> str:
    return " ".join(message["content"] for message in episode.history)


def user_messages(episode: FactEpisode) -> list[str]:
    return [message["content"] for message in episode.history[::2]]


def filler_count(episode: FactEpisode) -> int:
    fillers = {user for user, _ in DATA["fillers"]}
    return sum(message in fillers for message in user_messages(episode))


# The data


def test_pool_sizes() -> None:
    assert len(ATTRIBUTES) == 10
    assert (len(DATA["names"]["train"]), len(DATA["names"]["held_out"])) == (150, 30)
    assert (len(DATA["fillers"]), len(DATA["acknowledgements"])) == (60, 6)
    for attribute in ATTRIBUTES.values():
        assert 40 <= len(attribute["values"]["train"]) <= 70
        assert len(attribute["values"]["held_out"]) == 10


def test_no_name_value_or_template_occurs_twice_in_or_across_the_splits() -> None:
    names = DATA["names"]["train"] + DATA["names"]["held_out"]
    values = all_values("train") + all_values("held_out")
    folded = [word.lower() for word in names + values]
    assert len(set(folded)) == len(folded)
    for kind in ("statements", "questions"):
        sentences = templates(kind, "train") + templates(kind, "held_out")
        assert len(set(sentences)) == len(sentences)


@pytest.mark.parametrize("part", PARTS)
def test_template_placeholders(part: str) -> None:
    def placeholders(template: str) -> list[str]:
        return sorted(field for _, field, _, _ in string.Formatter().parse(template) if field is not None)

    assert all(placeholders(template) == ["name", "value"] for template in templates("statements", part))
    assert all(placeholders(template) == ["name"] for template in templates("questions", part))


def test_values_suit_the_article_before_them() -> None:
    for attribute in ATTRIBUTES.values():
        statements = attribute["statements"]["train"] + attribute["statements"]["held_out"]
        if any(re.search(r"\ba (\w+ )?{value}", statement) for statement in statements):
            values = attribute["values"]["train"] + attribute["values"]["held_out"]
            assert not [value for value in values if value[0] in "aeiou"]


def test_fillers_mention_no_name_and_no_value() -> None:
    told = words(" ".join(DATA["names"]["train"] + DATA["names"]["held_out"]))
    told |= words(" ".join(all_values("train") + all_values("held_out")))
    assert not [filler for filler in DATA["fillers"] if words(" ".join(filler)) & told]


# The episodes


def test_a_seed_determines_the_episodes() -> None:
    assert fact_episodes(20, 3, RICH) == fact_episodes(20, 3, RICH)
    assert fact_episodes(20, 3, RICH) != fact_episodes(20, 4, RICH)
    assert fact_episode(random.Random(5), RICH) == fact_episode(random.Random(5), RICH)


def test_an_episode_does_not_depend_on_the_count() -> None:
    assert fact_episodes(5, 3, RICH) == fact_episodes(20, 3, RICH)[:5]
    assert fact_episodes(0, 3, RICH) == []


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("config", EXTREMES)
def test_rules_of_every_episode(config: FactEpisodeConfig, split: Any) -> None:
    wording, values = SPLITS[split]
    for episode in fact_episodes(60, 1, config, split):
        assert config.min_facts <= len(episode.facts) <= config.max_facts
        assert filler_count(episode) <= config.max_fillers
        pairs = {(fact.name, fact.attribute) for fact in episode.facts}
        assert len(pairs) == len({fact.value for fact in episode.facts}) == len(episode.facts)
        for fact in episode.facts:
            assert fact.name in DATA["names"][wording]
            assert fact.value in ATTRIBUTES[fact.attribute]["values"][values]

        roles = [message["role"] for message in episode.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert [*episode.history, episode.question] == episode.messages[:-1]
        assert episode.asked in episode.facts
        assert episode.answer == episode.asked.value
        assert words(episode.asked.name) | words(episode.asked.value) <= words(history_text(episode))
        assert words(episode.asked.name) <= words(episode.question["content"])
        assert not words(episode.asked.value) & words(episode.question["content"])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("config", EXTREMES)
def test_candidates(config: FactEpisodeConfig, split: Any) -> None:
    for episode in fact_episodes(60, 2, config, split):
        told = {fact.value for fact in episode.facts if fact.attribute == episode.asked.attribute}
        assert len(set(episode.candidates)) == len(episode.candidates) == 10
        assert list(episode.candidates) == sorted(episode.candidates)
        assert told <= set(episode.candidates) <= set(ATTRIBUTES[episode.asked.attribute]["values"][SPLITS[split][1]])


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_uses_only_its_own_names_values_and_templates(split: Any) -> None:
    wording, values = SPLITS[split]
    other = {"train": "held_out", "held_out": "train"}
    foreign = words(" ".join(DATA["names"][other[wording]] + all_values(other[values])))
    for episode in fact_episodes(100, 1, RICH, split):
        assert not words(history_text(episode) + " " + episode.question["content"]) & foreign
        attribute = ATTRIBUTES[episode.asked.attribute]
        questions = [question.format(name=episode.asked.name) for question in attribute["questions"][wording]]
        assert episode.question["content"] in questions
        for fact in episode.facts:
            statements = ATTRIBUTES[fact.attribute]["statements"][wording]
            told = [template.format(name=fact.name, value=fact.value) for template in statements]
            assert any(statement in history_text(episode) for statement in told)


@pytest.mark.parametrize(("separate_turns", "messages"), [(0.0, 1), (1.0, 4)])
def test_separate_turns(separate_turns: float, messages: int) -> None:
    config = FactEpisodeConfig(min_facts=4, max_facts=4, max_fillers=2, separate_turns=separate_turns)
    for episode in fact_episodes(20, 1, config):
        assert len(user_messages(episode)) - filler_count(episode) == messages


@pytest.mark.parametrize(("same_attribute", "attributes"), [(0.0, 5), (1.0, 1)])
def test_same_attribute(same_attribute: float, attributes: int) -> None:
    config = FactEpisodeConfig(min_facts=5, max_facts=5, same_attribute=same_attribute)
    for episode in fact_episodes(20, 1, config):
        assert len({fact.attribute for fact in episode.facts}) == attributes


def test_a_third_of_further_facts_is_about_a_known_person() -> None:
    config = FactEpisodeConfig(min_facts=2, max_facts=2)
    people = [{fact.name for fact in episode.facts} for episode in fact_episodes(600, 1, config)]
    assert 150 < sum(len(names) == 1 for names in people) < 250


def test_facts_are_told_in_order_and_each_may_be_asked() -> None:
    config = FactEpisodeConfig(min_facts=3, max_facts=3, max_fillers=2, separate_turns=0.5)
    asked = [0, 0, 0]
    for episode in fact_episodes(300, 1, config):
        tokens = re.findall(r"\w+", history_text(episode))
        positions = [tokens.index(fact.value) for fact in episode.facts]
        assert positions == sorted(positions)
        asked[episode.facts.index(episode.asked)] += 1
    assert min(asked) > 70


def test_to_dict_is_a_chat_record() -> None:
    episode = FactEpisode(
        messages=[
            {"role": "user", "content": "Anna's favourite colour is teal."},
            {"role": "assistant", "content": "Okay."},
            {"role": "user", "content": "What is Anna's favourite colour?"},
            {"role": "assistant", "content": "teal"},
        ],
        facts=(Fact("Anna", "favourite colour", "teal"),),
        asked=Fact("Anna", "favourite colour", "teal"),
        candidates=("red", "teal"),
    )
    assert json.loads(json.dumps(episode.to_dict())) == {"messages": episode.messages}


# Errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_facts": 0}, "min_facts=0"),
        ({"min_facts": 3, "max_facts": 2}, "min_facts=3 and max_facts=2"),
        ({"max_facts": 11}, "max_facts=11"),
        ({"max_fillers": -1}, "max_fillers=-1"),
        ({"max_fillers": 61}, "choose 0 to 60"),
        ({"separate_turns": 1.5}, "separate_turns=1.5"),
        ({"same_attribute": -0.1}, "same_attribute=-0.1"),
        ({"same_attribute": float("nan")}, "same_attribute=nan"),
    ],
)
def test_config_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        FactEpisodeConfig(**settings)


def test_unknown_split_and_negative_count() -> None:
    with pytest.raises(ValueError, match="split='test' is unknown"):
        fact_episode(random.Random(0), RICH, "test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count=-1 is negative"):
        fact_episodes(-1, 0, RICH)


def test_values_can_be_any_word() -> None:
    pool = [f"word{index}" for index in range(50)]

    def values(share: float) -> list[str]:
        config = FactEpisodeConfig(min_facts=4, max_facts=4, any_word=share)
        drawn = (fact_questions(random.Random(seed), config, words=pool)[0] for seed in range(50))
        return [fact.value for episode in drawn for fact in episode.facts]

    assert not {*values(0.0)} & {*pool}
    assert {*values(1.0)} <= {*pool}
    assert 0.3 < sum(value in pool for value in values(0.5)) / 200 < 0.7
    with pytest.raises(ValueError, match=r"any_word=0\.5 needs words"):
        fact_questions(random.Random(0), FactEpisodeConfig(any_word=0.5))


def test_any_word_episodes_still_have_ten_candidates() -> None:
    pool = [f"word{index}" for index in range(50)]
    for seed in range(20):
        for episode in fact_questions(random.Random(seed), FactEpisodeConfig(1, 4, any_word=1.0), words=pool):
            assert len({*episode.candidates}) == 10
            assert episode.answer in episode.candidates


class Vocabulary:
    """As much of a tokenizer as is asked for its words."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}


def test_the_whole_words_of_a_vocabulary() -> None:
    tokens = ("Ġteal", "▁Rome", "Rome", "Ġa", "ĠNASA", "Ġco2", "Ġ,", "ĠRome", "<s>")
    assert whole_words(Vocabulary(*tokens)) == ["Rome", "teal"]


def test_held_out_words_are_notraining_words() -> None:
    value = next(value for value in all_values("held_out") if value.isalpha())
    assert training_words(Vocabulary("Ġteal", f"Ġ{value.lower()}", f"Ġ{value.capitalize()}")) == ["teal"]


def test_held_out_values_are_those_of_the_split() -> None:
    assert held_out_values() == {*all_values("held_out")}
    dataset = FactDataset(30, 0, FactEpisodeConfig(any_word=1.0), 1, ["zebra", "anchor"])
    assert {dataset[index]["messages"][-1]["content"] for index in range(30)} == {"zebra", "anchor"}
