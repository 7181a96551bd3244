"""Aggregates the runs of a study: the recall and capacity of every variant, and the law of capacities."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from deltamem.evaluation.recall import Setting
from deltamem.study.estimates import Estimate, PowerLaw, capacity, power_law
from deltamem.study.grid import Curve, Grid, Variant
from deltamem.study.measurement import Measurement
from deltamem.study.results import Record

FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class VariantFigures:
    """The measurements of one variant.

    Args:
        variant: the variant.
        recalls: recall over the finished seeds, by measurement and setting.
        chances: the recall of guessing, by measurement.
        memory_bytes: the size of a memory.
        trained_parameters: their number; 0 if an already trained adapter was measured.
        losses: the final training loss of each seed.
    """

    variant: Variant
    recalls: Mapping[tuple[Measurement, Setting], Estimate]
    chances: Mapping[Measurement, float]
    memory_bytes: int
    trained_parameters: int
    losses: Sequence[float]

    @property
    def memory_entries(self) -> int:
        """Number of entries in a memory: r² × layers × states."""
        return self.memory_bytes // FLOAT32

    @property
    def capacity(self) -> float | None:
        """The capacity of the mean recall (see `estimates.capacity`) in the first series over numbers of facts."""
        over_facts = series(self.chances, "facts")
        if not over_facts:
            return None
        recalls = {measurement.facts: self.recalls[measurement, "memory"].mean for measurement in over_facts[0]}
        return capacity(recalls, self.chances[over_facts[0][0]])

    def summary(self) -> dict[str, Any]:
        """The variant as JSON-serialisable data."""
        return {
            "variant": self.variant.label,
            "changed": self.variant.changed,
            "seeds": max(len(estimate.values) for estimate in self.recalls.values()),
            "memory_bytes": self.memory_bytes,
            "trained_parameters": self.trained_parameters,
            "final_losses": self.losses,
            "capacity": self.capacity,
            "recall": [
                {
                    **asdict(measurement),
                    "setting": setting,
                    "mean": recall.mean,
                    "margin": recall.margin,
                    "by_seed": recall.values,
                    "chance": self.chances[measurement],
                }
                for (measurement, setting), recall in self.recalls.items()
            ],
        }


@dataclass(frozen=True)
class CurveFigures:
    """A curve with its measurements; variants without a finished run are left out."""

    curve: Curve
    variants: Sequence[VariantFigures]

    @property
    def law(self) -> PowerLaw | None:
        """The growth of capacity with the number of entries in a memory; None unless at least three sizes have a capacity."""
        points = [(figures.memory_entries, figures.capacity) for figures in self.variants]
        known = [(size, facts) for size, facts in points if facts is not None]
        return power_law([size for size, _ in known], [facts for _, facts in known])

    def summary(self) -> dict[str, Any]:
        """The curve as JSON-serialisable data."""
        return {
            "varied": self.curve.varied,
            "variants": [figures.summary() for figures in self.variants],
            "capacity_law": asdict(self.law) if self.law else None,
        }


def curve_figures(grid: Grid, records: Iterable[Record]) -> dict[str, CurveFigures]:
    """Compute the figures of every curve of a grid, by name; runs of other grids are ignored."""
    done = {_key(record["run"]): record for record in records}

    def of_variant(variant: Variant) -> Iterable[VariantFigures]:
        runs = [done.get(_key(grid.run(variant, seed).resolved)) for seed in grid.seeds]
        found = [record for record in runs if record is not None]
        return [_variant_figures(grid, variant, found)] if found else []

    return {
        curve.name: CurveFigures(curve, [figures for variant in curve.variants for figures in of_variant(variant)])
        for curve in grid.curves
    }


def series(measurements: Iterable[Measurement], over: Literal["facts", "tokens_since"]) -> list[list[Measurement]]:
    """Group measurements that differ only in `over`, sorted by it; groups of one are dropped."""
    groups: dict[str, list[Measurement]] = defaultdict(list)
    for measurement in measurements:
        groups[_key({name: value for name, value in asdict(measurement).items() if name != over})].append(measurement)
    return [sorted(group, key=lambda each: int(getattr(each, over))) for group in groups.values() if len(group) > 1]


def _variant_figures(grid: Grid, variant: Variant, records: Sequence[Record]) -> VariantFigures:
    recalls = {
        (measurement, setting): Estimate(tuple(record["figures"][place]["recall"][setting] for record in records))
        for place, measurement in enumerate(grid.measure)
        for setting in grid.settings
    }
    first = records[0]
    return VariantFigures(
        variant,
        recalls,
        {measurement: first["figures"][place]["chance"] for place, measurement in enumerate(grid.measure)},
        first["memory_bytes"],
        first["trained_parameters"],
        [record["final_loss"] for record in records if record["final_loss"] is not None],
    )


def _key(options: Any) -> str:
    return json.dumps(options, sort_keys=True)
