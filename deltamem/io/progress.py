"""Shows on standard error how far long work has come: a bar in a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn

LINE_SECONDS = 30


def work_progress() -> Progress:
    """The progress of work, to be entered; add tasks to it and advance them.

    Standard output stays free for results.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        return ProgressLines(console)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


class ProgressLines(Progress):
    """Prints a line about the task that has just advanced, at most one every half minute.

    Args:
        console: where the lines go.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console=console, auto_refresh=False, get_time=time.monotonic, disable=True)  # draws nothing
        self._last_line = time.monotonic()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count work as done; see `rich.progress.Progress.advance`."""
        super().advance(task_id, advance)
        self._say(self._tasks[task_id])

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a task; see `rich.progress.Progress.update`."""
        super().update(task_id, **changes)
        self._say(self._tasks[task_id])

    def _say(self, task: Task) -> None:
        if time.monotonic() - self._last_line < LINE_SECONDS:
            return
        self._last_line = time.monotonic()
        line = f"{task.description}: {task.percentage:.0f}%"
        if task.elapsed and task.completed and task.remaining:
            line += f", {duration(task.elapsed * task.remaining / task.completed)} left"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """A time in two units at most, such as "3 h 20 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
