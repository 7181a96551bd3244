"""The format of MemoryAgentBench's data."""

from __future__ import annotations

from dataclasses import dataclass

from deltamem.evaluation.memory_agent_bench.families import FAMILIES, family_of
from deltamem.training.given import Given


@dataclass(frozen=True)
class LongText:
    """A text with questions about it.

    Args:
        source: its data set.
        family: the data set's family.
        context: the text.
        questions: the questions, each with its accepted answers.
    """

    source: str
    family: str
    context: str
    questions: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def from_record(cls, record: Given) -> LongText:
        """Parse a record in the official format.

        Args:
            record: `{"context": text, "questions": [question, ...], "answers": [[answer, ...], ...], "metadata": {"source":
                name}}`, with as many answers as questions.

        Raises:
            ValueError: the record is malformed, or names a data set that the benchmark does not have.
        """
        source = record["metadata"]["source"]
        family = family_of(source.text())
        if family is None:
            source.refuse(f"a name that begins with {', '.join(FAMILIES)}")
        questions = [question.text() for question in record["questions"].items()]
        answers = record["answers"].items()
        if len(answers) != len(questions):
            record["answers"].refuse(f"as many as there are questions, {len(questions)}")
        golds = [tuple(dict.fromkeys(gold.text() for gold in several.items())) for several in answers]
        return cls(source.text(), family, record["context"].text(), tuple(zip(questions, golds, strict=True)))
