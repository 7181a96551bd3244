"""The settings of a benchmark, validated before anything is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from deltamem.backbones import Placement
from deltamem.benchmark.ratios import FEWEST_RUNS
from deltamem.benchmark.shapes import SHAPES, check_model_name
from deltamem.config import VARIANTS
from deltamem.io.files import check_regular

DEFAULT_SHAPE = "smollm2-135m"
PLOT_SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Settings:
    """What `deltamem bench` measures; the command's options have the same names.

    Args:
        model: a shape, a folder or a Hub name. If None: the adapter's own backbone, else `DEFAULT_SHAPE`, or no model at all if
            only the rule is timed.
        adapter: a trained adapter, a folder or a Hub name; None for a new one.
        variant: the variant of a new adapter; None for "tsw".
        device, dtype: where and in what precision the backbone runs.
        prompt: prompt lengths in tokens.
        new_tokens: number of tokens to decode.
        batch: number of rows, each with its own memory.
        runs: timed runs of every workload.
        train: also time a training step.
        rule: also time the delta rule alone.
        start: also time how long commands and imports take to start.
        serve: also time how the server answers several users at once.
        written: also time decoding after these numbers of tokens were written.
        compiler: also time decoding with a static cache, eager and compiled by this backend of torch.compile.
        profile: also profile the operations.
        plot: a file to draw the figures to.

    Raises:
        ValueError: something cannot be measured; the message says what can.
    """

    model: str | None = None
    adapter: str | None = None
    variant: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    prompt: Sequence[int] = (512,)
    new_tokens: int = 32
    batch: int = 1
    runs: int = 15
    train: bool = False
    rule: bool = False
    start: bool = False
    serve: bool = False
    written: Sequence[int] = ()
    compiler: str | None = None
    profile: bool = False
    plot: Path | None = None

    def __post_init__(self) -> None:
        if self.model is not None:
            check_model_name(self.model)
        self._check_adapter()
        Placement(self.dtype, self.device)  # rejects what this machine lacks
        for name, values in (("prompt", self.prompt), ("written", self.written)):
            for value in values:
                self._check_least(name, value, 1)
        if not self.prompt:
            raise ValueError("--prompt is missing; give at least one length in tokens")
        for name, value, least in (("new-tokens", self.new_tokens, 1), ("batch", self.batch, 1)):
            self._check_least(name, value, least)
        self._check_least("runs", self.runs, FEWEST_RUNS, ": with fewer there is no interval of the median")
        if self.compiler is not None:
            self._check_choice("compile", self.compiler, torch._dynamo.list_backends(exclude_tags=()))
        self._check_plot()

    @property
    def needs_model(self) -> bool:
        """Whether anything is timed that needs a model."""
        of_model = self.model or self.adapter or self.train or self.written or self.compiler or self.profile or self.serve
        return bool(of_model) or not (self.rule or self.start)

    @property
    def most_tokens(self) -> int:
        """The longest text that the model will read."""
        return max(self.prompt) + self.new_tokens

    def _check_adapter(self) -> None:
        if self.adapter is not None and self.variant is not None:
            raise ValueError(
                f"--adapter {self.adapter!r} and --variant {self.variant!r} exclude each other: a trained adapter has its own. "
                "Give one of them"
            )
        if self.adapter is not None and self.model in SHAPES:
            raise ValueError(
                f"--adapter {self.adapter!r} needs the weights it was trained on, but --model {self.model!r} is a shape with "
                "random ones. Leave --model out to get the adapter's own backbone, or give --variant instead of --adapter"
            )
        if self.variant is not None:
            self._check_choice("variant", self.variant, VARIANTS)

    def _check_plot(self) -> None:
        if self.plot is None:
            return
        if self.plot.suffix not in PLOT_SUFFIXES:
            raise ValueError(f"--plot {str(self.plot)!r} is not accepted; give a file that ends in {', '.join(PLOT_SUFFIXES)}")
        if not self.plot.parent.is_dir():
            raise ValueError(f"--plot {str(self.plot)!r}: there is no folder {str(self.plot.parent)!r}; make it first")
        check_regular(self.plot)
        if importlib.util.find_spec("matplotlib") is None:
            raise ValueError("--plot needs matplotlib, which is not installed; run: pip install 'deltamem[plot]'")

    @staticmethod
    def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
        if value not in choices:
            raise ValueError(f"--{name} {value!r} is not accepted; choose one of {', '.join(choices)}")

    @staticmethod
    def _check_least(name: str, value: int, least: int, why: str = "") -> None:
        if value < least:
            raise ValueError(f"--{name} {value} is not accepted; give at least {least}{why}")
