"""`--dry_run`: shows what a training would see, and how long it would take, without training."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor
from transformers import (
    IntervalStrategy,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from deltamem.io.printable import printable
from deltamem.io.progress import duration
from deltamem.training.batching import episodes_per_step
from deltamem.training.costs import Weighing, taught_tokens
from deltamem.training.episodes import EpisodeCollator
from deltamem.training.loss import views_in
from deltamem.training.progress import SAMPLE, say, silence
from deltamem.training.scripts import IGNORED
from deltamem.training.views import View
from deltamem.workload import peak_bytes

SHOWN = 3  # episodes
MOST_TOKENS = 400  # of a pass; what is between its beginning and its end is left out
WARM_UP, TIMED = 1, 2  # steps
TRAINED, COMPARED, SEGMENT = "trained", "compared", "segment"
BRACKETS = {TRAINED: ("⟦", "⟧", "green"), COMPARED: ("⟨", "⟩", "cyan"), SEGMENT: ("⟦", "⟧", "yellow")}
Mark = tuple[object, frozenset[str]]  # what tells neighbouring tokens apart, and their brackets


def show_episodes(chats: Any, collator: EpisodeCollator, weighing: Weighing, written: bool = True) -> None:
    """Print the first episodes with all their passes, and how many tokens the first few dozen have.

    Args:
        chats: a data set of chats with their reads.
        collator: makes of them what the model is given.
        weighing: says what is trained on.
        written: whether the histories are written to a memory; a baseline leaves them out.
    """
    console = Console()
    for place in range(min(SHOWN, len(chats))):
        batch = collator([chats[place]])
        origin = f", {printable(chats[place]['place'])}" if "place" in chats[place] else ""
        console.rule(Text(f"episode {place + 1} of {len(chats):,}{origin}"), align="left")
        for part in _passes(batch, collator.encoder.tokenizer, weighing, written):
            console.print(part, soft_wrap=True, highlight=False)
    console.rule()
    sampled = [collator([chats[place]]) for place in range(min(SAMPLE, len(chats)))]
    counts = {"written": [_written_tokens(batch) for batch in sampled]} if written else {}
    counts["read"] = [sum(int(batch[name]["attention_mask"].sum()) for name in views_in(batch)) for batch in sampled]
    figures = ", ".join(f"{sum(many) / len(many):.0f} tokens {name} (at most {max(many)})" for name, many in counts.items())
    say(f"The first {len(sampled)} episodes have on average {figures}.")


def estimate(make: Callable[[TrainingArguments], Trainer], args: TrainingArguments) -> None:
    """Measure some steps, and print how long the training would take and how much memory it needs.

    Args:
        make: makes the trainer; its model is trained by these steps.
        args: of the training.
    """
    say(f"Measuring {TIMED} steps after {WARM_UP} to warm up ...")
    with TemporaryDirectory() as folder:
        trainer, timer = make(_trial(args, folder)), StepTimes()
        silence(trainer)
        trainer.add_callback(timer)
        peak = peak_bytes(lambda: _once(trainer.train), args.device)
        if not timer.ends:  # this system cannot tell a peak, and nothing has run
            trainer.train()
    steps = args.max_steps
    if steps < 1:
        steps = math.ceil(args.num_train_epochs * max(len(trainer.train_dataset) // episodes_per_step(args), 1))
    seconds = (timer.ends[-1] - timer.ends[-1 - TIMED]) / TIMED
    memory = "" if peak is None else f" The peak memory is {peak / 2**30:.1f} GiB."
    say(
        f"A step takes {seconds:.2f} s: {steps:,} steps take about {duration(steps * seconds)}, without evaluations and "
        f"checkpoints.{memory}"
    )


class StepTimes(TrainerCallback):
    """Notes when each step ended, in seconds."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the time, once the device has finished."""
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self.ends.append(time.perf_counter())


def _trial(args: TrainingArguments, folder: str) -> TrainingArguments:
    """The arguments for a few steps that leave nothing behind but a folder."""
    trial = copy.copy(args)
    trial.output_dir, trial.max_steps, trial.push_to_hub, trial.report_to = folder, WARM_UP + TIMED, False, []
    trial.save_strategy = trial.eval_strategy = trial.logging_strategy = IntervalStrategy.NO
    trial.save_minutes, trial.eval_on_start, trial.load_best_model_at_end = None, False, False
    trial.logging_first_step = False
    return trial


@contextmanager
def _once(work: Callable[[], object]) -> Iterator[Callable[[], object]]:
    yield work


def _written_tokens(batch: Mapping[str, Any]) -> int:
    """The most tokens of a chat that a read finds in its memory."""
    return max((int(batch[name]["written"].max()) for name, view in views_in(batch).items() if view.filled), default=0)


def _passes(batch: Mapping[str, Any], tokenizer: Any, weighing: Weighing, written: bool) -> Iterator[Text]:
    """The passes of one episode: a heading for each, then its text."""
    told = _written_tokens(batch) if written else 0
    if told:
        ids, segments = batch["chats"]["input_ids"][0, :told], batch["chats"].get("segment_ids")
        at_once = "" if segments is None else ", each ⟦segment⟧ at once"
        yield Text(f"Written to the memory, {told} tokens{at_once}:", style="bold")
        numbers = [-1] * told if segments is None else segments[0, :told].tolist()
        yield _shown(tokenizer, ids, [(number, frozenset([SEGMENT] if number >= 0 else [])) for number in numbers])
    for name, view in views_in(batch).items():
        read = batch[name]
        answers = view.target == "history" or (view.target == "answer" and weighing.answers > 0)
        trained, compared = (read["labels"] != IGNORED) & answers, taught_tokens(read, view, weighing)
        for row, tokens in enumerate(read["attention_mask"].sum(1).tolist()):
            flags = torch.stack([trained[row, :tokens], compared[row, :tokens]])
            yield Text(_heading(name, view, tokens, int(read["written"][row]), flags.sum(1).tolist(), written), style="bold")
            yield _shown(tokenizer, read["input_ids"][row, :tokens], [(None, _kinds(*pair)) for pair in flags.T.tolist()])


def _kinds(trained: bool, compared: bool) -> frozenset[str]:
    return frozenset([*([TRAINED] if trained else []), *([COMPARED] if compared else [])])


def _heading(name: str, view: View, tokens: int, told: int, counts: Sequence[int], written: bool) -> str:
    memory = f"with {told} tokens in memory" if view.filled else "with an empty memory"
    if view.another:
        memory = "with the memory of the next episode in the batch"
    trained, compared = counts
    teacher = "the bare backbone" if view.target == "backbone" else "the backbone with the history in its context"
    does = [f"trained on the {trained} ⟦marked⟧"] if trained else []
    does += [f"predictions after the {compared} ⟨marked⟩ compared with {teacher}"] if compared else []
    read = f"Read in the view {name}, {memory}" if written else "Read without the history"
    return f"{read}, {tokens} tokens; {', '.join(does)}:"


def _shown(tokenizer: Any, ids: Tensor, marks: Sequence[Mark]) -> Text:
    """Tokens as text, with brackets around those that are marked; a long text loses its middle."""
    if len(ids) <= MOST_TOKENS:
        return _marked(tokenizer, ids.tolist(), marks)
    half = MOST_TOKENS // 2
    left_out = Text(f" … {len(ids) - 2 * half:,} tokens are not shown … ", style="dim")
    first, last = ids[:half].tolist(), ids[-half:].tolist()
    return _marked(tokenizer, first, marks[:half]) + left_out + _marked(tokenizer, last, marks[-half:])


def _marked(tokenizer: Any, ids: Sequence[int], marks: Sequence[Mark]) -> Text:
    text = Text()
    for (_, kinds), run in groupby(zip(ids, marks, strict=True), key=lambda pair: pair[1]):
        brackets = [BRACKETS[kind] for kind in sorted(kinds)]
        decoded = printable(tokenizer.decode([one for one, _ in run], skip_special_tokens=False))
        opened, closed = "".join(one[0] for one in brackets), "".join(one[1] for one in reversed(brackets))
        text.append(f"{opened}{decoded}{closed}", style=brackets[0][2] if brackets else "")
    return text
