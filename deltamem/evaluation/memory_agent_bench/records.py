"""The format of MemoryAgentBench's data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltamem.evaluation.memory_agent_bench.families import FAMILIES, family_of


@dataclass(frozen=True)
class LongText:
    """A text with questions about it.

    Args:
        source: the data set that it is of.
        family: of the data set.
        context: the text.
        questions: each with its accepted answers.
    """

    source: str
    family: str
    context: str
    questions: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def of(cls, record: Any, number: int) -> LongText:
        """Take over a record of the official format.

        Args:
            record: as it was read.
            number: of the record, from 1, for errors.

        Raises:
            ValueError: another format, or a data set that the benchmark does not have.
        """
        if not _has_the_format(record):
            raise ValueError(
                f'memory_agent_bench, record {number}: expected {{"context": text, "questions": [question, ...], "answers": '
                f'[[answer, ...], ...], "metadata": {{"source": name}}}} with as many answers as questions, got {record!r:.200}'
            )
        source = record["metadata"]["source"]
        family = family_of(source)
        if family is None:
            raise ValueError(
                f"memory_agent_bench, record {number}: the source {source!r} is unknown: choose records of sources whose names "
                f"begin with {', '.join(FAMILIES)}"
            )
        answers = (tuple(dict.fromkeys(several)) for several in record["answers"])
        return cls(source, family, record["context"], tuple(zip(record["questions"], answers, strict=True)))


def _has_the_format(record: Any) -> bool:
    if not isinstance(record, Mapping):
        return False
    context, questions, answers, metadata = (record.get(key) for key in ("context", "questions", "answers", "metadata"))
    return (
        isinstance(context, str)
        and isinstance(questions, list)
        and isinstance(answers, list)
        and isinstance(metadata, Mapping)
        and isinstance(metadata.get("source"), str)
        and len(questions) == len(answers) > 0
        and all(isinstance(question, str) for question in questions)
        and all(isinstance(several, list) and several and all(isinstance(one, str) for one in several) for several in answers)
    )
