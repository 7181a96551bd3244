"""`deltamem bench`: loads the models and measures them."""

from __future__ import annotations

from typing import Any

import torch
from rich.progress import Progress

from deltamem.adapter.files import backbone_of
from deltamem.backbones import DTYPES
from deltamem.benchmark.comparison import TwinComparison
from deltamem.benchmark.machine import describe_machine
from deltamem.benchmark.rule_speed import time_rule
from deltamem.benchmark.serve_speed import time_serving
from deltamem.benchmark.settings import DEFAULT_SHAPE, Settings
from deltamem.benchmark.shapes import make_backbone
from deltamem.benchmark.start_up import time_start
from deltamem.benchmark.twins import Adapted, Bare, twins
from deltamem.config import VARIANTS, DeltaMemConfig
from deltamem.io.progress import work_progress
from deltamem.rule.kind import STATE


def run(settings: Settings) -> dict[str, Any]:
    """Run the benchmark; shows progress on standard error.

    Returns:
        `prefill`, `decode` and, if requested, `train`, `decode_static`, `decode_compiled` and `profile` of the first prompt;
        `prompts`, the same for every prompt; `written`, `serve` of the first prompt, `rule` and `start`, if requested; and what
        is needed to interpret them later. Whatever was not measured is absent.
    """
    device = torch.device(settings.device)
    figures = {**describe_machine(device), "batch": settings.batch, "runs": settings.runs}
    with work_progress() as progress:
        config = VARIANTS[settings.variant or "tsw"]()
        if settings.needs_model:
            bare, adapted = _load(settings, progress)
            config = adapted.config
            figures |= {"dtype": settings.dtype, "model": _describe_model(settings, bare), "new_tokens": settings.new_tokens}
            figures |= TwinComparison(settings, bare, adapted, progress).run()
            if settings.serve:
                figures["serve"] = time_serving(bare, adapted, settings.prompt[0], settings.new_tokens, settings.runs, progress)
        if settings.rule:
            states, r, _ = _states(config)
            sizes = (settings.batch, states, r)
            figures["rule"] = time_rule(settings.prompt, sizes, settings.runs, device, progress)
        if settings.start:
            figures["start"] = time_start(settings.runs, progress)
    return {**figures, "adapter": _describe_adapter(settings, config)}


def _load(settings: Settings, progress: Progress) -> tuple[Bare, Adapted]:
    name = _model_name(settings)
    task = progress.add_task(f"loading {name}", total=None)
    backbone = make_backbone(name, torch.device(settings.device), DTYPES[settings.dtype], settings.most_tokens)
    both = twins(backbone, settings.adapter, settings.variant or "tsw")
    progress.remove_task(task)
    return both


def _model_name(settings: Settings) -> str:
    if settings.model is not None:
        return settings.model
    if settings.adapter is None:
        return DEFAULT_SHAPE
    return backbone_of(settings.adapter)


def _describe_model(settings: Settings, bare: Bare) -> dict[str, Any]:
    config, parameters = bare.model.config, sum(weight.numel() for weight in bare.model.parameters())
    shape = {name: getattr(config, name) for name in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")}
    attention = config._attn_implementation
    return {"name": _model_name(settings), **shape, "parameters": parameters, "attention": attention}


def _describe_adapter(settings: Settings, config: DeltaMemConfig) -> dict[str, Any]:
    name = settings.adapter or settings.variant or "tsw"
    return {"name": name, "write": config.write, "states": _states(config)[0], "r": config.r}


def _states(config: DeltaMemConfig) -> tuple[int, ...]:
    """The shape of a layer's states under the delta rule: their number, r and r."""
    return config.memory_kind.state_parts[STATE]
