"""Whatever is wrong with a grid, it is an error that names the file, before anything runs."""

import pytest
import yaml
from examples import examples
from hypothesis import given
from own_data import damaged

from deltamem.study.grid import read_grid

GRID = {
    "backbone": {"small": {"layers": 1}},
    "system": "Remember",
    "adapter": {"r": 4, "corrections": ["q", "o"]},
    "training": {"max_steps": 4, "questions": 1},
    "vary": {"a": {"adapter.r": [4, 8]}},
    "seeds": [0, 1],
    "measure": [{"facts": [1, 2]}],
    "settings": ["memory", "zero_memory"],
}


def read(folder, grid):
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(grid))
    return read_grid(file)


def test_a_good_grid_is_read(tmp_path):
    assert len(read(tmp_path, GRID).runs()) == 4


def test_a_damaged_grid_is_refused(tmp_path_factory):
    folder, refused = tmp_path_factory.mktemp("grid"), []

    @examples(60)
    @given(damaged([GRID]))
    def check(drawn):
        ((grid,), _) = drawn
        try:
            read(folder, grid)
        except ValueError as error:
            refused.append(str(error))
            assert "mine.yaml" in refused[-1]

    check()
    assert refused


@pytest.mark.parametrize("text", [b"\xff\xfe", b"a: [", b"seeds: 3", b"[1]", b"a: *b"])
def test_what_is_no_grid_is_refused(tmp_path, text):
    (tmp_path / "mine.yaml").write_bytes(text)
    with pytest.raises(ValueError, match=r"mine\.yaml"):
        read_grid(tmp_path / "mine.yaml")
