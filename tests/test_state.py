"""DeltaMemState: a memory as a value, and its file."""

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from tiny import random_tokens, tiny_adapted
from torch import Tensor

from deltamem import DeltaMemState
from deltamem.contents import Contents

FIRST, SECOND = "model.layers.0.self_attn", "model.layers.1.self_attn"
COUNT = {"@tokens": torch.zeros(1, dtype=torch.int64)}
METADATA = {"format": "deltamem-state", "version": "1", "fingerprint": '"abc"'}


def random_tensors(batch: int = 3, states: int = 2, r: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, states, r, r, generator=generator) for name in (FIRST, SECOND)}


def of(tensors: dict[str, Tensor], fingerprint: str | None = None) -> DeltaMemState:
    """A memory of these states, with row i having seen i tokens."""
    rows = next(iter(tensors.values())).shape[0] if tensors else 1
    return DeltaMemState(Contents(dict(tensors), torch.arange(rows)), fingerprint)


def random_state(batch: int = 3, seed: int = 0, fingerprint: str | None = "abc") -> DeltaMemState:
    return of(random_tensors(batch, seed=seed), fingerprint)


def same(one: DeltaMemState, other: DeltaMemState) -> bool:
    """Bit for bit, fingerprint included."""
    return (
        one.fingerprint == other.fingerprint
        and one.tokens == other.tokens
        and one.tensors.keys() == other.tensors.keys()
        and all(tensor.numpy().tobytes() == other.tensors[name].numpy().tobytes() for name, tensor in one.tensors.items())
    )


# Construction

WRONG_TENSORS: dict[str, tuple[dict[str, Tensor], str]] = {
    "none": ({}, "at least one tensor"),
    "half precision": ({FIRST: torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16)}, "must be float32, got torch.bfloat16"),
    "double": ({FIRST: torch.zeros(1, 1, 2, 2, dtype=torch.float64)}, "must be float32"),
    "three axes": ({FIRST: torch.zeros(1, 2, 2)}, "got (1, 2, 2)"),
    "five axes": ({FIRST: torch.zeros(1, 1, 1, 2, 2)}, "got (1, 1, 1, 2, 2)"),
    "not square": ({FIRST: torch.zeros(1, 1, 2, 3)}, "got (1, 1, 2, 3)"),
    "no rows": ({FIRST: torch.zeros(0, 1, 2, 2)}, "got (0, 1, 2, 2)"),
    "no width": ({FIRST: torch.zeros(1, 1, 0, 0)}, "got (1, 1, 0, 0)"),
    "batch sizes": ({FIRST: torch.zeros(1, 1, 2, 2), SECOND: torch.zeros(2, 1, 2, 2)}, "one batch size, got [1, 2]"),
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
    state.contents.states[FIRST][0, 0, 0] = torch.tensor([-0.0, 1e-45, torch.finfo(torch.float32).max, -1 / 3])
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


def packed(tensors: dict[str, Any], metadata: dict[str, Any] | None, data: bytes = b"") -> bytes:
    """A safetensors file by hand, to say what its writer would not."""
    header = json.dumps({**({} if metadata is None else {"__metadata__": metadata}), **tensors}).encode()
    return len(header).to_bytes(8, "little") + header + data


def one_tensor(**metadata: str) -> bytes:
    return save({FIRST: torch.zeros(1, 1, 2, 2), **COUNT}, {**METADATA, **metadata})


def without(key: str) -> bytes:
    return save({FIRST: torch.zeros(1, 1, 2, 2), **COUNT}, {name: value for name, value in METADATA.items() if name != key})


def entry(shape: list[int], end: int, dtype: str = "F32") -> dict[str, Any]:
    return {FIRST: {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


# Each is refused with a ValueError that names the file; the text is what else it must say.
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a readable safetensors file"),
    "text": (b'{"hello": "world"}', "not a readable safetensors file"),
    "pickle": (pickle.dumps({FIRST: [0.0]}), "not a readable safetensors file"),
    "no metadata": (save({FIRST: torch.zeros(1, 1, 2, 2)}), "format=None"),
    "an adapter": (save({"base_model.delta_mem_in.weight": torch.zeros(2, 2)}, {"format": "pt"}), "format='pt'"),
    "no version": (without("version"), "version None"),
    "other version": (one_tensor(version="2"), "version '2'"),
    "no fingerprint": (without("fingerprint"), "lack the fingerprint"),
    "fingerprint no json": (one_tensor(fingerprint="abc"), "lack the fingerprint"),
    "fingerprint a number": (one_tensor(fingerprint="7"), "fingerprint 7"),
    "fingerprint too deep": (one_tensor(fingerprint="[" * 100_000), ""),
    "no tensors": (packed({}, METADATA), "[] beside the states, where ['@tokens'] belong"),
    "no states": (save(COUNT, METADATA), "at least one tensor"),
    "no count of tokens": (save({FIRST: torch.zeros(1, 1, 2, 2)}, METADATA), "['@tokens'] belong"),
    "another tensor": (save({FIRST: torch.zeros(1, 1, 2, 2), **COUNT, "@x": torch.zeros(1)}, METADATA), "'@x'"),
    "counts of other rows": (save({FIRST: torch.zeros(2, 1, 2, 2), **COUNT}, METADATA), "int64 [2]"),
    "counts below zero": (save({FIRST: torch.zeros(1, 1, 2, 2), "@tokens": -torch.ones(1).long()}, METADATA), "at least 0"),
    "half precision": (save({FIRST: torch.zeros(1, 1, 2, 2).half(), **COUNT}, METADATA), "float32"),
    "four bits": (packed(entry([1, 1, 2, 2], 2, "F4"), METADATA, bytes(2)), ""),
    "wrong shape": (save({FIRST: torch.zeros(1, 2, 3), **COUNT}, METADATA), "(1, 2, 3)"),
    "nan": (save({FIRST: torch.full((1, 1, 2, 2), torch.nan), **COUNT}, METADATA), "NaN"),
    "batch sizes": (
        save({FIRST: torch.zeros(1, 1, 2, 2), SECOND: torch.zeros(2, 1, 2, 2), **COUNT}, METADATA),
        "one batch size",
    ),
    "huge header": ((2**40).to_bytes(8, "little") + b"{}", "not a readable safetensors file"),
    "huge shape": (packed(entry([2**31, 2**31, 4, 4], 4), METADATA, bytes(4)), "not a readable safetensors file"),
    "empty shape with a huge axis": (packed(entry([0, 2**63, 1, 1], 0), METADATA), ""),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_a_value_error_that_names_it(tmp_path: Path, case: str) -> None:
    content, message = BAD_FILES[case]
    path = tmp_path / "memory.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{re.escape(message)}"):
        DeltaMemState.load(path)


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    torch.save({FIRST: Trap()}, tmp_path / "memory.safetensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        DeltaMemState.load(tmp_path / "memory.safetensors")
    assert not (tmp_path / "executed").exists()


# Damage. A changed byte may still leave a memory (other numbers, another module name), but never another kind of error.

SAVED = save({**random_tensors(1, 1, 2), **COUNT}, METADATA)
HEADER = 8 + int.from_bytes(SAVED[:8], "little")


def load_bytes(folder: Path, content: bytes) -> DeltaMemState | ValueError:
    path = folder / "damaged.safetensors"
    path.write_bytes(content)
    try:
        return DeltaMemState.load(path)
    except ValueError as error:
        return error


fuzz = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
flips = st.dictionaries(st.integers(0, len(SAVED) - 1), st.integers(1, 255), min_size=1, max_size=4)


@fuzz
@given(flips=flips)
def test_flipped_bytes_give_a_value_error_or_a_memory(tmp_path: Path, flips: dict[int, int]) -> None:
    damaged = bytearray(SAVED)
    for position, flip in flips.items():
        damaged[position] ^= flip
    outcome = load_bytes(tmp_path, bytes(damaged))
    assert isinstance(outcome, ValueError | DeltaMemState)
    if isinstance(outcome, DeltaMemState):
        assert all(tensor.isfinite().all() for tensor in outcome.tensors.values())
        if min(flips) >= HEADER:
            numbers = b"".join(outcome.contents.to_flat()[name].numpy().tobytes() for name in ("@tokens", FIRST, SECOND))
            assert numbers == damaged[HEADER:]


@fuzz
@given(length=st.integers(0, len(SAVED) - 1))
def test_a_file_cut_short_is_a_value_error(tmp_path: Path, length: int) -> None:
    assert isinstance(load_bytes(tmp_path, SAVED[:length]), ValueError)


@fuzz
@given(position=st.integers(0, HEADER), inserted=st.binary(min_size=1, max_size=6))
def test_inserted_bytes_are_a_value_error(tmp_path: Path, position: int, inserted: bytes) -> None:
    assert isinstance(load_bytes(tmp_path, SAVED[:position] + inserted + SAVED[position:]), ValueError)


# Saving is all or nothing

FAILURES = {"write": "os.fdopen", "flush": "os.fsync", "replace": "os.replace"}


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("step", FAILURES)
@pytest.mark.parametrize("existing", [True, False])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool, step: str, error: BaseException
) -> None:
    path = tmp_path / "memory.safetensors"
    if existing:
        random_state(seed=1).save(path)

    def fail(*args: Any, **kwargs: Any) -> Any:
        if step == "write":
            os.close(args[0])
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(FAILURES[step], fail)
        with pytest.raises(type(error)):
            random_state(seed=2).save(path)
    assert os.listdir(tmp_path) == ([path.name] if existing else [])
    if existing:
        assert same(DeltaMemState.load(path), random_state(seed=1))


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
