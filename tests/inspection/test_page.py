import base64
import json
import re

import pytest
import torch
from browser import Elements, cells_of, check_whole_and_alone, needs_browser, opened
from tiny_chat import chat_tokenizer
from tiny_memory import random_state

from deltamem.inspection import page
from deltamem.inspection.comparison import compare_memories
from deltamem.inspection.conversation import measure, replay


def data_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def without_data(text):
    """The page without the conversation's words, which may be anything, and without comments."""
    text = re.sub(r'id="data">.*?</script>', "", text, flags=re.DOTALL)
    return re.sub(r"^ *//.*$", "", text, flags=re.MULTILINE)


def unpacked(packed):
    numbers = torch.frombuffer(bytearray(base64.b64decode(packed["data"])), dtype=torch.int16)
    return numbers.view(packed["shape"]) * packed["scale"]


@pytest.fixture
def conversation(saved, chat, inspect, tmp_path):
    """The page of a conversation."""
    inspect(saved(num_states=2)[1], "--chat", chat, "--html", str(tmp_path / "page.html"))
    return (tmp_path / "page.html").read_text()


@pytest.fixture
def memories(memory_file, inspect, tmp_path):
    """The page of two memories."""
    one, other = memory_file(random_state(1), "one"), memory_file(random_state(1, seed=1), "other")
    inspect(one, "--compare", other, "--html", str(tmp_path / "page.html"))
    return (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("kind", ["conversation", "memories"])
def test_a_page_is_whole_and_needs_nothing_else(kind, request):
    check_whole_and_alone(without_data(request.getfixturevalue(kind)))


def test_what_people_say_stays_text(saved, inspect, tmp_path):
    said = "</script><script>document.title = 'broken'</script><img src=x onerror=alert(1)> & {{ 1 }}"
    chat = tmp_path / "chat.jsonl"
    chat.write_text(json.dumps({"messages": [{"role": "<b>user</b>", "content": said}]}))
    inspect(saved()[1], "--chat", str(chat), "--html", str(tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text()
    assert [tag for tag, _ in Elements(text).elements].count("script") == 2
    assert "<img" not in text
    assert said in "".join(data_of(text)["conversation"]["pieces"])


def test_the_page_has_the_measures(saved, messages, conversation):
    turns = replay(saved(num_states=2)[0], chat_tokenizer(), messages)
    measures, data = measure(turns), data_of(conversation)
    shown = data["conversation"]
    near = {"atol": 1e-3, "rtol": 1e-3}
    for quantity in ("gate", "change", "error"):
        torch.testing.assert_close(unpacked(shown["cells"][quantity]), getattr(measures, quantity), **near)
    torch.testing.assert_close(unpacked(shown["by_turn"]["change"]), measures.turn_change, **near)
    torch.testing.assert_close(unpacked(shown["left"]), measures.left, **near)
    assert shown["pieces"] == [piece for turn in turns for piece in turn.pieces]
    for layer, states in zip(data["memories"]["layers"], turns[-1].memory.tensors.values(), strict=True):
        torch.testing.assert_close(unpacked(layer["states"])[-1], states[0], **near)


def test_a_long_conversation_is_thinned_and_the_page_says_so(saved, inspect, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST_TURNS", 2)
    monkeypatch.setattr(page, "MOST_CELLS", 10)
    said = [{"role": role, "content": "Anna likes teal ."} for role in ("user", "assistant") * 2]
    (tmp_path / "long.jsonl").write_text(json.dumps({"messages": said}))
    inspect(saved()[1], "--chat", str(tmp_path / "long.jsonl"), "--html", str(tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text()
    data = data_of(text)
    assert data["memories"]["names"] == ["after turn 1 (user)", "after turn 4 (assistant)"]
    shown = data["conversation"]
    assert shown["shown"] == [0, 3]
    assert shown["left"]["shape"] == [3, 2, 2]
    assert len(shown["pieces"]) == sum(turn["cells"] for turn in shown["turns"]) == shown["cells"]["gate"]["shape"][1]
    assert "".join(shown["pieces"]).count("teal") == 4
    for note in ("2 of the 4 turns", "2 of the 4 memories", "4 neighbours are shown as one"):
        assert note in text


def test_large_states_leave_room_for_fewer_memories(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "MOST_STATE_NUMBERS", 3 * 64)
    memories = {str(seed): random_state(1, seed=seed) for seed in range(5)}  # 64 numbers each
    page.write_page(tmp_path / "page.html", "title", {}, memories)
    assert data_of((tmp_path / "page.html").read_text())["memories"]["names"] == ["0", "2", "4"]


# ---------------------------------------------------------------------------------------------------- in a real browser


def choose(**values):
    """A script that chooses values in the controls of the page."""
    return " ".join(
        f"byId({name!r}).value = {value!r}; "
        f"for (const kind of ['input', 'change']) byId({name!r}).dispatchEvent(new Event(kind));"
        for name, value in values.items()
    )


@needs_browser
def test_a_conversation_in_a_browser(conversation, saved, messages, tmp_path):
    shown = opened(conversation, tmp_path, choose(quantity="change", layer="2", moment="0"))
    turns = replay(saved(num_states=2)[0], chat_tokenizer(), messages)
    measures = measure(turns)
    levels = torch.tensor([float(level) for level in re.findall(r'<span class="v(?: mark)?" style="--v: ?([^;"]*);?">', shown)])
    change = measures.change[2]
    expected = 0.85 * (change - change.min()) / (change.max() - change.min())
    torch.testing.assert_close(levels, expected, atol=1e-3, rtol=0)
    table = cells_of("turns", shown)
    assert table[0] == ["turn", "all", "0", "1"]
    assert [float(row[1]) for row in table[1:]] == pytest.approx(measures.turn_change[0].tolist(), rel=0.01)
    left = cells_of("left", shown)
    assert [row[1:] for row in left[1:]] == [
        [f"{100 * share:.0f}%" for share in row[: index + 1].tolist()] for index, row in enumerate(measures.left[2])
    ]
    assert f"after turn 1 (user): {turns[0].memory.tokens[0]} tokens written" in shown
    norms = [turns[0].memory.tensors[name].norm().item() for name in measures.layers]
    assert [float(norm) for norm in re.findall(r"\nnorm (\S+)\n", shown)] == pytest.approx(norms, rel=0.01)


@needs_browser
def test_the_marks_of_the_template_can_be_hidden(conversation, messages, tmp_path):
    visible = "document.title = [...document.querySelectorAll('.turn span')].filter((s) => s.offsetWidth).length"
    pieces, marks = (data_of(conversation)["conversation"][name] for name in ("pieces", "marks"))
    said = " ".join(message["content"] for message in messages if message["role"] != "system")
    assert all(piece.strip() in said for piece, mark in zip(pieces, marks, strict=True) if not mark)
    assert 0 < sum(marks) < len(marks)
    for hidden, expected in (("", len(marks)), ("document.getElementById('messages-only').click();", len(marks) - sum(marks))):
        shown = opened(conversation, tmp_path, hidden + visible)
        assert int(re.search(r"<title>(\d+)</title>", shown)[1]) == pytest.approx(expected, abs=2)  # empty pieces have no width


@needs_browser
def test_memories_compared_in_a_browser(memories, tmp_path):
    expected = compare_memories(random_state(1), random_state(1, seed=1))
    rows = cells_of("comparison", opened(memories, tmp_path))
    assert [row[0] for row in rows[1:]] == ["all", "0", "1"]
    for row, figures in zip(rows[1:], (expected, *expected["layers"]), strict=True):
        assert float(row[1]) == pytest.approx(figures["cosine"][0], abs=0.002)
        assert float(row[2]) == pytest.approx(figures["distance"][0], rel=0.01)
    same = cells_of("comparison", opened(memories, tmp_path, choose(first="1")))
    assert same[1][1:3] == ["1.000", "0"]


@needs_browser
def test_a_broken_page_would_be_noticed(memories, tmp_path):
    with pytest.raises(AssertionError, match="CONSOLE"):
        opened(memories, tmp_path, "noSuchFunction()")
