"""The task "facts": answers to what was never told."""

import pytest
from tiny_chat import chat_model, chat_tokenizer

from deltamem.evaluation.facts import tasks
from deltamem.evaluation.recall import RecallTest
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.task import Options


@pytest.fixture
def rows(monkeypatch):
    """The rows of two episodes, given what is said under each setting: "{own}" and "{other}" stand for the told values."""

    def answered(**said):
        (task,) = tasks(Options(facts=(1,), episodes=2))
        subject = Subject(chat_model(), chat_tokenizer(), "")
        task.prepare(subject, [*said])
        told = [episode.answer for episode in task._episodes]

        def asked(test, episodes, setting):
            text = said[{"no_memory": "none", "shuffled_memory": "shuffled"}.get(setting, setting)]
            return [
                (episode.candidates[0], text.format(own=own, other=other))
                for episode, own, other in zip(episodes, told, reversed(told), strict=True)
            ]

        monkeypatch.setattr(RecallTest, "asked", asked)
        return task.answer(subject, [name for name in said if name != "none"], [0, 1])

    return answered


def figures(rows, name):
    return [[row[metric] for metric in ("unchanged", "mixed_up")] for row in rows[name]]


def test_another_memory_is_told_apart_from_its_own(rows):
    found = rows(none="I do not know.", memory="It is {own}.", shuffled="It is {other}!")
    assert figures(found, "memory") == [[0.0, 0.0]] * 2
    assert figures(found, "shuffled") == [[0.0, 1.0]] * 2
    found = rows(none="I do not know.", memory="It is {other}.", shuffled="I do not know.")
    assert figures(found, "memory") == [[0.0, 0.0]] * 2  # its own memory was not told the other's value
    assert figures(found, "shuffled") == [[1.0, 0.0]] * 2
