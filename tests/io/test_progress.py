"""Progress outside of a terminal."""

import io

import pytest
from rich.console import Console

from deltamem.io import progress
from deltamem.io.progress import ProgressLines, duration, work_progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets: `clock.now`, in seconds."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_line_every_half_minute(clock):
    written = io.StringIO()
    with ProgressLines(Console(file=written)) as lines:
        task = lines.add_task("facts: memory, none", total=8)
        for clock.now in (10.0, 20.0, 40.0, 50.0, 80.0):
            lines.advance(task)
    assert written.getvalue().splitlines() == ["facts: memory, none: 38%, 1 min left", "facts: memory, none: 62%, 48 s left"]


def test_a_share_set_by_hand_counts(clock):
    written = io.StringIO()
    with ProgressLines(Console(file=written)) as lines:
        task = lines.add_task("seed 0", total=1)
        lines.update(task, completed=0.25)
        clock.now = 31.0
        lines.update(task, completed=0.5)
    assert written.getvalue() == "seed 0: 50%, 31 s left\n"


def test_standard_output_stays_free(capsys, clock):
    with work_progress() as work:
        for clock.now in work.track([31.0, 62.0], description="turns"):
            pass
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "turns: 50%" in printed.err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min"), (3570, "1 h 0 min"), (12_000, "3 h 20 min"), (200_000, "2 d 7 h")],
)
def test_a_duration(seconds, text):
    assert duration(seconds) == text
