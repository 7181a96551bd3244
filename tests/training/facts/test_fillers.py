"""Other talk: where it comes from, and how much of it stands between telling and asking."""

import gzip
import json
import random
import sys

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from deltamem.training.facts import FactEpisodeConfig, fact_episode, load_fillers, told_long_ago
from deltamem.training.facts.fillers import _load, filler_turns

EPISODE = fact_episode(random.Random(0), FactEpisodeConfig())


def words(messages):
    return sum(len(message["content"].split()) for message in messages)


def said(sender, text):
    return {"sender": sender, "text": text, "timestamp": "2018-05-02T19:38:15Z"}


@pytest.fixture
def chitchat(tmp_path, monkeypatch):
    """A package as chitchat-dataset is: conversations of rows of utterances of one sender."""

    def install(*conversations):
        package = tmp_path / "chitchat_dataset"
        package.mkdir()
        (package / "__init__.py").touch()
        data = {f"id{number}": {"messages": rows, "prompt": "Hi"} for number, rows in enumerate(conversations)}
        (package / "dataset.json").write_text(json.dumps(data), encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)

    monkeypatch.delitem(sys.modules, "chitchat_dataset", raising=False)
    _load.cache_clear()
    yield install
    _load.cache_clear()
    sys.modules.pop("chitchat_dataset", None)


def test_chitchat_becomes_turns(chitchat):
    odd = [
        [said("a", " "), said("b", "")],
        [said("a", "hello"), said("a", "there")],
        [said("a", "anyone?")],
        [said("b", "oh   hi")],
        [said("a", "")],
        [said("b", "so late…")],
        [said("a", "I live in Berlin")],
        [said("b", "nice")],
        [said("a", "word " * 70)],
        [said("b", "long")],
        [said("a", "unanswered")],
    ]
    chitchat(odd, [[said("a", "nobody answers")]], [])
    assert load_fillers("chitchat") == ((("hello there anyone?", "oh hi so late…"), ("word " * 59 + "word", "long")),)


def test_chitchat_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "chitchat_dataset", None)
    _load.cache_clear()
    with pytest.raises(ValueError, match=r"chitchat-dataset; run: pip install 'deltamem\[train\]'"):
        FactEpisodeConfig(fillers="chitchat", max_fillers=1)


TRIVIA = [{"question": f"What comes after {number}?", "answer": f"{number + 1}."} for number in range(25)]


@pytest.mark.parametrize("name", ["trivia.jsonl", "trivia.json", "trivia_qa.json", "trivia_qa.json.gz"])
def test_trivia(name, tmp_path):
    text = json.dumps(TRIVIA)
    if name.endswith(".jsonl"):
        text = "\n".join(map(json.dumps, TRIVIA))
    elif "_qa" in name:
        data = [{"Question": turn["question"], "QuestionSource": "here", "AnswerValue": turn["answer"]} for turn in TRIVIA]
        text = json.dumps({"Data": data, "Version": 1.0})
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    turns = [((turn["question"], turn["answer"]),) for turn in TRIVIA]
    train, held_out, unseen = (load_fillers(str(tmp_path / name), split) for split in ("train", "held_out", "unseen_values"))
    assert [*held_out] == [*unseen] == [turns[9], turns[19]]
    assert [*train] == [turn for turn in turns if turn not in held_out]
    config = FactEpisodeConfig(fillers=str(tmp_path / name), min_fillers=40, max_fillers=40)
    asked = [message["content"] for message in fact_episode(random.Random(0), config, "held_out").history[::2]]
    assert len(asked) == 41
    assert {TRIVIA[9]["question"], TRIVIA[19]["question"]} < {*asked}


def test_fillers_mention_nobody_and_nothing_that_episodes_tell(tmp_path):
    spoken = ["Is WATER wet?", "Who is Adam?", "Has Zoe come?", "Was it Berlin's?", "Waterproof, is it?"]
    (tmp_path / "trivia.json").write_text(json.dumps([{"question": one, "answer": "Yes."} for one in spoken]), encoding="utf-8")
    assert load_fillers(str(tmp_path / "trivia.json")) == ((("Waterproof, is it?", "Yes."),),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"question": "Why?", "answer": 3}]', "record 1"),
        ('[{"question": "Why?", "answer": "So."}, ["Why?"]]', "record 2"),
        ('[{"question": "Who is Adam?", "answer": "Nobody."}]', "no usable conversation for 'train'"),
        ('{"Data": [', "is no JSON"),
    ],
)
def test_trivia_that_is_none(text, message, tmp_path):
    (tmp_path / "trivia.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        FactEpisodeConfig(fillers=str(tmp_path / "trivia.json"), filler_words_after=10)


def test_conversations_are_told_in_their_order_and_again_only_when_all_have_been():
    conversations = [((f"{number}a", ""), (f"{number}b", "")) for number in range(6)]
    turns = filler_turns(conversations, random.Random(0))
    for _ in range(3):
        told = [next(turns)[0] for _ in range(12)]
        assert [one[1] for one in told] == ["a", "b"] * 6
        assert [one[0] for one in told[::2]] == [one[0] for one in told[1::2]]
        assert {*told} == {user for conversation in conversations for user, _ in conversation}


@examples(50)
@given(st.integers(0, 3000), st.sampled_from(["train", "held_out"]), st.integers(0, 100))
def test_a_distance_is_reached_and_hardly_exceeded(tokens, split, seed):
    calls = []

    def length(messages):
        calls.append(messages)
        return words(messages) + 4 * len(messages)

    fillers = load_fillers("small_talk", split)
    later = told_long_ago(EPISODE, tokens, length, fillers, random.Random(seed))
    added = later.history[len(EPISODE.history) :]
    assert later.history[: len(EPISODE.history)] == EPISODE.history
    assert (later.messages[-2:], later.facts, later.asked, later.candidates) == (
        EPISODE.messages[-2:],
        EPISODE.facts,
        EPISODE.asked,
        EPISODE.candidates,
    )
    shortest_turn = 2 + 2 * 4
    assert (0 if tokens == 0 else tokens) <= words(added) + 4 * len(added) < tokens + shortest_turn
    assert [message["role"] for message in added] == ["user", "assistant"] * (len(added) // 2)
    known = {turn for (turn,) in fillers}
    whole = [message["content"] for message in added[:-2]]
    assert {*zip(whole[::2], whole[1::2], strict=True)} <= known
    assert len(calls) < 40  # each may tokenise all of it
    assert told_long_ago(EPISODE, tokens, length, fillers, random.Random(seed)) == later


def test_a_longer_distance_begins_like_a_shorter_one():
    fillers = load_fillers("small_talk")
    short, long = (told_long_ago(EPISODE, tokens, words, fillers, random.Random(1)).history for tokens in (100, 1000))
    assert long[: len(short) - 2] == short[:-2]


def test_distances_that_cannot_be():
    with pytest.raises(ValueError, match="tokens=-1"):
        told_long_ago(EPISODE, -1, words, load_fillers("small_talk"), random.Random(0))
    with pytest.raises(ValueError, match="no fillers"):
        told_long_ago(EPISODE, 1, words, (), random.Random(0))
