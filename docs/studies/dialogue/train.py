"""Trains a memory that knows what was said in a dialogue, and leaves other answers alone: README.md."""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import signal
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from episodes import Item, Maker, Read, Sources, own_answers
from layers import FrozenBackbone, PrefixedLayers, UpperLayers, Words
from measure import HeldOut
from peft import LoraConfig, PrefixTuningConfig
from pools import Endless, Phase, Pools
from selective import asked_items, open_at_answers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from deltamem import DeltaMemConfig
from deltamem.backbones import SMOLLM2
from deltamem.chat.tokens import render
from deltamem.memory.snapshot import Snapshot
from deltamem.training.episodes import EpisodeCollator, EpisodeEncoder
from deltamem.training.start import start_from_attention

# In a step: dialogues, histories of facts with up to two questions each, reads with another's memory, and questions that
# have in their context what the memory has.
TALKS, HISTORIES, OTHER_TALKS, OTHER_QUESTIONS, IN_CONTEXT = 11, 6, 4, 3, 2
QUESTIONS_EACH = 2
FIRST_TALKS = 14  # in a step that has dialogues alone
# A memory binds far sooner to dialogues alone, and then to a few facts while little else weighs: the shares of the time at
# which these phases end. Then the weights move to the last ones, which they reach at a later share.
UNTIL = {Phase.TALK: 0.2, Phase.FEW_FACTS: 0.6}
LAST_WEIGHTS_FROM = 0.75
# Of so many rows of the memory, one keeps what it holds for the next step, which writes more to it; with this probability,
# such a row is kept again. The questions of its facts are asked again after other histories, at most so many in a step.
FULL_EVERY, KEPT, EARLIER = 3, 0.85, 5
LONG = 64  # tokens from which on texts are read apart from shorter ones
AHEAD = 12  # how many new ones the worker prepares
ANSWERS, PASSAGES = 480, 128  # the bare backbone's answers to questions, and to those with a passage
START_CHATS = {"chitchat": 16, "sgd": 8, "qmsum": 4}
FIRST_WEIGHTS = {
    "talk": 1.5,
    "questions": 1.5,
    "earlier questions": 0.5,
    "other talk": 1.0,
    "other questions": 0.1,
    "in context": 1.0,
    "unrelated": 1.5,
}
LAST_WEIGHTS = {**FIRST_WEIGHTS, "questions": 0.8, "other questions": 0.5, "unrelated": 7.0}
OF_FACTS = 0.5  # of the unrelated chats: with the memory of a history of facts, the others with any
# How much a token of a dialogue counts: by how much its history changes what the bare backbone says there, in nats.
CHANGED = (0.25, 8.0)
CLIP, WARMUP_STEPS, LAST_RATE = 1.0, 20, 0.05
SAVE_S = 240.0

logger = logging.getLogger("dialogue")


@dataclass(frozen=True)
class Asked:
    """Texts to read in one pass, with the rows of the memory that they read.

    Args:
        kind: a term of the loss, as `FIRST_WEIGHTS` names it.
        read: the text.
        memory: the index of the history whose memory is read.
    """

    kind: str
    read: Read
    memory: int


@dataclass
class Step:
    """What a step trains on.

    Args:
        histories: what is written to each row of the memory, `[L, T, W]` each.
        lasting: by row, the questions that have the same answers after other dialogues.
        asked: dialogues and questions, which follow the template's head.
        unrelated: texts to leave alone.
        headed: whether these follow the template's head as well.
    """

    histories: list[Tensor] = field(default_factory=list)
    lasting: dict[int, list[Read]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    unrelated: list[Asked] = field(default_factory=list)
    headed: bool = True

    def add(self, kind: str, item: Item, reads: Sequence[Read]) -> list[Asked]:
        """Write an item's history to the next row, and read some of its texts, the first of which says where it ends."""
        item.uses += 1
        new = [Asked(kind, read, len(self.histories)) for read in reads]
        if item.lasting:
            self.lasting[len(self.histories)] = item.reads
        self.histories.append(item.before(reads[0]))
        self.asked += new
        return new

    @property
    def passes(self) -> list[tuple[list[Asked], bool]]:
        """The texts to read together, which are of about the same length, with whether they follow the template's head."""
        headed = self.asked + self.unrelated if self.headed else self.asked
        long = [one for one in headed if len(one.read.below) > LONG]
        short = [one for one in headed if len(one.read.below) <= LONG]
        without = [] if self.headed else self.unrelated
        return [(texts, head) for texts, head in ((short, True), (long, True), (without, False)) if texts]


@dataclass
class Trainer:
    """Trains the upper layers' memory.

    Args:
        upper: the layers.
        pools: the items to train on.
        options: of the command line.
    """

    upper: UpperLayers
    pools: Pools
    options: argparse.Namespace

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.upper.weights.values(), weight_decay=0.0, betas=(0.9, 0.99))
        self.step, self.seconds = 0, 0.0
        self.rng = random.Random(self.options.seed)
        self.before: Snapshot | None = None  # what the rows hold before they write
        self.earlier: dict[int, list[Read]] = {}  # of the rows that hold something: the questions to ask again

    @property
    def progress(self) -> float:
        """The share of the time that is over."""
        return min(self.seconds / (60 * self.options.minutes), 1.0)

    def train_step(self) -> dict[str, float]:
        """Take one step; return the terms of the loss."""
        started = time.process_time()
        self.pools.phase.fill_(self.phase)
        self.pools.refill()
        rate = LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * self.progress)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * rate * min(1.0, (self.step + 1) / WARMUP_STEPS)
        terms = self._terms()
        weights = self._weights()
        self.optimizer.zero_grad()
        torch.stack([weights[name] * term for name, term in terms.items()]).sum().backward()
        nn.utils.clip_grad_norm_(self.upper.weights.values(), CLIP, error_if_nonfinite=True)
        self.optimizer.step()
        self.step += 1
        self.seconds += time.process_time() - started
        return {name: float(term.detach()) for name, term in terms.items()}

    def save(self, file: Path) -> None:
        """Save everything that a continued run needs, replacing the file at once."""
        file.parent.mkdir(parents=True, exist_ok=True)
        weights = {name: weight.data for name, weight in self.upper.weights.items()}
        part = file.with_suffix(".part")
        torch.save(
            {"weights": weights, "optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds}, part
        )
        part.replace(file)

    @torch.no_grad()
    def load(self, file: Path) -> None:
        """Go on from a saved run."""
        saved = torch.load(file)
        for name, weight in self.upper.weights.items():
            weight.copy_(saved["weights"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds = saved["step"], saved["seconds"]
        self.rng.seed(f"{self.options.seed}-{self.step}")

    @property
    def phase(self) -> Phase:
        """What to train on: everything from the start if the training goes on from an adapter."""
        if self.options.adapter is not None:
            return Phase.EVERYTHING
        return next((phase for phase, until in UNTIL.items() if self.progress < until), Phase.EVERYTHING)

    def _weights(self) -> dict[str, float]:
        """How much the terms of the loss weigh."""
        if self.options.adapter is not None:
            return LAST_WEIGHTS
        start = UNTIL[Phase.FEW_FACTS]
        gone = min(max(self.progress - start, 0.0) / (LAST_WEIGHTS_FROM - start), 1.0)
        return {kind: first + (LAST_WEIGHTS[kind] - first) * gone for kind, first in FIRST_WEIGHTS.items()}

    def _terms(self) -> dict[str, Tensor]:
        """The terms of the loss: the mean over a step's tokens of each kind."""
        step = self._draw()
        memory = self.upper.write(step.histories, self.before)
        earlier = {row: reads for row, reads in self.earlier.items() if reads and not TALKS <= row < TALKS + HISTORIES}
        again = self.rng.sample([*earlier], min(EARLIER, len(earlier)))
        step.asked += [Asked("earlier questions", self.rng.choice(earlier[row]), row) for row in again]
        if memory is not None and self.phase == Phase.EVERYTHING:
            self._keep(memory, {**earlier, **step.lasting})
        losses: dict[str, list[Tensor]] = defaultdict(list)
        for texts, headed in step.passes:
            hidden = self._read(texts, memory, headed)
            rows_of: dict[str, dict[int, Read]] = defaultdict(dict)
            for row, one in enumerate(texts):
                rows_of[one.kind][row] = one.read
            for kind, reads in rows_of.items():
                losses[kind].append(self._losses(kind, reads, hidden))
        return {kind: torch.cat(parts).mean() for kind, parts in losses.items()}

    def _draw(self) -> Step:
        """Draw what a step trains on, without the questions of earlier steps."""
        step = Step()
        if self.phase == Phase.TALK:
            self._draw_talks(step, FIRST_TALKS)
            self._draw_unrelated(step, of_facts=0.0)
            return step
        self._draw_talks(step, TALKS)
        self._draw_questions(step)
        self._draw_unrelated(step, OF_FACTS)
        for item in self.rng.sample(self.pools.in_context, IN_CONTEXT):
            step.add("in context", item, item.reads)
        return step

    def _draw_talks(self, step: Step, count: int) -> None:
        """Draw dialogues, some of which also read another one's memory."""
        for item in self.rng.sample(self.pools.talking, count):
            step.add("talk", item, self.rng.sample(item.reads, 1))
        step.asked += [Asked("other talk", one.read, (one.memory + 1) % count) for one in step.asked[:OTHER_TALKS]]

    def _draw_questions(self, step: Step) -> None:
        """Draw histories of facts with questions about them, some of which also read another history's memory."""
        rng, questions = self.rng, list[Asked]()
        for item in rng.sample(self.pools.asking, HISTORIES):
            questions += step.add("questions", item, rng.sample(item.reads, min(QUESTIONS_EACH, len(item.reads))))
        step.asked += [
            Asked("other questions", one.read, TALKS + (one.memory - TALKS + 1) % HISTORIES)
            for one in rng.sample(questions, min(OTHER_QUESTIONS, len(questions)))
        ]

    def _draw_unrelated(self, step: Step, of_facts: float) -> None:
        """Draw texts to leave alone, each with the memory of one of the histories.

        Args:
            step: has the histories.
            of_facts: how likely the memories of chats are those of histories of facts.
        """
        step.headed, texts = self.rng.choice(self.pools.unrelated)
        first = TALKS if step.headed and self.rng.random() < of_facts else 0
        rows = self.rng.sample(range(first, len(step.histories)), len(texts))
        step.unrelated = [Asked("unrelated", read, row) for read, row in zip(texts, rows, strict=True)]

    def _keep(self, memory: Snapshot, questions: Mapping[int, list[Read]]) -> None:
        """Choose the rows that go on in the next step, and where: facts are followed by dialogues, and dialogues by facts.

        Args:
            memory: what the rows hold.
            questions: by row, the questions about what it holds that can be asked again.
        """
        kept = [row for row in self.earlier if self.rng.random() < KEPT]
        others = [row for row in range(memory.rows) if row not in self.earlier]
        kept += self.rng.sample(others, memory.rows // FULL_EVERY - len(kept))
        places = self.rng.sample(range(memory.rows), len(kept))
        source, full = torch.zeros(memory.rows, dtype=torch.long), torch.zeros(memory.rows, dtype=torch.bool)
        source[places], full[places] = torch.tensor(kept), True
        self.before = memory.select(source).map_rows(lambda tensor, dim: tensor.detach() * _along(full, dim, tensor.ndim))
        self.earlier = {place: questions.get(row, []) for place, row in zip(places, kept, strict=True)}

    def _read(self, asked: Sequence[Asked], memory: Snapshot | None, headed: bool) -> Tensor:
        rows = torch.tensor([one.memory for one in asked])
        return self.upper.read([one.read.below for one in asked], memory and memory.select(rows), headed)

    def _losses(self, kind: str, reads: Mapping[int, Read], hidden: Tensor) -> Tensor:
        """The loss at each asked token of texts of one kind, by their row in the last hidden states, `[B, T, W]`."""
        found = _at(hidden, {row: read.asked for row, read in reads.items()})
        if kind in ("questions", "earlier questions"):
            labels = torch.cat([read.labels[read.asked] for read in reads.values()])
            return F.cross_entropy(self.upper.logits(found), labels, reduction="none")
        if kind.startswith("other"):
            return self.upper.divergence(found, Words.likeliest(self.upper.logits(self._bare([*reads.values()]))))
        expected = Words.joined([read.expected.at(read.asked) for read in reads.values() if read.expected is not None])
        losses = self.upper.divergence(found, expected)
        if kind == "talk":
            changed = self.upper.divergence(self._bare([*reads.values()]), expected).clamp(*CHANGED)
            losses = losses * changed / changed.mean()
        return losses

    @torch.no_grad()
    def _bare(self, reads: Sequence[Read]) -> Tensor:
        """The bare backbone's last hidden states at the asked tokens of texts that follow the head, `[positions, W]`."""
        hidden = self.upper.read([read.below for read in reads], None, headed=True, bare=True)
        return _at(hidden, {row: read.asked for row, read in enumerate(reads)})


def _along(rows: Tensor, dim: int, dims: int) -> Tensor:
    """A vector with this dimension of a tensor with so many."""
    return rows.view(*(-1 if place == dim else 1 for place in range(dims)))


def _at(hidden: Tensor, places: Mapping[int, Tensor]) -> Tensor:
    """Hidden states `[B, T, W]` at some positions of some rows, `[positions, W]`."""
    index = torch.cat([row * hidden.shape[1] + place for row, place in places.items()])
    return hidden.flatten(0, 1).index_select(0, index)


def start(upper: UpperLayers, talks: Mapping[str, Sequence[Any]]) -> None:
    """Start from the frozen attention's own projections."""
    encode = EpisodeCollator(EpisodeEncoder(upper.backbone.tokenizer, max_write_tokens=256, talk_tokens=64, whole=True))
    rng = random.Random(1)
    sources = [source for source, count in START_CHATS.items() for _ in range(count)]
    reads = [{"view": "memory"}] * 2
    chats = [{**rng.choice(talks[source]), "seed": place, "reads": reads} for place, source in enumerate(sources)]
    start_from_attention(upper.whole, [encode(chats[first : first + 4]) for first in range(0, len(chats), 4)])
    upper.pull()


def upper_layers(backbone: FrozenBackbone, options: argparse.Namespace) -> UpperLayers:
    """The layers with what the command line asks for."""
    if options.prefix:
        return PrefixedLayers(backbone, PrefixTuningConfig(num_virtual_tokens=options.prefix, task_type="CAUSAL_LM"))
    if options.lora:
        modules = ["q_proj", "o_proj"]  # as a memory's corrections
        lora = LoraConfig(r=options.lora, lora_alpha=2 * options.lora, target_modules=modules, task_type="CAUSAL_LM")
        return UpperLayers(backbone, lora)
    size = {"r": options.r, "alpha": 2.0 * options.r, "num_states": options.num_states}
    return UpperLayers(backbone, DeltaMemConfig(**size, decay=options.decay, task_type="CAUSAL_LM"))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the adapter and the run; an interrupted run goes on")
    parser.add_argument("--data", type=Path, required=True, help="folder with the files that README.md names")
    parser.add_argument("--model", default=SMOLLM2, help="the backbone: a folder or a name on the Hub")
    parser.add_argument("--adapter", type=Path, help="folder of an adapter with the same options to start from")
    parser.add_argument("--first-layer", type=int, default=20, help="the first layer with a memory; all above have one")
    parser.add_argument("--r", type=int, default=16, help="width of a state")
    parser.add_argument("--num-states", type=int, default=4, help="states in each layer")
    parser.add_argument("--decay", default="learned", choices=("coupled", "learned", "none"), help="what a write keeps")
    parser.add_argument("--lora", type=int, default=0, help="train a LoRA of this rank in place of a memory, as a control")
    parser.add_argument("--prefix", type=int, default=0, help="train a prefix of so many tokens in its place, as a control")
    parser.add_argument("--learning-rate", type=float, default=1.2e-3, help="the peak")
    parser.add_argument("--minutes", type=float, default=120.0, help="time to train, without measuring")
    parser.add_argument("--measure-minutes", type=float, default=10.0, help="time between two measurements")
    parser.add_argument("--seed", type=int, default=0, help="seeds the data")
    return parser.parse_args()


def main() -> None:
    """Train, measure and save."""
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    backbone = FrozenBackbone(options.model, options.first_layer)
    upper = upper_layers(backbone, options)
    sources, maker = Sources(options.data), Maker(backbone, random.Random(7))
    held_out = HeldOut(maker, sources)
    checkpoint, figures = options.output / "run.pt", options.output / "figures.jsonl"
    answers = own_answers(backbone, sources.questions(maker.rng, ANSWERS, maker.words))
    passages = own_answers(backbone, sources.passages(maker.rng, PASSAGES))
    stopped = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0  # a continued run gets other items
    phase = torch.tensor(Phase.TALK).share_memory_()
    made = Endless(maker, sources, answers, passages, phase, f"{options.seed}-{stopped}")
    pools = Pools(iter(DataLoader(made, None, num_workers=1, prefetch_factor=AHEAD)), phase)
    trainer = Trainer(upper, pools, options)
    if checkpoint.exists():
        trainer.load(checkpoint)
    elif options.adapter is not None:
        upper.load(options.adapter)
    elif upper.memories:
        start(upper, sources.talks(held_out=False))
        if options.decay == "learned":
            open_at_answers(upper.memories, asked_items(maker, sources))
    elif isinstance(upper, PrefixedLayers):
        (meeting, *_) = sources.talks(held_out=False)["qmsum"]
        upper.start(backbone.ids(render(backbone.tokenizer, meeting["messages"]))[: options.prefix])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    saved = measured = time.monotonic()
    terms: dict[str, list[float]] = defaultdict(list)
    try:
        while trainer.progress < 1:
            with sdpa_kernel(SDPBackend.MATH):  # faster than the fused kernel for so few tokens, above all backwards
                found = trainer.train_step()
            for name, term in found.items():
                terms[name].append(term)
            now = time.monotonic()
            if trainer.step % 10 == 0:
                means = ", ".join(f"{name} {sum(each) / len(each):.3f}" for name, each in terms.items())
                logger.info("step %d, %.1f minutes: %s", trainer.step, trainer.seconds / 60, means)
                terms.clear()
            if now - saved > SAVE_S:
                trainer.save(checkpoint)
                saved = now
            if now - measured > 60 * options.measure_minutes or trainer.progress == 1:
                measures = {"step": trainer.step, "minutes": round(trainer.seconds / 60, 1), **held_out.measure(upper)}
                logger.info("%s", measures)
                with figures.open("a") as file:
                    file.write(json.dumps(measures) + "\n")
                measured = time.monotonic()
    finally:
        trainer.save(checkpoint)
        upper.save(options.output)


if __name__ == "__main__":
    main()
