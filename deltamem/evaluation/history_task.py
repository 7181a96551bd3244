"""Tasks about a history that is in the prompt, in the memory, in both, in neither, or available through search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from peft import PeftModel

from deltamem.evaluation.history import History, HistoryQuestion
from deltamem.evaluation.history_memories import HistoryMemories
from deltamem.evaluation.history_prompts import SEARCHED, WHOLE, HistoryPrompts
from deltamem.evaluation.reading import Choose, Reading
from deltamem.evaluation.sampling import Sampling, greedy, sampled
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.task import Metric, Row, mean, share
from deltamem.memory.state import DeltaMemState

# What is in the prompt and in the memory. The history was written to a memory beforehand and is not in context ("memory",
# "bm25+memory"); or nothing was written ("zero"), or another history ("shuffled"). "full+memory" writes an empty memory while
# reading the history, as in the paper's main table (for adapters that write segments, it is written beforehand). The bare
# backbone gets no history ("none"), all of it ("full"), as many of its last tokens as fit into a KV cache of the memory's size
# ("tail"), or retrieved passages ("bm25").
WITHOUT_ADAPTER = ("none", "full", "tail", "bm25")
WITH_MEMORY = ("memory", "full+memory", "bm25+memory", "zero", "shuffled")
WRITTEN = ("memory", "bm25+memory", "shuffled")  # settings that write histories beforehand
SAID = {"log_likelihood": Metric("log_likelihood", mean)}
RANKED = {"gold_first": share("gold_first")}


@dataclass
class HistoryTask:
    """Questions about histories, answered in free text; see `Task`.

    Args:
        name: the task's name.
        histories: the histories by key.
        questions: in the order to ask them; those about one history are adjacent.
        judge: scores an answer.
        metrics: computed from the judge's scores; the gold answer's likelihood is added and, if all questions have candidates,
            its rank.
        identity: the options that its results depend on.
        max_new_tokens: maximum tokens of an answer.
        system: the benchmark's system message; "" uses that of the evaluation's options.
        sampling: how answers are sampled, seeded by `seed` plus the question's number; None for greedy decoding.
        first_line: only the first line generated counts as the answer.
        retrieved: how many passages a search adds to the prompt.
        ranked_per_token: rank candidates by log-likelihood per token, so that short ones have no advantage; if False, by their
            total log-likelihood.
        seed: seeds the sampling of answers.
    """

    name: str
    histories: Mapping[str, History]
    questions: Sequence[HistoryQuestion]
    judge: Callable[[HistoryQuestion, str], dict[str, float]]
    metrics: dict[str, Metric]
    identity: dict[str, Any]
    max_new_tokens: int
    system: str = ""
    sampling: Sampling | None = None
    first_line: bool = False
    retrieved: int = 5
    ranked_per_token: bool = False
    seed: int = 0
    _memories: HistoryMemories = field(default_factory=HistoryMemories)
    _prompts: HistoryPrompts = field(init=False)

    def __post_init__(self) -> None:
        ranked = RANKED if all(question.wrong for question in self.questions) else {}
        self.metrics = {**self.metrics, **SAID, **ranked}
        self._prompts = HistoryPrompts(self.retrieved)

    def __len__(self) -> int:
        return len(self.questions)

    def settings(self, subject: Subject) -> tuple[str, ...]:
        """See `Task`."""
        if subject.has_memory:
            return (*WITHOUT_ADAPTER, *WITH_MEMORY)
        bare = tuple(setting for setting in WITHOUT_ADAPTER if setting != "tail")  # "tail" depends on a memory's size
        return (*bare, "adapter") if isinstance(subject.model, PeftModel) else bare

    def prepare(self, subject: Subject, settings: Sequence[str]) -> None:
        """See `Task`."""
        if "shuffled" in settings and len(self.histories) < 2:
            raise ValueError(f"{self.name} has one history, and the setting shuffled needs another; leave it out")
        if {*settings} & {*SEARCHED}:
            self._prompts.index(self.histories)
        subject = self._with_system(subject)
        in_prompt = {*settings} & {*WHOLE}
        at_once = subject.write_chunk_tokens is None and {*settings} & {*WRITTEN}
        if not in_prompt and not at_once:
            return
        longest = max(len(subject.tokens(history.messages).ids) for history in self.histories.values())
        if in_prompt:
            asked = max(len(question.tokens(subject)) for question in self.questions)
            subject.check_window(
                longest + asked + self.max_new_tokens, f"the longest prompt of {self.name} in the settings full and full+memory"
            )
        if at_once:
            subject.check_window(longest, f"writing the longest history of {self.name} without --write-chunk-tokens")

    def answer(self, subject: Subject, settings: Sequence[str], places: Sequence[int]) -> dict[str, list[Row]]:
        """See `Task`."""
        subject, questions = self._with_system(subject), [self.questions[place] for place in places]
        rows: dict[str, list[Row]] = {}
        for setting in settings:
            # Each candidate follows the whole history: hold the KV caches of one question at a time.
            parts = [[question] for question in questions] if setting in WHOLE else [questions]
            rows[setting] = [row for part in parts for row in self._rows(subject, setting, part)]
        return rows

    def keep_memories(self, folder: Path) -> None:
        """Save memories to a folder, for a resumed run and for `deltamem report`.

        Args:
            folder: holds the memory of each history and, in `KEY/001.safetensors` and so on, the growing memory of the first
                question's history: after each section or turn, or each chunk of `write_chunk_tokens`.
        """
        self._memories.keep(folder, self.questions[0].history)

    def _with_system(self, subject: Subject) -> Subject:
        return replace(subject, system=self.system or subject.system)

    def _rows(self, subject: Subject, setting: str, questions: Sequence[HistoryQuestion]) -> list[Row]:
        prompts = [self._prompts.of(subject, setting, question, self.histories[question.history]) for question in questions]
        with self._under(subject, setting, questions):
            model, cache, before = subject.start(len(prompts), with_adapter=setting == "adapter")
            reading = Reading.from_prompt(model, *subject.left_padded(prompts), cache, before)
            candidates = [
                [question.answer_ids(subject, answer) for answer in (question.golds[0], *question.wrong)]
                for question in questions
            ]
            likelihoods = reading.log_likelihoods(candidates)
            said = reading.say(self.max_new_tokens, subject.ends, self._choose(questions))
        predictions = [str(subject.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in said]
        return [
            {**self._row(question, prediction, several[0]), **self._rank(several, [len(ids) for ids in answers])}
            for question, prediction, several, answers in zip(questions, predictions, likelihoods, candidates, strict=True)
        ]

    def _rank(self, likelihoods: Sequence[float], tokens: Sequence[int]) -> Row:
        """Whether the first candidate ranks highest."""
        gold, *wrong = [
            likelihood / count if self.ranked_per_token else likelihood
            for likelihood, count in zip(likelihoods, tokens, strict=True)
        ]
        return {"gold_first": float(gold > max(wrong))} if wrong else {}

    def _row(self, question: HistoryQuestion, prediction: str, gold: float) -> Row:
        if self.first_line:
            prediction = prediction.split("\n", 1)[0].strip()
        return {
            "index": question.number,
            "group": question.group,
            "question": question.prompt if question.query is None else question.query,
            "answers": list(question.golds),
            "prediction": prediction,
            "log_likelihood": gold,
            **self.judge(question, prediction),
        }

    def _under(self, subject: Subject, setting: str, questions: Sequence[HistoryQuestion]) -> AbstractContextManager[Any]:
        """The context of a setting, with a memory row for each question."""
        if setting in WITHOUT_ADAPTER:
            return subject.bare()
        if setting == "adapter" or (setting == "full+memory" and not subject.model.active_peft_config.writes_segments):
            return nullcontext()  # outside `model.memory`, a memory lives in the KV cache and is written as that grows
        if setting == "zero":
            memory = subject.model.new_memory(len(questions))
        else:
            keys = [self._key(setting, question) for question in questions]
            memory = DeltaMemState.stack(self._memories.of(subject, key, self.histories[key]) for key in keys)
        return cast(AbstractContextManager[Any], subject.model.memory(memory, write=False))

    def _key(self, setting: str, question: HistoryQuestion) -> str:
        """The key of the history written to the memory."""
        if setting != "shuffled":
            return question.history
        keys = list(self.histories)
        return keys[(keys.index(question.history) + 1) % len(keys)]

    def _choose(self, questions: Sequence[HistoryQuestion]) -> Choose:
        if self.sampling is None:
            return greedy
        return sampled(self.sampling, [self.seed + question.number for question in questions])
