"""`deltamem eval`: runs tasks under several settings, resumably and with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.progress import Progress

from deltamem.adapter.files import backbone_of
from deltamem.backbones import SMOLLM2, Placement
from deltamem.evaluation.findings import findings
from deltamem.evaluation.history_task import HistoryTask
from deltamem.evaluation.recall import batches
from deltamem.evaluation.results import MEMORIES, SEED_FOLDER, Results, open_results
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.summary import summarise_seeds
from deltamem.evaluation.task import Options, Row, Task
from deltamem.evaluation.tasks import make_tasks
from deltamem.io.progress import work_progress


@dataclass(frozen=True)
class Evaluated:
    """The model to evaluate, and how to run it.

    Args:
        model: the backbone, a folder or a Hub name; if None, the adapter's own, or SmolLM2 without an adapter.
        adapter: a δ-mem or other PEFT adapter, a folder or a Hub name; None for the bare backbone.
        system: system prompt of chats without one; see `Subject`.
        write_chunk_tokens: chunk size for writing histories; see `Subject`.
        batch_size: questions per batch.
        placement: the backbone's device and dtype.
    """

    model: str | None = None
    adapter: str | None = None
    system: str | None = None
    write_chunk_tokens: int | None = None
    batch_size: int = 8
    placement: Placement = field(default_factory=Placement)


def run(
    names: Sequence[str],
    evaluated: Evaluated,
    options: Options,
    settings: Sequence[str],
    output: Path | None,
    seeds: Sequence[int] = (0,),
) -> dict[str, Any]:
    """Run all tasks under all settings.

    Args:
        names: the tasks' names.
        evaluated: the model to evaluate.
        options: the tasks' options.
        settings: the settings to run; each task runs those it supports, or all it supports if none are given.
        output: a folder for the rows, from which an interrupted run resumes; with several seeds, each has a subfolder.
        seeds: seeds of all sampling; everything is asked once per seed.

    Returns:
        `model`, `adapter`, `results`: the entries of `summarise_seeds` for every task, and `findings`: what they show, in
        sentences.

    Raises:
        ValueError, OSError: unknown tasks or settings, missing data, an adapter for another backbone, or results of other
            options in `output`; raised before anything is asked.
    """
    seeds = list(dict.fromkeys(seeds))
    of_seed = {seed: make_tasks(names, replace(options, seed=seed)) for seed in seeds}
    subject = load(evaluated)
    parts = [output / SEED_FOLDER.format(seed) if output and len(seeds) > 1 else output for seed in seeds]
    prepared = [
        _prepare(tasks, _identity(evaluated, seed, subject), subject, settings, part)
        for (seed, tasks), part in zip(of_seed.items(), parts, strict=True)
    ]
    with work_progress() as progress:
        for tasks in prepared:
            for task, results in tasks:
                _ask(task, subject, results, evaluated.batch_size, progress)
    figures = [
        entry
        for several in zip(*prepared, strict=True)
        for entry in summarise_seeds(several[0][0].name, several[0][0].metrics, [_rows(results) for _, results in several])
    ]
    return {"model": _backbone(evaluated), "adapter": evaluated.adapter, "results": figures, "findings": findings(figures)}


def _prepare(
    tasks: Sequence[Task], common: Mapping[str, Any], subject: Subject, settings: Sequence[str], output: Path | None
) -> list[tuple[Task, dict[str, Results]]]:
    """Prepare the tasks of one seed; return each with its results so far, by setting."""
    chosen = _chosen(tasks, subject, settings)
    for task in tasks:
        task.prepare(subject, chosen[task.name])
        if output is not None and isinstance(task, HistoryTask):
            task.keep_memories(output / task.name / MEMORIES)
    return [
        (task, open_results(output and output / task.name, chosen[task.name], {**common, **task.identity})) for task in tasks
    ]


def load(evaluated: Evaluated) -> Subject:
    """Load the model to evaluate.

    Raises:
        ValueError, OSError: there is no such model, or its adapter was made for another.
    """
    if evaluated.batch_size < 2:
        raise ValueError(f"--batch-size {evaluated.batch_size} is not accepted; give 2 or more questions at a time")
    model, tokenizer = evaluated.placement.load(_backbone(evaluated))
    if evaluated.adapter is not None:
        model = PeftModel.from_pretrained(model, evaluated.adapter)
    return Subject(model.eval(), tokenizer, evaluated.system, evaluated.write_chunk_tokens)


def _backbone(evaluated: Evaluated) -> str:
    if evaluated.model is not None or evaluated.adapter is None:
        return evaluated.model or SMOLLM2
    return backbone_of(evaluated.adapter)


def _chosen(tasks: Sequence[Task], subject: Subject, given: Sequence[str]) -> dict[str, list[str]]:
    """The settings under which each task runs."""
    known = {task.name: task.settings(subject) for task in tasks}
    unknown = {*given}.difference(*known.values())
    chosen = {name: [setting for setting in settings if setting in given or not given] for name, settings in known.items()}
    if unknown or not all(chosen.values()):
        of_each = "; ".join(f"{name}: {', '.join(settings)}" for name, settings in known.items())
        raise ValueError(
            f"--setting {', '.join(given)} is not accepted; with this model, give at least one setting of each task: {of_each}"
        )
    return chosen


def _identity(evaluated: Evaluated, seed: int, subject: Subject) -> dict[str, Any]:
    """Everything that all results depend on."""
    fingerprint = subject.model.fingerprint() if subject.has_memory else None
    given = {**vars(evaluated), "model": _backbone(evaluated), "fingerprint": fingerprint, "seed": seed}
    placement = given.pop("placement")
    return given if placement.dtype == Placement.dtype else {**given, "dtype": placement.dtype}  # not on the device


def _ask(task: Task, subject: Subject, results: Mapping[str, Results], batch_size: int, progress: Progress) -> None:
    """Ask the questions not yet answered, always in the same batches, so that a resumed run yields the same figures."""
    ends = [batch[-1] + 1 for batch in batches(range(len(task)), batch_size)]
    for kept in results.values():
        kept.keep(max((end for end in ends if end <= len(kept.rows)), default=0))
    bar = progress.add_task(f"{task.name}: {', '.join(results)}", total=len(task))
    for places in batches(range(len(task)), batch_size):
        missing = [setting for setting, kept in results.items() if len(kept.rows) <= places[0]]
        rows = task.answer(subject, missing, places) if missing else {}
        for setting, several in rows.items():
            results[setting].add(several)
        progress.advance(bar, len(places))


def _rows(results: Mapping[str, Results]) -> dict[str, list[Row]]:
    return {setting: kept.rows for setting, kept in results.items()}
