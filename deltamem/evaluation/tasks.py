"""The tasks of `deltamem eval`, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from deltamem.evaluation import (
    arc_easy,
    chats,
    continuation,
    dialogue,
    facts,
    friendsqa,
    gpqa,
    harm,
    hotpotqa,
    ifeval,
    kv_retrieval,
    lambada,
    locomo,
)
from deltamem.evaluation.lm_eval import task as lm_eval_task
from deltamem.evaluation.memory_agent_bench import tasks as memory_agent_bench
from deltamem.evaluation.ruler import needle, variable_tracking
from deltamem.evaluation.task import Options, Task

Maker = Callable[[Options], Sequence[Task]]

# Each creates tasks from the options, and loads their data. To add one, write its module and add a line here.
TASKS: dict[str, Maker] = {
    "facts": facts.tasks,
    "arc_easy": arc_easy.tasks,
    "lambada_openai": lambada.tasks,
    "gpqa_diamond": gpqa.tasks,
    "ifeval": ifeval.tasks,
    "continuation": continuation.tasks,
    "harm": harm.tasks,
    "chats": chats.tasks,
    "dialogue": dialogue.tasks,
    "friendsqa": friendsqa.tasks,
    "locomo": locomo.tasks,
    "hotpotqa": hotpotqa.tasks,
    "memory_agent_bench": memory_agent_bench.tasks,
    "kv_retrieval": kv_retrieval.tasks,
    "needle": needle.tasks,
    "variable_tracking": variable_tracking.tasks,
}
WITHOUT_DATA = {"facts", "needle", "variable_tracking"}  # always generated


def make_tasks(names: Sequence[str], options: Options) -> list[Task]:
    """Create the tasks with these names.

    Raises:
        ValueError: a name is unknown, data is missing, or a task refuses its options.
    """
    unknown = [name for name in names if _maker(name) is None]
    if unknown or not names:
        known = f"{', '.join(TASKS)}, {lm_eval_task.PREFIX}NAME"
        raise ValueError(f"there is no task {', '.join(unknown) or 'given'}; choose among {known}")
    if options.data is not None and len({*names} - WITHOUT_DATA) != 1:
        raise ValueError("--data is the file of one task; give --data-dir, a folder with the files of several")
    makers = [_maker(name) for name in dict.fromkeys(names)]
    return [task for maker in makers if maker is not None for task in maker(options)]


def _maker(name: str) -> Maker | None:
    if name.startswith(lm_eval_task.PREFIX):
        return partial(lm_eval_task.tasks, name.removeprefix(lm_eval_task.PREFIX))
    return TASKS.get(name)
