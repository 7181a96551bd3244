"""FriendsQA (W19-5923): questions about scenes of the series Friends, answered with words from the scene."""

from __future__ import annotations

from deltamem.evaluation.benchmark_data import benchmark_records, identity, sampled_numbers
from deltamem.evaluation.history import History, HistoryQuestion
from deltamem.evaluation.history_task import HistoryTask
from deltamem.evaluation.short_answers import METRICS, squad_judge
from deltamem.evaluation.task import Options
from deltamem.training.given import Given

NAME = "friendsqa"
INSTRUCTION = "Answer the question about the scene with a few words.\nQuestion: {question}\nShort answer:"
MAX_NEW_TOKENS = 32
SECTION = 8  # lines per message
RETRIEVED = 5  # lines
UTTERANCES = "utterances:"  # the official files spell it with the colon


def tasks(options: Options) -> list[HistoryTask]:
    """Create the task.

    Raises:
        ValueError: the data is missing or malformed.
    """
    scenes = [scene for record in benchmark_records(NAME, None, options) for scene in record["paragraphs"].items()]
    asked = [(str(key), question) for key, scene in enumerate(scenes) for question in scene["qas"].items()]
    questions = [_question(number, key, question) for number, (key, question) in enumerate(asked)]
    return [
        HistoryTask(
            name=NAME,
            histories={str(key): _history(scene) for key, scene in enumerate(scenes)},
            questions=[questions[number] for number in sampled_numbers(len(questions), options)],
            judge=squad_judge,
            metrics=METRICS,
            identity=identity(options),
            max_new_tokens=MAX_NEW_TOKENS,
            first_line=True,
            retrieved=RETRIEVED,
        )
    ]


def _question(number: int, scene: str, question: Given) -> HistoryQuestion:
    text = question["question"].text()
    golds = dict.fromkeys(answer["answer_text"].text() for answer in question["answers"].items())
    return HistoryQuestion(number, scene, INSTRUCTION.format(question=text), tuple(golds), query=text)


def _history(scene: Given) -> History:
    lines = [f"{', '.join(_speakers(line))}: {line['utterance'].text()}" for line in scene[UTTERANCES].items()]
    sections = ["\n".join(lines[start : start + SECTION]) for start in range(0, len(lines), SECTION)]
    return History(tuple(sections), tuple(lines))


def _speakers(line: Given) -> list[str]:
    return line["speakers"].texts() or line["speakers"].refuse("a list of names, at least one")
