"""DeltaMemState: a memory as a value, and its file."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import random_tokens, tiny_adapted
from tiny_memory import FIRST, METADATA, SECOND, of, random_state, random_tensors, same
from torch import Tensor

from deltamem import DeltaMemState

# Construction

WRONG_TENSORS: dict[str, tuple[dict[str, Tensor], str]] = {
    "none": ({}, "at least one tensor"),
    "half precision": ({FIRST: torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16)}, "must be float32, got torch.bfloat16"),
    "double": ({FIRST: torch.zeros(1, 1, 2, 2, dtype=torch.float64)}, "must be float32"),
    "one axis": ({FIRST: torch.zeros(4)}, "got (4,)"),
    "shapes": ({FIRST: torch.zeros(1, 1, 2, 2), SECOND: torch.zeros(1, 1, 3, 3)}, "one shape"),
    "no rows": ({FIRST: torch.zeros(0, 1, 2, 2)}, "got (0, 1, 2, 2)"),
    "no width": ({FIRST: torch.zeros(1, 1, 0, 0)}, "got (1, 1, 0, 0)"),
    "batch sizes": (
        {FIRST: torch.zeros(1, 1, 2, 2), SECOND: torch.zeros(2, 1, 2, 2)},
        "one batch size, got [1, 1, 2, 2] and [2, 1, 2, 2]",
    ),
    "nan": ({FIRST: torch.zeros(1, 1, 2, 2), SECOND: torch.tensor([[[[1, 2], [3, float("nan")]]]])}, SECOND),
    "infinity": ({FIRST: torch.tensor([[[[float("inf")]]]]), SECOND: torch.zeros(1, 1, 1, 1)}, FIRST),
    "both infinities": ({FIRST: torch.tensor([[[[float("inf"), float("-inf")], [0, 0]]]])}, FIRST),
}


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_what_is_no_memory_is_refused(case: str) -> None:
    tensors, message = WRONG_TENSORS[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        of(tensors)


def test_the_largest_finite_values_are_accepted() -> None:
    largest = torch.full((1, 1, 8, 8), torch.finfo(torch.float32).max)  # their sum is infinite
    assert torch.equal(of({FIRST: largest}).tensors[FIRST], largest)


def test_the_callers_dict_stays_the_callers() -> None:
    tensors = random_tensors()
    state = of(tensors)
    tensors.clear()
    assert len(state.tensors) == 2


# Rows


@pytest.mark.parametrize("rows", [0, 2, -1, -3, slice(None), slice(1, None), slice(-2, None), slice(0, 3, 2), slice(1, 99)])
def test_rows_are_selected_as_in_a_list(rows: int | slice) -> None:
    state = random_state()
    numbers = list(range(3))[rows]
    expected = [numbers] if isinstance(numbers, int) else numbers
    assert len(state[rows]) == state[rows].batch_size == len(expected)
    for name, tensor in state.tensors.items():
        assert torch.equal(state[rows].tensors[name], tensor[expected])
    assert state[rows].fingerprint == "abc"


@pytest.mark.parametrize("rows", [3, -4, slice(3, None), slice(1, 1)])
def test_rows_out_of_range_are_an_index_error(rows: int | slice) -> None:
    with pytest.raises(IndexError, match="memory with 3 rows"):
        random_state()[rows]


@pytest.mark.parametrize("rows", [True, "0", 1.0, None, [0]])
def test_rows_are_given_by_integers_and_slices_only(rows: Any) -> None:
    with pytest.raises(TypeError, match="an integer or a slice"):
        random_state()[rows]


def test_iterating_gives_every_row_once() -> None:
    state = random_state()
    assert same(DeltaMemState.stack(state), state)


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 1), (2, 3)])
def test_splitting_takes_back_what_stacking_put_together(sizes: tuple[int, ...]) -> None:
    states = [random_state(size, seed) for seed, size in enumerate(sizes)]
    stacked = DeltaMemState.stack(iter(states))
    assert len(stacked) == sum(sizes)
    start = 0
    for state in states:
        assert same(stacked[start : start + len(state)], state)
        start += len(state)


UNSTACKABLE: dict[str, tuple[list[DeltaMemState], str]] = {
    "nothing": ([], "at least one memory"),
    "other adapters": ([random_state(), random_state(fingerprint="xyz")], "different adapters: abc, xyz"),
    "other width": ([random_state(), of(random_tensors(r=5))], "memory 1 has other modules or shapes"),
    "other count": ([random_state(), random_state(), of(random_tensors(states=1))], "memory 2 has other"),
    "other modules": ([random_state(), of({FIRST: torch.zeros(3, 2, 4, 4)})], "memory 1 has other modules"),
}


@pytest.mark.parametrize("case", UNSTACKABLE)
def test_memories_that_do_not_go_together_are_not_stacked(case: str) -> None:
    states, message = UNSTACKABLE[case]
    with pytest.raises(ValueError, match=message):
        DeltaMemState.stack(states)


def test_an_empty_memory_stacks_with_any_adapters() -> None:
    empty = random_state(fingerprint=None)
    assert DeltaMemState.stack([empty, random_state()]).fingerprint == "abc"
    assert DeltaMemState.stack([empty, empty]).fingerprint is None


# A value

COPIES: dict[str, Callable[[DeltaMemState], DeltaMemState]] = {
    "clone": DeltaMemState.clone,
    "rows": lambda state: state[:],
    "stack": lambda state: DeltaMemState.stack([state]),
    "to": lambda state: state.to("cpu"),
}


@pytest.mark.parametrize("copy", COPIES)
def test_resetting_the_original_or_the_copy_leaves_the_other(copy: str) -> None:
    for reset_the_copy in (False, True):
        original = random_state()
        pair = [original, COPIES[copy](original)]
        assert same(*pair)
        pair[reset_the_copy].reset()
        assert same(pair[not reset_the_copy], random_state())


def test_a_clone_shares_no_storage_and_no_graph() -> None:
    tensors = {name: tensor.requires_grad_() for name, tensor in random_tensors().items()}
    state = of(tensors, "abc")
    clone = state.clone()
    with torch.no_grad():
        for tensor in state.tensors.values():
            tensor.zero_()
    assert same(clone, random_state())
    assert not any(tensor.requires_grad for tensor in clone.tensors.values())


def test_to_moves_every_tensor_and_keeps_the_fingerprint() -> None:
    moved = random_state().to("meta")
    assert {tensor.device.type for tensor in moved.tensors.values()} == {"meta"}
    assert moved.fingerprint == "abc"


def test_nbytes_counts_every_float() -> None:
    assert random_state().nbytes == 2 * (3 * 2 * 4 * 4) * 4


def test_reset_forgets_everything_but_the_layout() -> None:
    state = random_state()
    state.reset()
    assert state.fingerprint is None
    assert {name: tensor.shape for name, tensor in state.tensors.items()} == dict.fromkeys((FIRST, SECOND), (3, 2, 4, 4))
    assert not any(tensor.any() for tensor in state.tensors.values())


# The file


@pytest.mark.parametrize("fingerprint", [None, "abc", "", "null", 'δ"\\\n'])
def test_save_and_load_is_bit_for_bit(tmp_path: Path, fingerprint: str | None) -> None:
    state = random_state(fingerprint=fingerprint)
    state.tensors[FIRST][0, 0, 0] = torch.tensor([-0.0, 1e-45, torch.finfo(torch.float32).max, -1 / 3])
    state.save(tmp_path / "memory.safetensors")
    assert same(DeltaMemState.load(str(tmp_path / "memory.safetensors")), state)


def test_rows_views_and_graphs_are_saved_as_their_values(tmp_path: Path) -> None:
    tensors = {name: tensor.transpose(-1, -2).requires_grad_() for name, tensor in random_tensors().items()}
    part = of(tensors, "abc")[1:]
    part.save(tmp_path / "memory.safetensors")
    assert same(DeltaMemState.load(tmp_path / "memory.safetensors"), part.clone())


def test_modules_that_share_one_tensor_are_saved(tmp_path: Path) -> None:
    tensor = torch.zeros(1, 1, 2, 2)
    state = of({FIRST: tensor, SECOND: tensor})
    state.save(tmp_path / "memory.safetensors")
    assert same(DeltaMemState.load(tmp_path / "memory.safetensors"), state)


@torch.no_grad()
def test_a_loaded_memory_carries_its_adapters_fingerprint_and_no_other_takes_it(tmp_path: Path) -> None:
    model, other = tiny_adapted(), tiny_adapted(seed=7)
    state = model.new_memory()
    with model.memory(state):
        model(random_tokens(1, 5))
    state.save(tmp_path / "memory.safetensors")
    loaded = DeltaMemState.load(tmp_path / "memory.safetensors")
    assert same(loaded, state)
    assert loaded.fingerprint == model.fingerprint() != other.fingerprint()
    with model.memory(loaded, write=False):
        model(random_tokens(1, 5))
    with pytest.raises(ValueError, match="written by the adapter"):
        other.memory(loaded)


def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
            DeltaMemState.load(path)


def test_saving_replaces_a_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "memory.safetensors"
    for seed in (1, 2):
        random_state(seed=seed).save(path)
    assert same(DeltaMemState.load(path), random_state(seed=2))
    assert os.listdir(tmp_path) == [path.name]


def test_the_file_is_plain_safetensors_with_its_format_said(tmp_path: Path) -> None:
    random_state().save(tmp_path / "ours.safetensors")
    save_file({**random_tensors(), "@tokens": torch.arange(3)}, tmp_path / "theirs.safetensors", METADATA)
    assert same(DeltaMemState.load(tmp_path / "theirs.safetensors"), DeltaMemState.load(tmp_path / "ours.safetensors"))
