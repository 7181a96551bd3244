import pytest
import torch
from tiny_memory import of, random_state, random_tensors

from deltamem.evaluation.report import memories
from deltamem.evaluation.report.memories import heat_map


def saved(folder, states):
    files = [folder / f"{section + 1:03}.safetensors" for section in range(len(states))]
    for state, file in zip(states, files, strict=True):
        state.save(file)
    return files


def test_norms_by_layer_and_section(tmp_path):
    states = [random_state(1, seed=seed) for seed in range(3)]
    found = heat_map(saved(tmp_path, states))
    assert found.sections == [("1", 0), ("2", 0), ("3", 0)]
    assert found.layers == ["all", "0", "1"]
    for section, state in enumerate(states):
        of_layers = torch.stack([tensor.norm() for tensor in state.tensors.values()])
        whole, *layers = (row[section] for row in found.norms)
        assert layers == pytest.approx(of_layers.tolist())
        assert whole == pytest.approx(of_layers.norm().item())
    assert found.scales == [max(found.norms[0]), *[max(found.norms[1] + found.norms[2])] * 2]


def test_many_sections_are_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr(memories, "MOST_SECTIONS", 3)
    found = heat_map(saved(tmp_path, [random_state(1, seed=seed) for seed in range(5)]))
    assert [name for name, _ in found.sections] == ["1", "3", "5"]


def test_an_empty_memory_is_drawn(tmp_path):
    zero = of({name: torch.zeros_like(tensor) for name, tensor in random_tensors(1).items()})
    assert heat_map(saved(tmp_path, [zero])).scales == [1.0, 1.0, 1.0]


def test_memories_of_other_layers(tmp_path):
    other = of({f"{name}.other": tensor for name, tensor in random_tensors(1).items()})
    with pytest.raises(ValueError, match=r"002.safetensors is a memory of other layers than .*001"):
        heat_map(saved(tmp_path, [random_state(1), other]))
