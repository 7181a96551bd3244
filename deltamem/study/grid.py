"""Grids: what to train, vary and measure; read from a YAML file and validated before anything runs."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from peft import PeftConfig

from deltamem.backbones import Placement
from deltamem.config import DeltaMemConfig
from deltamem.evaluation.recall import WITH_MEMORY, Setting
from deltamem.study.measurement import Measurement
from deltamem.study.options import Options, check_names, check_types, field_names, mapping
from deltamem.study.small_backbone import SmallBackbone
from deltamem.study.training import StudyTraining

PARTS = ("backbone", "system", "adapter", "training", "vary", "seeds", "measure", "settings")
ADAPTER_OPTIONS = (*(name for name in field_names(DeltaMemConfig) if name not in field_names(PeftConfig)), "path")


@dataclass(frozen=True)
class Variant:
    """One point of a curve: the base configuration with some settings changed.

    Args:
        adapter: fields of `DeltaMemConfig`, or the `path` of a trained adapter.
        training: options of the training; empty if a trained adapter is measured.
        changed: the settings that differ from the base, under their names in the grid, such as "adapter.r".
    """

    adapter: Options
    training: Options
    changed: Options

    @property
    def label(self) -> str:
        """The variant's name in tables and plots."""
        parts = {last_name(name): _shown(value) for name, value in _flat(self.changed).items()}
        return ", ".join(f"{name}={value}" for name, value in parts.items()) or "base"

    @property
    def resolved(self) -> Options:
        """All settings, including defaults; a trained adapter keeps its own."""
        if not self.trained:
            return {"adapter": self.adapter, "training": {}}
        config = DeltaMemConfig(**self.adapter)
        adapter = {name: getattr(config, name) for name in ADAPTER_OPTIONS if name != "path"}
        return {"adapter": adapter, "training": StudyTraining(self.training).resolved}

    @property
    def trained(self) -> bool:
        """Whether the study trains it, rather than only measuring it."""
        return "path" not in self.adapter


@dataclass(frozen=True)
class Curve:
    """Variants that are drawn together, and the settings that distinguish them."""

    name: str
    varied: tuple[str, ...]
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    backbone: str | SmallBackbone | None
    system: str | None
    variant: Variant
    seed: int
    measure: tuple[Measurement, ...]
    settings: tuple[Setting, ...]
    placement: Placement

    @property
    def resolved(self) -> Options:
        """Everything that determines the outcome; two runs are the same if this is equal.

        The device does not change the outcome. The dtype does, but is left out if it is the default, so that earlier runs still
        match.
        """
        made = {
            "backbone": {"small": asdict(self.backbone)} if isinstance(self.backbone, SmallBackbone) else self.backbone,
            "system": self.system,
            **self.variant.resolved,
            "seed": self.seed,
            "measure": [asdict(measurement) for measurement in self.measure],
            "settings": self.settings,
        }
        if self.placement.dtype != Placement.dtype:
            made["dtype"] = self.placement.dtype
        plain: Options = json.loads(json.dumps(made))  # in the form in which it is read back from a file
        return plain


@dataclass(frozen=True)
class Grid:
    """A declared study.

    Args:
        backbone: a folder, a Hub name, or a small one that is trained on first use; None for the trained adapters' own.
        system: the system prompt of all chats; None for the chat template's own.
        curves: what is varied, and how.
        seeds: seeds of the adapters, their training and the measurements.
        measure: the measurements of every run.
        settings: the memories to measure with.
        placement: the backbone's device and dtype.
    """

    backbone: str | SmallBackbone | None
    system: str | None
    curves: tuple[Curve, ...]
    seeds: tuple[int, ...]
    measure: tuple[Measurement, ...]
    settings: tuple[Setting, ...]
    placement: Placement = field(default_factory=Placement)

    def runs(self, only: str | None = None) -> list[Run]:
        """List every variant with every seed once; seeds vary slowest, so that all curves have results early.

        Args:
            only: the name of the only curve to run.

        Raises:
            ValueError: there is no such curve.
        """
        names = [curve.name for curve in self.curves]
        if only is not None and only not in names:
            raise ValueError(f"there is no curve {only!r}; this grid has: {', '.join(names)}")
        curves = [curve for curve in self.curves if only in (None, curve.name)]
        runs: dict[str, Run] = {}
        for seed, curve in itertools.product(self.seeds, curves):
            for variant in curve.variants:
                run = self.run(variant, seed)
                runs.setdefault(json.dumps(run.resolved, sort_keys=True), run)
        return [*runs.values()]

    def run(self, variant: Variant, seed: int) -> Run:
        """Create a run of this grid."""
        return Run(self.backbone, self.system, variant, seed, self.measure, self.settings, self.placement)


class Loader(yaml.SafeLoader):
    """A YAML loader that reads 4e-3 as a number, as YAML 1.2 does."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$"), list("-+.0123456789")
)


def read_grid(path: Path) -> Grid:
    """Read a grid and validate all of it.

    Raises:
        ValueError: the file is not YAML, a name is unknown (the message lists the known ones), or a value is not accepted.
        OSError: the file does not exist.
    """
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    try:
        return _grid(mapping("a grid", given))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _grid(given: Options) -> Grid:
    check_names("a grid", given, PARTS)
    adapter, training = (mapping(part, given.get(part)) for part in ("adapter", "training"))
    vary = {name: mapping(f"the curve {name!r}", curve) for name, curve in mapping("vary", given.get("vary")).items()}
    if isinstance(adapter.get("path"), list):
        vary["path"] = {"adapter.path": adapter.pop("path")}
    base = _variant({"adapter": adapter, "training": training}, {})
    curves = tuple(_curve(name, varied, base) for name, varied in vary.items()) or (Curve("base", (), (base,)),)
    needed = any(variant.trained for curve in curves for variant in curve.variants)
    return Grid(
        _backbone(given.get("backbone"), needed),
        _system(given.get("system")),
        curves,
        _seeds(given.get("seeds", [0])),
        tuple(_measurements(given.get("measure"))),
        _settings(given.get("settings", ["memory", "zero_memory", "shuffled_memory"])),
    )


def _backbone(given: Any, needed: bool) -> str | SmallBackbone | None:
    if isinstance(given, str) or (given is None and not needed):
        return given
    if not isinstance(given, dict) or [*given] != ["small"]:
        known = ", ".join(field_names(SmallBackbone))
        raise ValueError(f"backbone: {given!r} is not accepted; give a folder, a Hub name, or small: with any of {known}")
    options = mapping("backbone.small", given["small"])
    check_names("backbone.small", options, field_names(SmallBackbone))
    check_types("backbone.small", options, SmallBackbone)
    return SmallBackbone(**options)


def _system(given: Any) -> str | None:
    if given is not None and not isinstance(given, str):
        raise ValueError(f"system: {given!r} is not accepted; give a text")
    return given


def _curve(name: str, varied: Options, base: Variant) -> Curve:
    """Create a curve from all combinations of its settings' values."""
    if not varied:
        raise ValueError(
            f"the curve {name!r} varies nothing; give it a setting with a list of values, such as adapter.r: [4, 8]"
        )
    for setting, values in varied.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"the curve {name!r}: {setting}: {values!r} is not accepted; give a list of values")
    changes = (dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values()))
    return Curve(name, tuple(varied), tuple(_changed(base, change) for change in changes))


def _changed(base: Variant, change: Options) -> Variant:
    """Change settings of the base: "adapter.r" to a value, or "adapter" to several settings at once."""
    options: Options = {"adapter": dict(base.adapter), "training": dict(base.training)}
    for setting, value in change.items():
        part, _, name = setting.partition(".")
        if part not in options:
            raise ValueError(
                f"{setting!r} cannot be varied; give adapter.NAME or training.NAME with a list of values, or adapter or "
                "training with a list of {NAME: value, ...}"
            )
        options[part] |= {name: value} if name else mapping(setting, value)
    return _variant(options, change)


def _variant(options: Options, change: Options) -> Variant:
    adapter, training = options["adapter"], options["training"]
    check_names("adapter", adapter, ADAPTER_OPTIONS)
    if "path" in adapter:
        if len(adapter) > 1 or training or not isinstance(adapter["path"], str):
            raise ValueError(
                f"adapter.path: {adapter['path']!r} is a trained adapter, a folder or a Hub name: it has its own settings and "
                "is only measured. Leave out the others, and training"
            )
        return Variant(adapter, training, change)
    check_types("adapter", adapter, DeltaMemConfig)
    DeltaMemConfig(**adapter)
    StudyTraining(training)
    return Variant(adapter, training, change)


def _measurements(given: Any) -> Iterable[Measurement]:
    if not isinstance(given, list) or not given:
        raise ValueError(f"measure: {given!r} is not accepted; give a list of measurements, such as [{{facts: [1, 2, 4]}}]")
    for entry in given:
        options = mapping("measure", entry)
        check_names("measure", options, field_names(Measurement))
        lists = [value if isinstance(value, list) else [value] for value in options.values()]
        for values in itertools.product(*lists):
            point = dict(zip(options, values, strict=True))
            check_types("measure", point, Measurement)
            yield Measurement(**point)


def _seeds(given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not given or not all(type(seed) is int and seed >= 0 for seed in given):
        raise ValueError(f"seeds: {given!r} is not accepted; give a list of whole numbers from 0 up, such as [0, 1, 2]")
    return tuple(dict.fromkeys(given))


def _settings(given: Any) -> tuple[Setting, ...]:
    if not isinstance(given, list) or "memory" not in given or not all(setting in WITH_MEMORY for setting in given):
        raise ValueError(f"settings: {given!r} is not accepted; give memory and any other of {', '.join(WITH_MEMORY)}")
    return tuple(dict.fromkeys(given))


def last_name(setting: str) -> str:
    """A setting's name within its part of the grid: "r" for "adapter.r"."""
    return setting.rpartition(".")[2]


def _flat(changed: Options) -> Options:
    """Flatten changes of several settings at once into changes of single ones."""
    flat: Options = {}
    for name, value in changed.items():
        flat |= {f"{name}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _shown(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    between = "" if all(isinstance(part, str) for part in value) else "+"  # projections are letters
    return between.join(map(str, value))
