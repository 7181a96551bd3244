"""The figures of the documentation are what their scripts draw."""

import runpy

import matplotlib as mpl
import pytest
from doc_pages import ROOT

FIGURES = ROOT / "docs" / "figures"


@pytest.mark.parametrize("script", sorted(FIGURES.glob("*.py")), ids=lambda script: script.stem)
def test_a_figure_is_what_its_script_draws(script, tmp_path):
    mpl.use("svg")
    drawn = tmp_path / "drawn.svg"
    runpy.run_path(str(script))["draw"](drawn)
    committed = script.with_suffix(".svg").read_text()
    if f"Matplotlib v{mpl.__version__}," not in committed:
        pytest.skip("drawn with another release of matplotlib")
    assert drawn.read_text() == committed
