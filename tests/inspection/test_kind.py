import pytest

from deltamem.inspection import kind
from deltamem.inspection.kind import kind_of


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["config.json"], "backbone"), (["adapter_config.json", "config.json"], "adapter"), (["session.safetensors"], "memory")],
)
def test_a_folder_is_what_it_holds(names, expected, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    assert kind_of(str(tmp_path)) == expected


@pytest.mark.parametrize(("found", "expected"), [("adapter_config.json", "adapter"), (None, "backbone")])
def test_a_name_on_the_hub_is_what_the_hub_has(found, expected, monkeypatch):
    monkeypatch.setattr(kind, "on_hub", lambda name: True)
    monkeypatch.setattr(kind, "find_adapter_config_file", lambda name: found)
    assert kind_of("somebody/something") == expected


def test_without_the_hub_a_name_is_a_backbone(monkeypatch):
    monkeypatch.setattr(kind, "on_hub", lambda name: False)
    assert kind_of("somebody/something") == "backbone"
