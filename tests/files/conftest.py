"""What the tests of files share."""

from pathlib import Path

import pytest
from tiny import tiny_adapted


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved adapter."""
    folder = tmp_path_factory.mktemp("saved")
    tiny_adapted().save_pretrained(folder)
    return folder
