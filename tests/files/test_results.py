"""Pages, images and notes: an old one stays until the new one is whole, nothing else is replaced, and others may read them."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from evaluation_results import locomo_like, write_task
from failing_disk import BEFORE, ERRORS, failing
from matplotlib.figure import Figure
from tiny_chat import chat_model
from tiny_memory import random_state

from deltamem.evaluation.report.page import write_report
from deltamem.hub.card import CARD, write_card
from deltamem.hub.training_record import TRAINING, note_training
from deltamem.inspection.page import write_page
from deltamem.io.drawings import save_drawing
from deltamem.study.grid import Grid
from deltamem.study.report import report
from deltamem.study.results import Results

Prepared = tuple[Path, Callable[[], None]]


def page(folder: Path) -> Prepared:
    path = folder / "page.html"
    return path, lambda: write_page(path, "title", {}, {"this": random_state()})


def evaluation(folder: Path) -> Prepared:
    write_task(folder / "results", "locomo", {setting: locomo_like(setting, 4) for setting in ("none", "memory")})
    path = folder / "report.html"
    return path, lambda: write_report(folder / "results", path)


def image(folder: Path) -> Prepared:
    path = folder / "image.png"
    return path, lambda: save_drawing(Figure(), path)


def summary(folder: Path) -> Prepared:
    grid = Grid(None, None, (), (0,), (), ("memory",))
    return folder / "summary.md", lambda: report("study", grid, [], folder) and None


def note(folder: Path) -> Prepared:
    return folder / TRAINING, lambda: note_training(folder, "facts")


def card(folder: Path) -> Prepared:
    model = chat_model()
    model.save_pretrained(folder)
    (folder / CARD).unlink()
    return folder / CARD, lambda: write_card(folder, model.active_peft_config)


RESULTS = [page, evaluation, image, summary, note, card]
every_result = pytest.mark.parametrize("prepare", RESULTS, ids=lambda prepare: prepare.__name__)


@every_result
def test_an_old_one_stays_until_the_new_one_is_whole(tmp_path: Path, prepare: Callable[[Path], Prepared]) -> None:
    path, write = prepare(tmp_path)
    path.write_text("old", encoding="utf-8")
    before = {*os.listdir(tmp_path)}
    for step in BEFORE:
        for error in ERRORS:
            with failing(step, error):
                write()
            assert path.read_text(encoding="utf-8") == "old"
            assert {*os.listdir(tmp_path)} == before
    write()
    assert path.read_bytes() != b"old"


@every_result
@pytest.mark.parametrize(
    ("make", "what"), [(Path.mkdir, "a folder"), (os.mkfifo, "a pipe"), (lambda path: path.symlink_to("/dev/null"), "a device")]
)
def test_what_is_no_file_is_refused_and_stays(
    tmp_path: Path, prepare: Callable[[Path], Prepared], make: Callable[[Path], None], what: str
) -> None:
    path, write = prepare(tmp_path)
    make(path)
    before = stat.S_IFMT(os.stat(path).st_mode)
    with pytest.raises(ValueError, match=f"is {what}, where a file belongs"):
        write()
    assert stat.S_IFMT(os.stat(path).st_mode) == before


@every_result
def test_it_can_be_read_like_other_files(tmp_path: Path, prepare: Callable[[Path], Prepared]) -> None:
    path, write = prepare(tmp_path)
    before = os.umask(0o027)
    try:
        write()
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
    finally:
        assert os.umask(before) == 0o027


def test_a_pipe_in_the_place_of_a_studys_runs_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "runs.jsonl")
    with pytest.raises(ValueError, match="is a pipe"):
        Results(tmp_path).drop_half_written()
