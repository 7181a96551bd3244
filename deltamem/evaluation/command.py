"""`deltamem eval`: tasks asked under several settings, resumable, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deltamem.adapter.files import backbone_of
from deltamem.backbones import SMOLLM2, Placement
from deltamem.evaluation.history_task import HistoryTask
from deltamem.evaluation.recall import batches
from deltamem.evaluation.results import MEMORIES, SEED_FOLDER, Results, open_results
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.summary import summarise_seeds
from deltamem.evaluation.task import Options, Row, Task
from deltamem.evaluation.tasks import make_tasks

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated, and how.

    Args:
        model: the backbone, a folder or a Hub name; the adapter's own if None, and without an adapter SmolLM2.
        adapter: of δ-mem or any other of PEFT, a folder or a Hub name; the bare backbone if None.
        system: see `Subject`.
        write_chunk_tokens: see `Subject`.
        batch_size: questions at a time.
        placement: of the backbone.
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
    show_progress: bool,
    seeds: Sequence[int] = (0,),
) -> dict[str, Any]:
    """Ask all tasks under all settings.

    Args:
        names: of the tasks.
        evaluated: the model.
        options: of the tasks.
        settings: each task is asked under those of them that it has; under all that it has if there are none.
        output: a folder for the rows, from which a run that was broken off goes on; each of several seeds has its part.
        show_progress: whether to draw a progress bar.
        seeds: of whatever is drawn; all is asked with each.

    Returns:
        `model`, `adapter`, and as `results` what `summarise_seeds` makes of every task.

    Raises:
        ValueError, OSError: unknown tasks or settings, missing data, an adapter for another backbone, results of other
            options in `output`; before anything is asked.
    """
    seeds = list(dict.fromkeys(seeds))
    of_seed = {seed: make_tasks(names, replace(options, seed=seed)) for seed in seeds}
    subject = load(evaluated)
    parts = [output / SEED_FOLDER.format(seed) if output and len(seeds) > 1 else output for seed in seeds]
    prepared = [
        _prepare(tasks, _identity(evaluated, seed, subject), subject, settings, part)
        for (seed, tasks), part in zip(of_seed.items(), parts, strict=True)
    ]
    with Progress(*COLUMNS, disable=not show_progress, transient=True) as progress:
        for tasks in prepared:
            for task, results in tasks:
                _ask(task, subject, results, evaluated.batch_size, progress)
    figures = [
        entry
        for several in zip(*prepared, strict=True)
        for entry in summarise_seeds(several[0][0].name, several[0][0].metrics, [_rows(results) for _, results in several])
    ]
    return {"model": _backbone(evaluated), "adapter": evaluated.adapter, "results": figures}


def _prepare(
    tasks: Sequence[Task], common: Mapping[str, Any], subject: Subject, settings: Sequence[str], output: Path | None
) -> list[tuple[Task, dict[str, Results]]]:
    """The tasks of one seed, each with its results so far by setting."""
    chosen = _chosen(tasks, subject, settings)
    for task in tasks:
        task.prepare(subject, chosen[task.name])
        if output is not None and isinstance(task, HistoryTask):
            task.keep_memories(output / task.name / MEMORIES)
    return [
        (task, open_results(output and output / task.name, chosen[task.name], {**common, **task.identity})) for task in tasks
    ]


def load(evaluated: Evaluated) -> Subject:
    """The model to evaluate.

    Raises:
        ValueError, OSError: there is none, or its adapter was made for another.
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
    """The settings that each task is asked under."""
    known = {task.name: task.settings(subject) for task in tasks}
    unknown = {*given}.difference(*known.values())
    chosen = {name: [setting for setting in settings if setting in given or not given] for name, settings in known.items()}
    if unknown or not all(chosen.values()):
        of_each = "; ".join(f"{name}: {', '.join(settings)}" for name, settings in known.items())
        raise ValueError(
            f"--setting {', '.join(given)} is not accepted; with this model there are, of each task one at least, {of_each}"
        )
    return chosen


def _identity(evaluated: Evaluated, seed: int, subject: Subject) -> dict[str, Any]:
    """What all results depend on."""
    fingerprint = subject.model.fingerprint() if subject.has_memory else None
    given = {**vars(evaluated), "model": _backbone(evaluated), "fingerprint": fingerprint, "seed": seed}
    placement = given.pop("placement")
    return given if placement.dtype == Placement.dtype else {**given, "dtype": placement.dtype}  # the device changes no answer


def _ask(task: Task, subject: Subject, results: Mapping[str, Results], batch_size: int, progress: Progress) -> None:
    """Ask what was not asked yet; always in the same batches, so that a run in two parts has the figures of one."""
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
