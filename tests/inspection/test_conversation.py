import pytest
import torch
from tiny_chat import chat_tokenizer

from deltamem import ChatSession
from deltamem.chat.tokens import ChatTokens, render
from deltamem.inspection.conversation import measure, replay

CHAT = [
    {"role": "user", "content": "Anna likes teal . Bob lives in Oslo ."},
    {"role": "assistant", "content": "Noted ."},
    {"role": "user", "content": "Anna likes red ."},
]


@pytest.mark.parametrize("options", [{}, {"num_states": 2, "decay": "learned"}], ids=["tsw", "msw"])
def test_turn_by_turn_is_what_one_pass_writes(options, saved):
    model, tokenizer = saved(**options)[0], chat_tokenizer()
    turns = replay(model, tokenizer, CHAT)
    at_once = ChatSession(model, tokenizer)
    at_once.observe(CHAT)
    for name, tensor in at_once.memory.tensors.items():
        torch.testing.assert_close(turns[-1].memory.tensors[name], tensor)
    assert turns[-1].memory.tokens == at_once.memory.tokens


def test_the_pieces_of_the_turns_are_the_text(saved):
    tokenizer = chat_tokenizer()
    turns = replay(saved()[0], tokenizer, CHAT)
    assert "".join(piece for turn in turns for piece in turn.pieces) == render(tokenizer, CHAT)
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]
    for turn in turns:
        assert "".join(turn.pieces).startswith(f"<|im_start|>{turn.role}\n{turn.content}")


def test_a_system_prompt_is_a_part_of_the_first_turn(saved):
    turns = replay(saved()[0], chat_tokenizer(), [{"role": "system", "content": "Remember everything ."}, *CHAT])
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]
    assert "Remember" in "".join(turns[0].pieces)


def test_the_measures(saved):
    turns = replay(saved(num_states=2)[0], chat_tokenizer(), CHAT)
    measures = measure(turns)
    layers = [*turns[0].memory.tensors]
    assert measures.layers == layers
    before = {name: torch.zeros_like(tensor) for name, tensor in turns[0].memory.tensors.items()}
    begin = 0
    for index, turn in enumerate(turns):
        end = begin + len(turn.pieces)
        changes = []
        for row, name in enumerate(layers, 1):
            own = turn.writes[name]
            changes.append(own.states.diff(dim=2)[0])  # [states, tokens, r, r]
            norm = torch.stack([change.norm() for change in changes[-1].unbind(1)])
            torch.testing.assert_close(measures.change[row, begin:end], norm)
            torch.testing.assert_close(measures.gate[row, begin:end], own.write[0].mean((0, 2)))
            error = torch.stack([error.norm() for error in own.error[0].unbind(1)])
            torch.testing.assert_close(measures.error[row, begin:end], error)
            torch.testing.assert_close(measures.turn_change[row, index], (turn.memory.tensors[name] - before[name]).norm())
        everywhere = torch.stack(changes)  # [layers, states, tokens, r, r]
        norms = torch.stack([change.norm() for change in everywhere.unbind(2)])
        torch.testing.assert_close(measures.change[0, begin:end], norms)
        torch.testing.assert_close(measures.gate[0, begin:end], measures.gate[1:, begin:end].mean(0))
        before, begin = turn.memory.tensors, end
    assert end == measures.gate.shape[1]


def test_what_is_left_of_the_turns(saved):
    left = measure(replay(saved()[0], chat_tokenizer(), CHAT)).left
    assert (left.diagonal(dim1=1, dim2=2) == 1).all()
    assert (left.triu(1) == 0).all()
    assert (left[:, 1, 0] < 1).all()
    assert (left[:, 2, 0] <= left[:, 1, 0]).all()


def test_the_tokens_of_a_segment_share_its_write(saved):
    tokenizer = chat_tokenizer()
    turns = replay(saved(write="sentence")[0], tokenizer, CHAT)
    segments = ChatTokens.from_messages(tokenizer, CHAT, "sentence").segment_ids
    gate = measure(turns).gate[1]
    assert (gate[segments < 0] == 0).all()
    for segment in segments[segments >= 0].unique():
        assert gate[segments == segment].unique().numel() == 1
        assert (gate[segments == segment] > 0).all()
    assert len(gate.unique()) == 1 + 4  # the four sentences, and what is not written


def test_the_command_prints_what_each_turn_wrote(saved, chat, inspect):
    figures = inspect.figures(saved()[1], "--chat", chat, "--line", "2")["conversation"]
    assert [turn["role"] for turn in figures["turns"]] == ["user", "assistant", "user"]
    assert "Remember everything" not in figures["turns"][0]["content"]
    assert all(len(turn["change"]) == 3 for turn in figures["turns"])
    assert [len(turn["left"]) for turn in figures["turns"]] == [1, 2, 3]
    first = inspect.figures(saved()[1], "--chat", chat)["conversation"]
    assert first["turns"][0]["tokens"] < figures["turns"][0]["tokens"]  # without the system prompt
    table = inspect(saved()[1], "--chat", chat)
    assert "What does Anna like ?" in table
    assert "100%" in table


def test_the_memory_of_a_conversation_compared(saved, chat, messages, inspect, memory_file):
    model, folder = saved()
    turns = replay(model, chat_tokenizer(), messages)
    comparison = inspect.figures(folder, "--chat", chat, "--compare", memory_file(turns[-1].memory))["comparison"]
    assert comparison["cosine"] == [pytest.approx(1)]
    assert comparison["distance"] == [pytest.approx(0, abs=1e-5)]
    assert comparison["same_adapter"] is True


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_read(saved, chat, refusal, tmp_path, monkeypatch):
    monkeypatch.setattr("deltamem.inspection.command.inspect_adapter", None)
    assert "is a folder, where a file belongs" in refusal(saved()[1], "--chat", chat, "--html", str(tmp_path))


def test_wrong_input(saved, chat, refusal, memory_file, tmp_path):
    model, folder = saved()
    other = memory_file(saved(num_states=2)[0].new_memory())
    assert "--line 3 is not accepted" in refusal(folder, "--chat", chat, "--line", "3")
    assert "needs a conversation: --chat" in refusal(folder, "--html", str(tmp_path / "page.html"))
    assert "needs a conversation: --chat" in refusal(folder, "--compare", other)
    assert "have different shapes" in refusal(folder, "--chat", chat, "--compare", other)
    assert "is no file" in refusal(folder, "--chat", str(tmp_path / "nothing"))
    assert "--chat does not go with it" in refusal(f"{folder}/../backbone", "--chat", chat)
    (tmp_path / "wrong.jsonl").write_text('{"text": "no chat"}')
    assert "line 1" in refusal(folder, "--chat", str(tmp_path / "wrong.jsonl"))
    tokenizer = chat_tokenizer()
    with pytest.raises(ValueError, match="more than the model's context"):
        replay(model, tokenizer, [{"role": "user", "content": "Anna " * 300}])
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(ValueError, match="renders earlier turns otherwise"):
        replay(model, tokenizer, CHAT)
