"""`deltamem study`: runs a grid's remaining runs, draws its curves, and summarises them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from deltamem.backbones import Placement
from deltamem.io.progress import work_progress
from deltamem.study.grid import Run, read_grid
from deltamem.study.results import Results
from deltamem.study.run import carry_out
from deltamem.study.small_backbone import SmallBackbone, small_backbone
from deltamem.study.training import StudyTraining

PART = re.compile(r"(?P<number>[1-9]\d*)/(?P<of>[1-9]\d*)")


def main(
    grid_file: Path,
    folder: Path,
    limit: int | None = None,
    only: str | None = None,
    part: str | None = None,
    draw: bool = False,
    placement: Placement | None = None,
) -> dict[str, Any]:
    """Run what is left of a grid, draw its curves, and write the summary; shows progress on standard error.

    Args:
        grid_file: a YAML file; see `grid`.
        folder: the folder for `runs.jsonl`, the adapters, the images and `summary.md`.
        limit: maximum number of runs; None for all.
        only: run only this curve's variants.
        part: "1/2" and "2/2" each take every second run, for two processes.
        draw: only draw, without running anything.
        placement: the backbone's device and dtype, for training and measuring; None for float32 on the CPU.

    Returns:
        The summary: `runs_done`, `runs_left`, `images` and, for every curve, its figures.

    Raises:
        ValueError: a grid, a curve or a part is not valid; the message says why.
    """
    _check_extras()
    from deltamem.study.report import report  # needs the extras

    grid, results = replace(read_grid(grid_file), placement=placement or Placement()), Results(folder)
    runs = _part(grid.runs(only), part)
    if not draw:
        _check_device(runs)
        results.drop_half_written()
        _run(_left(runs, results)[:limit], results)
    left = len(_left(runs, results))
    return {"runs_done": len(runs) - left, "runs_left": left, **report(grid_file.stem, grid, results.read(), folder)}


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Print the summary page, the number of runs done and left, and the folder."""
    console = Console()
    console.print((folder / "summary.md").read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
    console.print(f"{summary['runs_done']} runs are done, {summary['runs_left']} are left. All of it is in {folder}.")


def _run(runs: Sequence[Run], results: Results) -> None:
    with work_progress() as progress:
        for backbone in dict.fromkeys(run.backbone for run in runs):
            if isinstance(backbone, SmallBackbone):
                task = progress.add_task("the small backbone", total=1)
                small_backbone(backbone, partial(_show, progress, task))
                progress.remove_task(task)
        every = progress.add_task("runs", total=len(runs))
        for run in runs:
            task = progress.add_task(f"{run.variant.label}, seed {run.seed}", total=1)
            results.append(carry_out(run, results.folder, partial(_show, progress, task)))
            progress.remove_task(task)
            progress.advance(every)


def _check_device(runs: Sequence[Run]) -> None:
    for run in runs:
        if run.variant.trained:
            StudyTraining(run.variant.training).check_device(run.placement.device)


def _show(progress: Progress, task: TaskID, share: float) -> None:
    progress.update(task, completed=share)


def _left(runs: Sequence[Run], results: Results) -> list[Run]:
    """The runs that have no results yet."""
    done = [record["run"] for record in results.read()]
    return [run for run in runs if run.resolved not in done]


def _part(runs: list[Run], part: str | None) -> list[Run]:
    if part is None:
        return runs
    given = PART.fullmatch(part)
    if given is None or int(given["number"]) > int(given["of"]):
        raise ValueError(f"--part {part!r} is not accepted; give 1/2 and 2/2 to two processes, and so on")
    return runs[int(given["number"]) - 1 :: int(given["of"])]


def _check_extras() -> None:
    missing = [name for name in ("matplotlib", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"deltamem study needs {' and '.join(missing)}; run: pip install 'deltamem[study]'")
