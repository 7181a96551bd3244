"""Fact episodes as training data."""

from fact_reading import ATTRIBUTES, read_history, sentences
from transformers import HfArgumentParser

from deltamem.training.data import FactDataset, training_words, whole_words
from deltamem.training.facts import FactEpisode, FactEpisodeConfig, held_out_values

MIXED = FactEpisodeConfig(min_facts=12, max_facts=12, updates=0.5, counting=0.3, lists=0.3, max_fillers=2)


class Vocabulary:
    """As much of a tokenizer as is asked for its words."""

    def __init__(self, *tokens):
        self.tokens = tokens

    def get_vocab(self):
        return {token: index for index, token in enumerate(self.tokens)}


def test_several_questions_of_several_kinds_after_one_history():
    dataset = FactDataset(20, 0, MIXED, 4)
    kinds = set()
    for index in range(len(dataset)):
        chat = dataset[index]
        history, asked = chat["messages"][: -2 * chat["read_turns"]], chat["messages"][-2 * chat["read_turns"] :]
        told = read_history(FactEpisode([*history, *asked[:2]], (), None, ()), "train")
        questions = [message["content"] for message in asked[::2]]
        assert len({*questions}) == len(questions) <= 4
        for question in questions:
            (found,) = {
                (one.name, one.attribute, kind)
                for one in told
                for kind in ("questions", "count_questions", "list_questions")
                if question in [sentence.format(name=one.name) for sentence in sentences(one.attribute, kind, "train")]
            }
            kinds.add(found[2])
        assert dataset[index] == chat
    assert kinds == {"questions", "count_questions", "list_questions"}


def test_an_episode_depends_on_the_seed_and_its_index_alone():
    assert FactDataset(9, 5, MIXED, 2)[3] == FactDataset(4, 5, MIXED, 2)[3]
    assert FactDataset(9, 5, MIXED, 2)[3] != FactDataset(9, 6, MIXED, 2)[3]


def test_the_options_are_arguments():
    parser = HfArgumentParser(FactEpisodeConfig)
    (config,) = parser.parse_args_into_dataclasses(["--max_facts", "3", "--updates", "0.5", "--fillers", "small_talk"])
    assert config == FactEpisodeConfig(max_facts=3, updates=0.5)
    assert "Probability that a fact is replaced later" in parser.format_help()


def test_the_whole_words_of_a_vocabulary():
    tokens = ("Ġteal", "▁Rome", "Rome", "Ġa", "ĠNASA", "Ġco2", "Ġ,", "ĠRome", "<s>")
    assert whole_words(Vocabulary(*tokens)) == ["Rome", "teal"]


def test_held_out_words_are_no_training_words():
    value = min(held_out_values())
    assert training_words(Vocabulary("Ġteal", f"Ġ{value.lower()}", f"Ġ{value.capitalize()}")) == ["teal"]


def test_held_out_values_are_those_of_the_split():
    assert held_out_values() == {value for attribute in ATTRIBUTES.values() for value in attribute["values"]["held_out"]}
    dataset = FactDataset(30, 0, FactEpisodeConfig(any_word=1.0), 1, ["zebra", "anchor"])
    assert {dataset[index]["messages"][-1]["content"] for index in range(30)} == {"zebra", "anchor"}
