"""The tasks of `deltamem eval`, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltamem.evaluation import arc_easy, facts, lambada
from deltamem.evaluation.task import Options, Task

# Each makes the tasks that its options ask for, and reads their data. To add one: a module, and its line here.
TASKS: dict[str, Callable[[Options], Sequence[Task]]] = {
    "facts": facts.tasks,
    "arc_easy": arc_easy.tasks,
    "lambada_openai": lambada.tasks,
}


def make_tasks(names: Sequence[str], options: Options) -> list[Task]:
    """The tasks of these names.

    Raises:
        ValueError: an unknown name, with what exists; missing data; options that a task refuses.
    """
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise ValueError(f"there is no task {', '.join(unknown) or 'given'}; choose among {', '.join(TASKS)}")
    if options.data is not None and len({*names} - {"facts"}) != 1:
        raise ValueError("--data is the file of one task; give --data-dir, a folder with the files of several")
    return [task for name in dict.fromkeys(names) for task in TASKS[name](options)]
