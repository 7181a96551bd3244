"""What the tests of the Hub share."""

from pathlib import Path

import pytest
from tiny import tiny_adapted, tiny_backbone

BACKBONE = "someone/tiny"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The folder of a saved adapter, for a backbone with a name on the Hub."""
    backbone = tiny_backbone()
    backbone.name_or_path = backbone.config.name_or_path = BACKBONE
    tiny_adapted(backbone=backbone).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"
