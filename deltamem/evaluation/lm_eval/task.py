"""lm-evaluation-harness's tasks, run with and without a memory: it builds the prompts and scores the answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from functools import partial
from io import StringIO
from typing import Any

import numpy as np

from deltamem.chat.tokens import Message, render, with_system
from deltamem.evaluation.benchmark_data import identity, sampled_numbers
from deltamem.evaluation.extras import needs
from deltamem.evaluation.off_task import conversation, off_task_settings
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.task import Metric, Options, Row, mean, perplexity, share
from deltamem.intervals import Numbers

PREFIX = "lm_eval:"
SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match")  # its metrics that are 0 or 1 for each question
FEWSHOT_SEED = 1234  # its default
ALL = 2**16  # batch size: all requests it is given

Figures = Callable[[Mapping[str, Any]], Row]


def as_numbers(judged: Mapping[str, Any]) -> Row:
    """Convert lm-evaluation-harness's scores of an answer into numbers, and pairs of a sum and its weight."""
    return {name: [*map(float, item)] if isinstance(item, tuple) else float(item) for name, item in judged.items()}


def weighted(of: str) -> Metric:
    """The mean of entries that are pairs of a sum and its weight."""
    return Metric(of, _weighted)


@dataclass
class LmEvalTask:
    """A task of lm-evaluation-harness; see `Task`.

    Args:
        name: the name of the task and of its results.
        task: lm-evaluation-harness's task.
        numbers: the indices of the documents to ask, ascending.
        metrics: computed from the entries that `figures` returns.
        identity: the options that its results depend on.
        figures: converts lm-evaluation-harness's scores of an answer; with several filters, a score's name ends in its
            filter's.
        chat: whether prompts go through the chat template.
        seed: seeds the conversations that fill memories.
    """

    name: str
    task: Any
    numbers: Sequence[int]
    metrics: dict[str, Metric]
    identity: dict[str, Any]
    figures: Figures = as_numbers
    chat: bool = False
    seed: int = 0
    _asked: list[tuple[int, list[Any]]] = field(default_factory=list)  # documents with their requests, longest first
    _models: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    def settings(self, subject: Subject) -> tuple[str, ...]:
        """See `Task`."""
        return off_task_settings(subject)

    def prepare(self, subject: Subject, settings: Sequence[str]) -> None:
        """See `Task`."""
        from deltamem.evaluation.lm_eval.model import MEMORIES, DeltaMemLM

        requests: dict[int, list[Any]] = {}
        for request in self._requests(subject):
            requests.setdefault(self.numbers[request.doc_id], []).append(request)
        lengths = {number: max(_tokens(subject, request) for request in several) for number, several in requests.items()}
        subject.check_window(max(lengths.values()), f"the longest request of {self.name}")
        self._asked = sorted(requests.items(), key=lambda item: -lengths[item[0]])
        self._models = {
            setting: DeltaMemLM(
                subject.model,
                memory=setting if setting in MEMORIES else "zero",
                tokenizer=subject.tokenizer,
                batch_size=ALL,
            )
            for setting in settings
        }

    def answer(self, subject: Subject, settings: Sequence[str], places: Sequence[int]) -> dict[str, list[Row]]:
        """See `Task`."""
        batch = [self._asked[place] for place in places]
        return {setting: self._rows(subject, setting, batch) for setting in settings}

    def _requests(self, subject: Subject) -> list[Any]:
        """Build the requests of all documents at once, as lm-evaluation-harness does."""
        options = {"apply_chat_template": True, "chat_template": partial(_rendered, subject)} if self.chat else {}
        self.task.set_fewshot_seed(FEWSHOT_SEED)
        with redirect_stderr(StringIO()):  # its progress bar
            self.task.build_all_requests(samples=[*self.numbers], **options)
        return [*self.task.instances]

    def _rows(self, subject: Subject, setting: str, batch: Sequence[tuple[int, list[Any]]]) -> list[Row]:
        batch = [(number, [_unanswered(request) for request in requests]) for number, requests in batch]
        model = self._models[setting]
        if setting != "filled":
            self._ask(model, [request for _, requests in batch for request in requests])
            return [self._row(number, requests) for number, requests in batch]
        for number, requests in batch:
            model.memory = subject.write([conversation(self.seed, number)])
            self._ask(model, requests)
        return [self._row(number, requests) for number, requests in batch]

    def _ask(self, model: Any, requests: Sequence[Any]) -> None:
        """Answer requests, and apply the task's filters to the answers."""
        for kind in dict.fromkeys(request.request_type for request in requests):
            asked = [request for request in requests if request.request_type == kind for _ in range(request.repeats)]
            answers = getattr(model, kind)(asked, disable_tqdm=True)
            for request, answer in zip(asked, answers, strict=True):
                request.resps.append(answer)
        for pipeline in self.task._filters:
            pipeline.apply(requests)

    def _row(self, number: int, requests: Sequence[Any]) -> Row:
        doc, filters = requests[0].doc, [*requests[0].filtered_resps]
        row: Row = {"index": number, "question": str(self.task.doc_to_text(doc))}
        if requests[0].request_type == "generate_until":
            row["prediction"] = requests[0].resps[0]
        for name in filters:
            judged = self.task.process_results(doc, [request.filtered_resps[name] for request in requests])
            known = {metric: item for metric, item in judged.items() if _named(metric, name, filters) in self.metrics}
            row |= {_named(metric, name, filters): figure for metric, figure in self.figures(known).items()}
        return row


def tasks(name: str, options: Options) -> list[LmEvalTask]:
    """Create a task of lm-evaluation-harness by its name, or the tasks of a group, without a chat template.

    Raises:
        ValueError: there is no such task or its data cannot be loaded; its metrics are not per question; the package is not
            installed.
    """
    if options.data is not None:
        raise ValueError(f"--data is not accepted with {PREFIX}{name}, whose data lm-evaluation-harness fetches; leave it out")
    needs("lm_eval")
    from lm_eval.tasks import TaskManager

    quiet()
    manager = TaskManager()
    if name not in manager.all_tasks:
        raise ValueError(f"there is no task {PREFIX}{name}; choose one that `lm-eval ls tasks` lists")
    try:
        found = manager.load(name)["tasks"]
    except Exception as error:  # no network, a missing data set or package: it raises many types
        raise ValueError(f"the task {name} of lm-evaluation-harness cannot be loaded: {error}") from error
    return [
        LmEvalTask(
            re.sub(r"[^\w-]", "_", f"lm_eval-{task_name}"),
            capped(task, options),
            sampled_numbers(len(task.eval_docs), options),
            _metrics(task),
            task_identity(task, options),
            seed=options.seed,
        )
        for task_name, task in found.items()
    ]


def capped(task: Any, options: Options) -> Any:
    """Limit the length of a task's answers as the options say."""
    if options.max_new_tokens is not None and task.OUTPUT_TYPE == "generate_until":
        task.set_config("generation_kwargs", {"max_gen_toks": options.max_new_tokens}, update=True)
    return task


def task_identity(task: Any, options: Options) -> dict[str, Any]:
    """The options that a task's results depend on."""
    return {**identity(options), "max_new_tokens": options.max_new_tokens, "task_version": str(task.VERSION)}


def quiet() -> None:
    """Silence lm-evaluation-harness's warnings, which are about its own command line."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _metrics(task: Any) -> dict[str, Metric]:
    """The task's metrics that aggregate per-question scores.

    Raises:
        ValueError: there are none.
    """
    from lm_eval.api import metrics as known

    made: dict[Any, Callable[[str], Metric]] = {
        known.mean: lambda of: Metric(of, mean),
        known.perplexity: perplexity,
        known.weighted_perplexity: lambda of: Metric(of, lambda values: np.exp(-_weighted(values))),
        known.bits_per_byte: lambda of: Metric(of, lambda values: -_weighted(values) / np.log(2)),
    }
    filters = [pipeline.name for pipeline in task._filters]
    metrics = {
        _named(name, of_filter, filters): share if name in SHARES and aggregate is known.mean else made[aggregate]
        for name, aggregate in task.aggregation().items()
        for of_filter in filters
        if aggregate in made
    }
    if not metrics:
        raise ValueError(
            f"the metrics {', '.join(task.aggregation())} of {task.config.task} are not computed per question, which intervals "
            "require; run it with lm-evaluation-harness itself: python -m deltamem.evaluation.lm_eval run --model deltamem"
        )
    return {name: make(name) for name, make in metrics.items()}


def _unanswered(request: Any) -> Any:
    return replace(request, resps=[], filtered_resps={})


def _named(metric: str, of_filter: str, filters: Sequence[str]) -> str:
    return metric if len(filters) == 1 else f"{metric},{of_filter}"


def _tokens(subject: Subject, request: Any) -> int:
    """How many tokens of the window a request needs."""
    from lm_eval.models.utils import normalize_gen_kwargs

    if request.request_type == "loglikelihood_rolling":  # is split into windows
        return 0
    context, continuation = request.args[:2]
    if request.request_type == "generate_until":
        return len(subject.tokenizer(context)["input_ids"]) + int(normalize_gen_kwargs(continuation)["max_gen_toks"])
    return len(subject.tokenizer(context + continuation)["input_ids"])


def _rendered(subject: Subject, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
    return render(subject.tokenizer, with_system(subject.system, messages), add_generation_prompt)


def _weighted(values: Numbers) -> Numbers:
    """The weighted mean of pairs of a sum and its weight, `[..., questions, 2]`."""
    sums: Numbers = values.sum(axis=-2)
    quotient: Numbers = sums[..., 0] / sums[..., 1]
    return quotient
