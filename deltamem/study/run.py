"""Carries out one run of a study: trains an adapter and measures its memory."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from transformers import set_seed

from deltamem.adapter.files import backbone_of
from deltamem.config import DeltaMemConfig
from deltamem.evaluation.recall import RecallTest
from deltamem.study.grid import Run
from deltamem.study.results import Record
from deltamem.study.small_backbone import SmallBackbone, small_backbone
from deltamem.study.training import StudyTraining, train

PACKAGES = ("deltamem", "torch", "transformers", "peft")


def identity(run: Run) -> str:
    """A short hash of everything that determines a run's outcome."""
    return hashlib.sha256(json.dumps(run.resolved, sort_keys=True).encode()).hexdigest()[:12]


def carry_out(run: Run, folder: Path, step: Callable[[float], None]) -> Record:
    """Train an adapter, save it, and measure its memory.

    Args:
        run: the run.
        folder: the study's folder; a new adapter goes into its `adapters/IDENTITY`.
        step: called with the fraction done.

    Returns:
        The run's record for the results.
    """
    start = time.perf_counter()
    saved = folder / "adapters" / identity(run)
    model, tokenizer, loss = _trained(run, saved, lambda share: step(share / 2)) if run.variant.trained else _loaded(run)
    trained = time.perf_counter()
    test = RecallTest(model.eval(), tokenizer, system=run.system)
    figures = []
    for number, measurement in enumerate(run.measure, 1):
        figures.append(measurement.figures(test, run.settings, run.seed))
        step(0.5 + number / len(run.measure) / 2)
    return {
        "id": identity(run),
        "variant": run.variant.label,
        "seed": run.seed,
        "run": run.resolved,
        "figures": figures,
        "final_loss": loss,
        "trained_parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "memory_bytes": model.new_memory().nbytes,
        "training_s": round(trained - start, 1),
        "measuring_s": round(time.perf_counter() - trained, 1),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _trained(run: Run, saved: Path, step: Callable[[float], None]) -> tuple[PeftModel, Any, float | None]:
    backbone, tokenizer = _load(run)
    set_seed(run.seed)  # seeds the adapter's weights
    model = get_peft_model(backbone, DeltaMemConfig(task_type="CAUSAL_LM", **run.variant.adapter))
    training = StudyTraining(run.variant.training)
    loss = train(model, tokenizer, training, run.system, training.arguments(saved, run.seed, run.placement.device), step)
    model.save_pretrained(saved)
    return model, tokenizer, loss


def _loaded(run: Run) -> tuple[PeftModel, Any, None]:
    backbone, tokenizer = _load(run)
    return PeftModel.from_pretrained(backbone, run.variant.adapter["path"]), tokenizer, None


def _load(run: Run) -> tuple[Any, Any]:
    """Load a run's frozen backbone and its tokenizer."""
    if isinstance(run.backbone, SmallBackbone):
        return run.placement.load(str(small_backbone(run.backbone)))
    return run.placement.load(run.backbone or backbone_of(run.variant.adapter["path"]))
