"""Questions about your own chats, one record per chat: `{"messages": [...], "questions": [...]}`."""

from __future__ import annotations

from collections.abc import Iterator

from deltamem.evaluation.benchmark_data import benchmark_records, identity, sampled_numbers
from deltamem.evaluation.history import History, HistoryQuestion
from deltamem.evaluation.history_task import HistoryTask
from deltamem.evaluation.short_answers import METRICS, squad_judge
from deltamem.evaluation.task import Options
from deltamem.training.chats import read_chats
from deltamem.training.given import Given

NAME = "chats"
MAX_NEW_TOKENS = 32


def tasks(options: Options) -> list[HistoryTask]:
    """Create the task.

    Raises:
        ValueError: the data is missing or malformed; choices for some questions only.
    """
    records = benchmark_records(NAME, None, options)
    histories = {str(number): History.of_chat(chat["messages"]) for number, chat in enumerate(read_chats(records))}
    asked = [question for key, record in enumerate(records) for question in _questions(str(key), record)]
    questions = [HistoryQuestion(number, *question) for number, question in enumerate(asked)]
    with_choices = [bool(question.wrong) for question in questions]
    if any(with_choices) and not all(with_choices):
        raise ValueError(
            f"{sum(with_choices)} of {len(questions)} questions have choices; give choices to all of a file or to none"
        )
    max_new_tokens = options.max_new_tokens or MAX_NEW_TOKENS
    return [
        HistoryTask(
            name=NAME,
            histories=histories,
            questions=[questions[number] for number in sampled_numbers(len(questions), options)],
            judge=squad_judge,
            metrics=METRICS,
            identity={**identity(options), "max_new_tokens": max_new_tokens},
            max_new_tokens=max_new_tokens,
            first_line=True,
            ranked_per_token=True,
        )
    ]


def _questions(key: str, record: Given) -> Iterator[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    """Yield, for each question of a record, the key of its history, its text, the accepted answers and the other choices."""
    for question in record["questions"].items():
        golds = _golds(question["answer"])
        yield key, question["question"].text(), golds, _wrong(question["choices"], golds)


def _golds(answer: Given) -> tuple[str, ...]:
    if isinstance(answer.value, list):
        return tuple(one.text_or_number() for one in answer.items())
    return (answer.text_or_number(),)


def _wrong(choices: Given, golds: tuple[str, ...]) -> tuple[str, ...]:
    """The choices that are not accepted; empty if there are no choices."""
    if not choices.is_given:
        return ()
    given = [choice.text_or_number() for choice in choices.items()]
    wrong = tuple(choice for choice in given if choice not in golds)
    if golds[0] not in given or not wrong:
        choices.refuse(f"a list of the (first) answer, {golds[0]!r}, and of others")
    return wrong
