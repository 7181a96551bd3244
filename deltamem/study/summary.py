"""Formats the figures of a study as a Markdown page of tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deltamem.evaluation.recall import Setting
from deltamem.study.figures import CurveFigures, VariantFigures


def as_markdown(name: str, curves: dict[str, CurveFigures]) -> str:
    """Format tables of all curves: recall in percent, mean ± half the 95% interval over seeds.

    Args:
        name: the study's name.
        curves: the curves by name.
    """
    lines = [f"# {name}", "", "Recall in percent, mean ± half of the 95% interval over the seeds.", ""]
    for curve, figures in curves.items():
        lines += [f"## {curve}", "", *(_tables(figures) if figures.variants else ["No run is done.", ""])]
    return "\n".join(lines)


def _tables(figures: CurveFigures) -> Iterator[str]:
    for setting in dict.fromkeys(setting for _, setting in figures.variants[0].recalls):
        yield from _recall_table(figures.variants, setting)
    yield from _table(
        ["variant", "seeds", "bytes of a memory", "trained parameters", "final loss", "capacity, facts"],
        [_about(variant) for variant in figures.variants],
    )
    yield "Capacity: facts at which mean recall falls half way to chance; – where that is outside of what was measured."
    yield ""
    if figures.law is not None:
        law = figures.law
        yield (
            f"Law of {law.points} capacities: facts = {law.factor:.3g} · size^{law.exponent:.2f}, 95% interval of the exponent "
            f"{law.low:.2f} to {law.high:.2f}, R² = {law.r_squared:.2f}; size: r² · layers · states."
        )
        yield ""


def _recall_table(variants: Sequence[VariantFigures], setting: Setting) -> Iterator[str]:
    measurements = [*variants[0].chances]
    yield f"### {setting.replace('_', ' ')}"
    yield ""
    yield from _table(
        ["variant", *(measurement.described() for measurement in measurements)],
        [[v.variant.label, *(str(v.recalls[measurement, setting]) for measurement in measurements)] for v in variants]
        + [["chance", *(f"{100 * variants[0].chances[measurement]:.0f}" for measurement in measurements)]],
    )


def _about(figures: VariantFigures) -> list[str]:
    seeds = max(len(recall.values) for recall in figures.recalls.values())
    loss = f"{sum(figures.losses) / len(figures.losses):.2f}" if figures.losses else "–"
    capacity = "–" if figures.capacity is None else f"{figures.capacity:.1f}"
    return [
        figures.variant.label,
        str(seeds),
        f"{figures.memory_bytes:,}",
        f"{figures.trained_parameters:,}",
        loss,
        capacity,
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(cells)} |"
    yield ""
