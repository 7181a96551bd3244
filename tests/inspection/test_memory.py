import math

import pytest
import torch
from tiny_chat import chat_tokenizer
from tiny_memory import FIRST, SECOND, of, random_state, random_tensors

from deltamem import ChatSession


def test_what_a_memory_holds(memory_file, inspect):
    state = random_state(batch=3)
    figures = inspect.figures(memory_file(state))
    assert figures["kind"] == "memory"
    assert figures["fingerprint"] == "abc"
    assert figures["bytes"] == state.nbytes
    assert [row["tokens"] for row in figures["rows"]] == [0, 1, 2]
    whole = torch.cat([tensor.flatten(1) for tensor in state.tensors.values()], dim=1)
    assert [row["norm"] for row in figures["rows"]] == pytest.approx(whole.norm(dim=1).tolist())
    assert [layer["name"] for layer in figures["layers"]] == [FIRST, SECOND]  # the file has them in another order
    for layer in figures["layers"]:
        tensor = state.tensors[layer["name"]]
        assert layer["norm"] == pytest.approx([states.norm().item() for states in tensor])
        squares = torch.tensor(layer["singular_values"]).square().sum((1, 2)).sqrt()
        assert squares.tolist() == pytest.approx(layer["norm"])


MATRICES = {
    "nothing": (torch.zeros(4, 4), 0),
    "one direction": (torch.outer(torch.arange(4.0), torch.ones(4)), 1),
    "two alike": (torch.diag(torch.tensor([3.0, 0, -3.0, 0])), 2),
    "all alike": (1e-3 * torch.eye(4), 4),
    "one three times the other": (torch.diag(torch.tensor([3.0, 1.0, 0, 0])), 4 / 3**0.75),
}


@pytest.mark.parametrize(("matrix", "rank"), MATRICES.values(), ids=MATRICES)
def test_the_effective_rank(matrix, rank, memory_file, inspect):
    figures = inspect.figures(memory_file(of({FIRST: matrix[None, None]})))
    assert figures["layers"][0]["effective_rank"] == [[pytest.approx(rank, abs=1e-4)]]


def test_a_session_is_its_memory_and_what_is_in_its_context(saved, tmp_path, inspect):
    session = ChatSession(saved()[0], chat_tokenizer())
    session.observe("Anna likes teal .")
    session.reply("Hello there", max_new_tokens=2)
    session.save(tmp_path / "anna")
    for place in (tmp_path / "anna", tmp_path / "anna" / "session.safetensors"):
        figures = inspect.figures(str(place))
        assert figures["session"]["saves"] == 1
        assert figures["session"]["messages"] == 2
        assert [row["tokens"] for row in figures["rows"]] == session.memory.tokens
        assert figures["fingerprint"] == saved()[0].base_model.fingerprint()
    assert "The memory of a session, saved once, with 2 messages in its context" in inspect(str(tmp_path / "anna"))


def test_two_memories_compared(memory_file, inspect):
    tensors = random_tensors(batch=1)
    one = of({**tensors, SECOND: torch.zeros_like(tensors[SECOND])}, "abc")
    other = of({FIRST: -2 * tensors[FIRST], SECOND: tensors[SECOND]}, "abc")
    figures = inspect.figures(memory_file(one, "one"), "--compare", memory_file(other, "other"))["comparison"]
    norms = {name: tensor.norm().item() for name, tensor in tensors.items()}
    first, second = figures["layers"]
    assert first["cosine"] == [pytest.approx(-1)]
    assert first["distance"] == [pytest.approx(3 * norms[FIRST])]
    assert second["cosine"] == [None]  # one of them is empty
    assert second["distance"] == [pytest.approx(norms[SECOND])]
    assert figures["cosine"] == [pytest.approx(-2 * norms[FIRST] / math.hypot(2 * norms[FIRST], norms[SECOND]))]
    assert figures["distance"] == [pytest.approx(math.hypot(3 * norms[FIRST], norms[SECOND]))]
    assert figures["same_adapter"] is True


def test_memories_of_different_adapters_are_told_apart(memory_file, inspect):
    one, other = memory_file(random_state(1), "one"), memory_file(random_state(1, fingerprint="xyz"), "other")
    assert "Different adapters wrote these memories" in inspect(one, "--compare", other)
    unknown = memory_file(random_state(1, fingerprint=None), "unknown")
    assert inspect.figures(one, "--compare", unknown)["comparison"]["same_adapter"] is None
    assert "Different adapters" not in inspect(one, "--compare", unknown)


def test_as_tables(memory_file, inspect):
    path = memory_file(random_state(2))
    text = " ".join(inspect(path, "--compare", path).split())
    for expected in ("A memory: 2 rows", "written by the adapter abc", "effective rank", FIRST, "all layers 1.000 0.000"):
        assert expected in text


def test_wrong_input(memory_file, refusal, saved, chat, tmp_path):
    one = memory_file(random_state(1), "one")
    assert "have different shapes" in refusal(one, "--compare", memory_file(random_state(2), "two"))
    assert "have different shapes" in refusal(one, "--compare", memory_file(of(random_tensors(1, states=1)), "narrow"))
    assert "is an adapter; give the file of a memory" in refusal(one, "--compare", saved()[1])
    assert "--variant does not go with it" in refusal(one, "--variant", "ssw")
    assert "--chat does not go with it" in refusal(one, "--chat", chat)
    assert "nowhere" in refusal(one, "--html", str(tmp_path / "nowhere" / "page.html"))
    (tmp_path / "text").write_text("no memory")
    assert "is not a readable safetensors file" in refusal(str(tmp_path / "text"))
    assert "holds no usable memory" in refusal(f"{saved()[1]}/adapter_model.safetensors")
    (tmp_path / "empty").mkdir()
    assert "give the folder or Hub name of a backbone" in refusal(str(tmp_path / "empty"))
