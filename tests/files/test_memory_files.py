"""A memory's file is loaded as what it says or refused with a ValueError; the file and the model stay as they are."""

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import cut, flipped, header_end, inserted, json_values, packed
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load, save
from tiny import random_tokens, tiny_adapted, tiny_config
from tiny_chat import chat_model, chat_tokenizer
from tiny_memory import FIRST, METADATA, SECOND, of, random_tensors, same
from torch import Tensor

from deltamem import ChatSession, DeltaMemState
from deltamem.chat.session import FILE as SESSION
from deltamem.memory.snapshot import MOST_TOKENS, OpenSegment, Snapshot

COUNT = {"@tokens": torch.zeros(1, dtype=torch.int64)}
STATE = {FIRST: torch.zeros(1, 1, 2, 2), **COUNT}
OPEN = {"@open.ids": torch.tensor([3]), "@open.sizes": torch.tensor([2]), f"@open.sums:{FIRST}": torch.ones(1, 8)}


def saved_with(**metadata: str) -> bytes:
    return save(STATE, {**METADATA, **metadata})


def without(key: str) -> bytes:
    return save(STATE, {name: value for name, value in METADATA.items() if name != key})


def entry(shape: list[int], end: int, dtype: str = "F32") -> dict[str, Any]:
    return {FIRST: {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


def holding(**changes: Tensor | None) -> bytes:
    """A file of a memory with some of its tensors changed, or left out for None; @open.ids is given as open_ids."""
    names = {"tokens": "@tokens", "ids": "@open.ids", "sizes": "@open.sizes", "sums": f"@open.sums:{FIRST}", "state": FIRST}
    changed = {**STATE, **OPEN, **{names[key]: tensor for key, tensor in changes.items()}}
    return save({name: tensor for name, tensor in changed.items() if tensor is not None}, METADATA)


# Each is refused with a ValueError that names the file; the text is what else it must say.
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a readable safetensors file"),
    "text": (b'{"hello": "world"}', "not a readable safetensors file"),
    "pickle": (pickle.dumps({FIRST: [0.0]}), "not a readable safetensors file"),
    "no metadata": (save({FIRST: torch.zeros(1, 1, 2, 2)}), "format=None"),
    "no version": (without("version"), "version None"),
    "other version": (saved_with(version="2"), "version '2'"),
    "no fingerprint": (without("fingerprint"), "lack the fingerprint"),
    "fingerprint no json": (saved_with(fingerprint="abc"), "lack the fingerprint"),
    "fingerprint a number": (saved_with(fingerprint="7"), "fingerprint 7"),
    "fingerprint a list": (saved_with(fingerprint='["abc"]'), "fingerprint ['abc']"),
    "fingerprint too deep": (saved_with(fingerprint="[" * 100_000), ""),
    "fingerprint too large a number": (saved_with(fingerprint="9" * 5000), ""),
    "more than a memory": (saved_with(session="{}"), "session"),
    "no tensors": (packed({}, METADATA), "[] beside the states, where ['@tokens'] belong"),
    "no states": (save(COUNT, METADATA), "at least one tensor"),
    "no count of tokens": (save({FIRST: torch.zeros(1, 1, 2, 2)}, METADATA), "['@tokens'] belong"),
    "another tensor": (save({**STATE, "@x": torch.zeros(1)}, METADATA), "'@x'"),
    "counts of other rows": (save({FIRST: torch.zeros(2, 1, 2, 2), **COUNT}, METADATA), "int64 [2]"),
    "counts below zero": (holding(tokens=torch.tensor([-1])), "at least 0"),
    "counts that would overflow": (holding(tokens=torch.tensor([2**63 - 1])), f"at most {2**62}"),
    "half precision": (save({FIRST: torch.zeros(1, 1, 2, 2).half(), **COUNT}, METADATA), "float32"),
    "four bits": (packed(entry([1, 1, 2, 2], 2, "F4"), METADATA, bytes(2)), ""),
    "wrong shape": (save({FIRST: torch.zeros(3), **COUNT}, METADATA), "(3,)"),
    "nan": (save({FIRST: torch.full((1, 1, 2, 2), torch.nan), **COUNT}, METADATA), "NaN"),
    "batch sizes": (save({**STATE, SECOND: torch.zeros(2, 1, 2, 2)}, METADATA), "one batch size"),
    "huge header": ((2**40).to_bytes(8, "little") + b"{}", "not a readable safetensors file"),
    "huge shape": (packed(entry([2**31, 2**31, 4, 4], 4), METADATA, bytes(4)), "not a readable safetensors file"),
    "empty shape with a huge axis": (packed(entry([0, 2**63, 1, 1], 0), METADATA), ""),
    "open segment without sums": (holding(sums=None), "['@open.ids', '@open.sizes', '@tokens'] beside the states"),
    "open segment without ids": (holding(ids=None), "['@open.sizes', '@tokens'] beside the states"),
    "open segment without sizes": (holding(sizes=None), "['@open.ids', '@tokens'] beside the states"),
    "open segment of other modules": (save({**STATE, **OPEN, SECOND: torch.zeros(1, 1, 2, 2)}, METADATA), "by all modules"),
    "open segment of other rows": (holding(sums=torch.ones(2, 8)), "must be float32 [1, width]"),
    "open segment in halves": (holding(sums=torch.ones(1, 8).half()), "must be float32 [1, width]"),
    "open segment infinite": (holding(sums=torch.full((1, 8), torch.inf)), "NaN or infinite"),
    "open segment with ids below -1": (holding(ids=torch.tensor([-2])), "at least -1"),
    "open segment with sizes below 0": (holding(sizes=torch.tensor([-1])), "at least 0"),
    "open segment with sizes that would overflow": (holding(sizes=torch.tensor([2**63 - 1])), f"at most {2**62}"),
    "open segment with real ids": (holding(ids=torch.ones(1)), "int64 [1]"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_a_value_error_that_names_it(tmp_path: Path, case: str) -> None:
    content, message = BAD_FILES[case]
    path = tmp_path / "memory.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{re.escape(message)}"):
        DeltaMemState.load(path)
    assert path.read_bytes() == content


def test_the_good_file_among_the_bad_ones_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "memory.safetensors").write_bytes(holding())
    assert DeltaMemState.load(tmp_path / "memory.safetensors").tokens == [0]


def adapter_file(folder: Path) -> Path:
    tiny_adapted().save_pretrained(folder)
    return folder / "adapter_model.safetensors"


def session_file(folder: Path) -> Path:
    chat = ChatSession(chat_model(), chat_tokenizer())
    chat.observe("Anna likes teal.")
    chat.save(folder)
    return folder / SESSION


def adapter_called_a_memory(folder: Path) -> Path:
    (folder / "memory.safetensors").write_bytes(save(get_peft_model_state_dict(tiny_adapted()), METADATA))
    return folder / "memory.safetensors"


@pytest.mark.parametrize("make", [adapter_file, session_file, adapter_called_a_memory], ids=lambda make: make.__name__)
def test_a_foreign_file_is_no_memory(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=re.escape(str(path))):
        DeltaMemState.load(path)
    assert path.read_bytes() == content


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    torch.save({FIRST: Trap()}, tmp_path / "memory.safetensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        DeltaMemState.load(tmp_path / "memory.safetensors")
    assert not (tmp_path / "executed").exists()


# Open segments


@cache
def writes_messages() -> PeftModel:
    return tiny_adapted(tiny_config(write="message"))


def half_told(rows: int = 2, seed: int = 0) -> DeltaMemState:
    """A memory that has read the beginning of a message."""
    state = writes_messages().new_memory(rows)
    ids = torch.zeros(rows, 4, dtype=torch.int64)
    with torch.no_grad(), writes_messages().memory(state, segment_ids=ids, keep_open=True):
        writes_messages()(random_tokens(rows, 4, seed))
    return state


def tell_the_rest(state: DeltaMemState) -> None:
    ids = torch.zeros(len(state), 3, dtype=torch.int64)
    with torch.no_grad(), writes_messages().memory(state, segment_ids=ids):
        writes_messages()(random_tokens(1, 3, seed=9).repeat(len(state), 1))


def told_the_rest(state: DeltaMemState) -> DeltaMemState:
    """A copy of the memory, after the message's end."""
    state = state.clone()
    tell_the_rest(state)
    return state


def saved_and_loaded(state: DeltaMemState, folder: Path) -> DeltaMemState:
    state.save(folder / "memory.safetensors")
    return DeltaMemState.load(folder / "memory.safetensors")


COPIES: dict[str, Callable[[DeltaMemState, Path], DeltaMemState]] = {
    "saved and loaded": saved_and_loaded,
    "cloned": lambda state, _: state.clone(),
    "stacked from its rows": lambda state, _: DeltaMemState.stack([state[0], state[1]]),
    "rows of a stack": lambda state, _: DeltaMemState.stack([half_told(1, seed=5), state, writes_messages().new_memory()])[1:3],
    "moved": lambda state, _: state.to("cpu"),
}


@pytest.mark.parametrize("copy", COPIES)
def test_an_open_segment_goes_with_the_memory(tmp_path: Path, copy: str) -> None:
    state = half_told()
    assert state.snapshot.open_segment is not None
    assert not any(tensor.any() for tensor in state.tensors.values())  # nothing but the open segment tells it from an empty one
    copied = COPIES[copy](state, tmp_path)
    assert same(copied, state)
    assert same(told_the_rest(copied), told_the_rest(state))
    assert not same(told_the_rest(writes_messages().new_memory(2)), told_the_rest(state))


def test_a_reset_memory_has_no_open_segment() -> None:
    state = half_told()
    state.reset()
    assert state.snapshot.open_segment is None


def test_rows_without_an_open_segment_stack_with_one_that_has(tmp_path: Path) -> None:
    empty, state = writes_messages().new_memory(), half_told(1)
    stacked = saved_and_loaded(DeltaMemState.stack([empty, state]), tmp_path)
    for row, alone in enumerate([empty, state]):
        expected, told = told_the_rest(alone), told_the_rest(stacked[row])
        assert all(torch.equal(tensor, expected.tensors[name]) for name, tensor in told.tensors.items())


def with_segment(**changes: Any) -> DeltaMemState:
    state = half_told(1)
    segment = state.snapshot.open_segment
    assert segment is not None
    return DeltaMemState(replace(state.snapshot, open_segment=replace(segment, **changes)), state.fingerprint)


MISFITS: dict[str, Callable[[], tuple[PeftModel, DeltaMemState]]] = {
    "a width of 1": lambda: (writes_messages(), with_segment(sums=dict.fromkeys((FIRST, SECOND), torch.ones(1, 1)))),
    "a smaller width": lambda: (writes_messages(), with_segment(sums=dict.fromkeys((FIRST, SECOND), torch.ones(1, 7)))),
    "a larger width": lambda: (writes_messages(), with_segment(sums=dict.fromkeys((FIRST, SECOND), torch.ones(1, 40)))),
    "an adapter of tokens": lambda: (tiny_adapted(), DeltaMemState(half_told(1).snapshot)),
    "modules of other names": lambda: (
        tiny_adapted(),
        of({"x": torch.zeros(1, 1, 4, 4)}),
    ),
    "a state of another shape": lambda: (tiny_adapted(), of(dict.fromkeys((FIRST, SECOND), torch.zeros(1, 4, 4)))),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_memory_that_does_not_fit_the_model_is_refused_before_it_is_used(case: str) -> None:
    model, state = MISFITS[case]()
    before = state.clone()
    with pytest.raises(ValueError, match="does not fit the active adapter 'default'"), model.memory(state):
        pass
    assert same(state, before)
    assert not model.base_model.open_scopes


# What is saved loads


@pytest.mark.parametrize("segments", [False, True], ids=["tokens", "messages"])
def test_counts_stop_where_a_file_s_do(tmp_path: Path, segments: bool) -> None:
    """A file may say that as many tokens were written as can be; what goes on from it is saved and loads."""
    model = writes_messages() if segments else tiny_adapted()
    state = half_told(1) if segments else model.new_memory()
    most = torch.tensor([MOST_TOKENS])
    segment = state.snapshot.open_segment and replace(state.snapshot.open_segment, sizes=most)
    state = saved_and_loaded(DeltaMemState(replace(state.snapshot, tokens=most, open_segment=segment)), tmp_path)
    ids = torch.zeros(1, 3, dtype=torch.int64) if segments else None
    for keep_open in (segments, False):
        with torch.no_grad(), model.memory(state, segment_ids=ids, keep_open=keep_open):
            model(random_tokens(1, 3))
        assert state.tokens == [MOST_TOKENS]
        assert same(saved_and_loaded(state, tmp_path), state)
        assert same(state.clone(), state)


def test_notes_that_no_file_has_room_for_are_refused_in_words(tmp_path: Path) -> None:
    chat = ChatSession(chat_model(), chat_tokenizer())
    chat.observe("Anna likes teal.")
    chat.save(tmp_path)
    before = (tmp_path / SESSION).read_bytes()
    chat.messages = [{"role": "user", "content": "x" * 101_000_000}]
    with pytest.raises(ValueError, match=r"cannot be saved: .* room for 100 MB .* forget_context"):
        chat.save(tmp_path)
    assert (tmp_path / SESSION).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [SESSION]
    chat.forget_context()
    chat.save(tmp_path)
    assert same(ChatSession.load(tmp_path, chat.model, chat.tokenizer).memory, chat.memory)


state_names = st.text(max_size=5) | st.sampled_from([FIRST, "@tokens", "@open.sums:x", "__metadata__"])


@examples(200)
@given(
    names=st.sets(state_names, min_size=1, max_size=3),
    tokens=st.integers(-1, 2**63 - 1),
    fingerprint=st.none() | st.text(max_size=4) | st.integers(),
)
def test_what_is_saved_loads(folder: Path, names: set[str], tokens: int, fingerprint: Any) -> None:
    path = folder / "saved.safetensors"
    path.unlink(missing_ok=True)
    try:
        snapshot = Snapshot.from_layers({name: {"state": torch.zeros(1, 1, 2, 2)} for name in names}, torch.tensor([tokens]))
        state = DeltaMemState(snapshot, fingerprint)
        state.save(path)
    except ValueError:
        assert not path.exists()
    else:
        assert same(DeltaMemState.load(path), state)


# Damage. A changed byte may still leave a memory (other numbers, another module's name), but never another kind of error.


def fitting(fingerprint: str | None) -> DeltaMemState:
    """A memory with an open segment that fits the model."""
    sums = {name: torch.randn(1, 32, generator=torch.Generator().manual_seed(1)) for name in (FIRST, SECOND)}
    segment = OpenSegment(torch.tensor([0]), torch.tensor([4]), sums)
    return of(random_tensors(1, 1, 4), fingerprint, segment)


PLAIN = save({**random_tensors(1, 1, 4), **COUNT}, {**METADATA, "fingerprint": "null"})
HALF_TOLD = save(fitting(None).snapshot.to_flat(), {**METADATA, "fingerprint": "null"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory")


def load_bytes(folder: Path, content: bytes) -> DeltaMemState | ValueError:
    path = folder / "damaged.safetensors"
    path.write_bytes(content)
    try:
        return DeltaMemState.load(path)
    except ValueError as error:
        return error
    finally:
        assert path.read_bytes() == content


@examples(300)
@given(data=st.data(), original=st.sampled_from([PLAIN, HALF_TOLD]))
def test_flipped_bytes_give_a_value_error_or_a_memory_that_works(folder: Path, data: st.DataObject, original: bytes) -> None:
    content = data.draw(flipped(original))
    state = load_bytes(folder, content)
    if isinstance(state, ValueError):
        return
    tensors = state.snapshot.to_flat()
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert all(tensor.numpy().tobytes() == tensors[name].numpy().tobytes() for name, tensor in load(content).items())
    before = state.clone()
    try:
        tell_the_rest(state)
    except (ValueError, FloatingPointError):  # another adapter's memory, or numbers that are finite only just
        assert same(state, before)
    else:
        assert all(tensor.isfinite().all() for tensor in state.tensors.values())


@examples(100)
@given(data=st.data(), original=st.sampled_from([PLAIN, HALF_TOLD]))
def test_a_file_cut_short_or_with_something_in_between_is_a_value_error(
    folder: Path, data: st.DataObject, original: bytes
) -> None:
    assert isinstance(load_bytes(folder, data.draw(cut(original) | inserted(original))), ValueError)


@examples(100)
@given(fingerprint=json_values.map(json.dumps) | st.text(max_size=8), version=st.just("1") | st.text(max_size=2))
def test_any_metadata_give_a_value_error_or_what_they_say(folder: Path, fingerprint: str, version: str) -> None:
    state = load_bytes(folder, saved_with(fingerprint=fingerprint, version=version))
    if not isinstance(state, ValueError):
        assert state.fingerprint == json.loads(fingerprint)
        assert version == "1"


names = st.sampled_from([FIRST, SECOND, "@tokens", *OPEN]) | st.text(max_size=6)
shapes = st.lists(st.integers(0, 2), max_size=5)
dtypes = st.sampled_from([torch.float32, torch.int64, torch.bool, torch.float64, torch.bfloat16])


@examples(200)
@given(tensors=st.dictionaries(names, st.tuples(shapes, dtypes), max_size=6))
def test_any_tensors_give_a_value_error_or_a_memory(folder: Path, tensors: dict[str, tuple[list[int], torch.dtype]]) -> None:
    made = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in tensors.items()}
    state = load_bytes(folder, save(made, METADATA))
    if not isinstance(state, ValueError):
        assert state.snapshot.to_flat().keys() == made.keys()


def test_the_header_is_where_it_is_looked_for() -> None:
    assert json.loads(PLAIN[8 : header_end(PLAIN)])["__metadata__"]["format"] == "deltamem-state"
    assert len(PLAIN) - header_end(PLAIN) == 2 * 16 * 4 + 8
