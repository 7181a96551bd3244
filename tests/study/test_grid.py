import pytest

from deltamem.study.grid import read_grid
from deltamem.study.small_backbone import SmallBackbone

GRID = """
backbone: {small: {layers: 2, width: 64}}
adapter: {tie_query_init: true}
training: {max_steps: 5, learning_rate: 4e-3, max_facts: 2, questions: 2}
vary:
  size: {adapter.r: [4, 8], adapter.num_states: [1, 2]}
  variants: {adapter: [{}, {write: message}, {r: 4, num_states: 2}]}
seeds: [0, 3]
measure:
  - {facts: [1, 4], episodes: 10}
  - {facts: 1, tokens_since: [16, 64], kind: update}
"""


def read(folder, text=GRID):
    path = folder / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    return read_grid(path)


def test_a_grid_has_every_combination_of_a_curve_once_for_each_seed(tmp_path):
    grid = read(tmp_path)
    size, variants = grid.curves
    assert [variant.label for variant in size.variants] == [
        "r=4, num_states=1",
        "r=4, num_states=2",
        "r=8, num_states=1",
        "r=8, num_states=2",
    ]
    assert [variant.label for variant in variants.variants] == ["base", "write=message", "r=4, num_states=2"]
    assert variants.variants[1].adapter == {"tie_query_init": True, "write": "message"}
    assert grid.backbone == SmallBackbone(layers=2, width=64)
    assert [(point.facts, point.tokens_since, point.kind) for point in grid.measure] == [
        (1, 0, "value"),
        (4, 0, "value"),
        (1, 16, "update"),
        (1, 64, "update"),
    ]
    # Both curves have r=4 with 2 states, and the base, which is r=8 with one state; these run once.
    assert len(grid.runs()) == 2 * 5
    assert len(grid.runs("size")) == 2 * 4


def test_numbers_with_an_exponent_are_numbers(tmp_path):
    (curve, _) = read(tmp_path).curves
    assert curve.variants[0].training["learning_rate"] == 0.004


@pytest.mark.parametrize(
    ("given", "instead", "said"),
    [
        ("seeds: [0, 3]", "seed: [0]", r"a grid has no 'seed'.*seeds"),
        ("seeds: [0, 3]", "seeds: [-1]", "seeds: .* from 0 up"),
        ("layers: 2", "depth: 2", "backbone.small has no 'depth'.*layers"),
        ("layers: 2", "layers: two", "backbone.small.layers: 'two' is not accepted; give a int"),
        ("layers: 2", "layers: 0", "layers: 0 is not accepted"),
        ("{small: {layers: 2, width: 64}}", "[small]", "backbone: .* Hub name"),
        ("tie_query_init: true", "tied: true", "adapter has no 'tied'.*tie_query_init"),
        ("tie_query_init: true", "decay: slow", "decay='slow' is not accepted.*coupled"),
        ("tie_query_init: true", "path: somewhere", "only measured"),
        ("max_steps: 5", "steps: 5", "training has no 'steps'.*max_steps"),
        ("max_steps: 5", "max_steps: many", "training.max_steps: 'many'"),
        ("max_steps: 5", "output_dir: here", "training has no 'output_dir'"),
        ("max_facts: 2", "max_facts: 1000", "max_facts=1000"),
        ("adapter.r: [4, 8]", "r: [4, 8]", "'r' cannot be varied; give adapter.NAME"),
        ("adapter.r: [4, 8]", "adapter.r: 4", "give a list of values"),
        ("adapter.r: [4, 8]", "adapter.r: [4, 0]", "r=0 is not accepted"),
        ("{adapter: [{}, {write: message}, {r: 4, num_states: 2}]}", "{}", "'variants' varies nothing"),
        ("facts: [1, 4]", "fact: [1, 4]", "measure has no 'fact'.*facts"),
        ("facts: [1, 4]", "facts: [0]", "min_facts=0"),
        ("kind: update", "kind: rumour", "kind='rumour' is not accepted.*update"),
        ("measure:", "settings: [zero_memory]\nmeasure:", "give memory and any other of"),
        ("seeds: [0, 3]", "seeds: [", "is no YAML"),
    ],
)
def test_what_is_not_accepted_is_refused_with_what_is(tmp_path, given, instead, said):
    assert given in GRID
    with pytest.raises(ValueError, match=f"(?s){said}"):
        read(tmp_path, GRID.replace(given, instead, 1))


def test_an_unknown_curve_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no curve 'sizes'.*size, variants"):
        read(tmp_path).runs("sizes")


def test_trained_adapters_are_a_curve_and_are_not_trained(tmp_path):
    grid = read(tmp_path, "adapter: {path: [one, other]}\nmeasure: [{facts: 1}]")
    (curve,) = grid.curves
    assert [variant.label for variant in curve.variants] == ["path=one", "path=other"]
    assert not any(variant.trained for variant in curve.variants)
    assert grid.backbone is None
