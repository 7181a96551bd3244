"""Compares the bare backbone with the adapted model on every prompt, in every mode requested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from deltamem.benchmark.after_writing import memories_after
from deltamem.benchmark.interleave import take_turns
from deltamem.benchmark.operations import compare_operations
from deltamem.benchmark.ratios import Comparison
from deltamem.benchmark.settings import Settings
from deltamem.benchmark.twins import Adapted, Bare, Subject
from deltamem.benchmark.workloads import Decoding, Prefill, TrainingStep
from deltamem.workload import Workload, peak_bytes

Figures = dict[str, Any]


@dataclass(frozen=True)
class TwinComparison:
    """Measures two models that share their weights.

    Args:
        settings: what to measure.
        bare: the backbone.
        adapted: the same backbone with an adapter.
        progress: shows the turns.
    """

    settings: Settings
    bare: Bare
    adapted: Adapted
    progress: Progress

    def run(self) -> Figures:
        """Measure everything: the first prompt's figures, `prompts` with those of every prompt, and `written`."""
        prompts = [{"tokens": tokens, **self._of_prompt(tokens)} for tokens in self.settings.prompt]
        figures = {**prompts[0], "prompts": prompts}
        if self.settings.written:
            figures["written"] = self._written()
        return figures

    def _of_prompt(self, tokens: int) -> Figures:
        prompt, settings = self._prompt(tokens), self.settings
        name = f"{tokens:,} tokens"
        decode = self._decodings(prompt)
        figures = {
            "prefill": self._compare(f"prefill, {name}", [Prefill(subject, prompt) for subject in self._subjects]),
            "decode": self._compare(f"decoding after {name}", decode, parts=settings.new_tokens),
        }
        steps = [TrainingStep(subject, prompt) for subject in self._subjects]
        if settings.train:
            figures["train"] = self._compare(f"training step, {name}", steps)
            for side in ("base", "adapted"):
                figures["train"][f"{side}_tokens_per_second"] = prompt.numel() / figures["train"][f"{side}_ms"] * 1e3
        if settings.compiler is not None:
            figures |= self._static(prompt, decode, settings.compiler)
        if settings.profile:
            profiled: dict[str, Sequence[Workload]] = {
                "prefill": [Prefill(subject, prompt) for subject in self._subjects],
                "decode": decode,
                **({"train": steps} if settings.train else {}),
            }
            figures["profile"] = {phase: compare_operations(works, self._device) for phase, works in profiled.items()}
        return figures

    def _static(self, prompt: Tensor, dynamic: list[Decoding], compiler: str) -> Figures:
        """Measure decoding with a static cache, eager and compiled, and check that both generate the dynamic cache's tokens."""
        # With CUDA graphs if available.
        mode = "reduce-overhead" if compiler == "inductor" and self._device.type == "cuda" else None
        compiled = [torch.compile(subject.model, backend=compiler, mode=mode) for subject in self._subjects]
        figures = {}
        for key, forwards in (("decode_static", [None, None]), ("decode_compiled", compiled)):
            decode = self._decodings(prompt, static=True, forwards=forwards)
            name = f"{key.replace('_', ', ')}, {prompt.shape[1]:,} tokens"
            figures[key] = self._compare(name, decode, parts=self.settings.new_tokens)
            pairs = zip(decode, dynamic, strict=True)
            figures[key]["same_tokens"] = all(one.tokens == other.tokens for one, other in pairs)
        torch.compiler.reset()
        return figures

    def _written(self) -> list[Figures]:
        """Measure decoding after a short prompt, from memories with more and more tokens written to them."""
        prompt, longest = self._prompt(min(self.settings.prompt)), self.bare.model.config.max_position_embeddings
        rows = []
        for tokens, memory in memories_after(
            self.adapted, [*self.settings.written], self.settings.batch, longest, self.progress
        ):
            decode = self._decodings(prompt, memory=memory)
            figures = self._compare(f"decoding, {tokens:,} tokens written", decode, parts=self.settings.new_tokens)
            rows.append({"tokens": tokens, **figures, "memory_bytes": memory[0].nbytes})
        return rows

    def _decodings(self, prompt: Tensor, forwards: Any = (None, None), **options: Any) -> list[Decoding]:
        return [
            Decoding(subject, prompt, self.settings.new_tokens, forward=forward, **options)
            for subject, forward in zip(self._subjects, forwards, strict=True)
        ]

    def _compare(self, name: str, workloads: Sequence[Workload], parts: int = 1) -> Figures:
        """Time the bare and the adapted workload in turns, then measure their peak memory; times are divided by `parts`."""
        turns = take_turns(workloads, self.settings.runs, self._device, self.progress, name)
        figures = Comparison([(base / parts, adapted / parts) for base, adapted in turns]).figures()
        figures["memory_bytes"] = self.adapted.model.new_memory().nbytes
        for key, workload in zip(("base_peak_bytes", "peak_bytes"), workloads, strict=True):
            peak = peak_bytes(workload, self._device)
            if peak is not None:
                figures[key] = peak
        return figures

    def _prompt(self, tokens: int) -> Tensor:
        """Random token ids `[batch, tokens]`, the same in every run."""
        generator, vocabulary = torch.Generator().manual_seed(tokens), self.bare.model.config.vocab_size
        return torch.randint(vocabulary, (self.settings.batch, tokens), generator=generator, device="cpu").to(self._device)

    @property
    def _subjects(self) -> tuple[Subject, Subject]:
        return self.bare, self.adapted

    @property
    def _device(self) -> torch.device:
        return torch.device(self.settings.device)
