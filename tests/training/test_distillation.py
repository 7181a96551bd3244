"""Chats that are written from the bare backbone, read from several places, and compared with a teacher that has the history."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_chat import chat_model, chat_tokenizer

from deltamem.training.costs import Weighing, amounts, divergence, hidden_distance, mean_costs, predicts
from deltamem.training.episodes import EpisodeCollator, EpisodeEncoder
from deltamem.training.loss import EpisodeLoss
from deltamem.training.reading import Reader
from deltamem.training.scripts import IGNORED, talk_script, token_ids
from deltamem.training.start import start_from_attention
from deltamem.training.views import VIEWS

TEXTS = (
    ("Anna likes teal.", "Noted.", "Bob lives in Rome.", "Okay.", "Hello there.", "Hello friend!"),
    ("Bob likes red.", "Noted.", "Where is Bob?", "Oslo"),
)
SYSTEM = ({"role": "system", "content": "Remember everything. Hello there."},)
ROLES = ("user", "assistant") * 3
TEACHER = Weighing(answers=0.0, teacher=1.0)


def talk(texts, *views):
    messages = [{"role": role, "content": text} for role, text in zip(ROLES, texts, strict=False)]
    return {"messages": messages, "talk": True, "seed": 1, "reads": [{"view": view} for view in views]}


def batch_of(*views, write="token", system=()):
    encoder = EpisodeEncoder(chat_tokenizer(), write=write, whole=True, max_write_tokens=64, talk_tokens=16)
    return EpisodeCollator(encoder)([with_system(talk(texts, *views), system) for texts in TEXTS])


def with_system(chat, system):
    return {**chat, "messages": [*system, *chat["messages"]]}


def written_tokens(batch, chat, count):
    mask = batch["chats"]["attention_mask"][chat].bool()
    return batch["chats"]["input_ids"][chat][mask][None, :count]


@pytest.mark.parametrize("system", [(), SYSTEM], ids=["no system prompt", "a system prompt, passed once"])
def test_a_memory_is_known_at_every_token(system):
    """As if each beginning had been written alone, in a pass that does not read."""
    model, batch = chat_model(spread=0.5), batch_of("memory", "memory", "memory", system=system)
    written = EpisodeLoss(model, TEACHER, "backbone").write(model, batch)
    read = batch["memory"]
    assert (
        len({*zip(read["chat"].tolist(), read["written"].tolist(), strict=True)}) == 4
    )  # the short chat is long enough behind one
    assert (written.beginning is None) == (not system)
    memory = written.memory(read["chat"], read["written"])
    for row, (chat, count) in enumerate(zip(read["chat"].tolist(), read["written"].tolist(), strict=True)):
        alone = model.new_memory()
        with torch.no_grad(), model.memory(alone, read=False):
            model(input_ids=written_tokens(batch, chat, count))
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(memory.tensors[name][row : row + 1], tensor)
    assert memory.tokens == read["written"].tolist()


def test_a_pass_that_does_not_read_computes_what_the_backbone_does():
    model, ids = chat_model(spread=0.5), written_tokens(batch_of("memory"), 0, 20)
    state = model.new_memory()
    with torch.no_grad():
        with model.memory(state):
            model(input_ids=ids)
        with model.memory(state, read=False):
            unread = model(input_ids=ids).logits
        with model.memory(state, write=False):
            read = model(input_ids=ids).logits
        with model.disable_adapter():
            bare = model(input_ids=ids).logits
    assert torch.equal(unread, bare)
    assert not torch.allclose(read, bare)
    assert state.tokens == [40]
    with pytest.raises(ValueError, match="leave the memory out"):
        model.memory(state, read=False, write=False)


def test_the_teacher_has_the_history_in_its_context():
    model, batch = chat_model(spread=0.5), batch_of("memory")
    read = batch["memory"]
    with torch.no_grad():
        (costs,) = EpisodeLoss(model, TEACHER, "backbone")(model, batch).values()
        expected = 0.0
        for row, (chat, count) in enumerate(zip(read["chat"].tolist(), read["written"].tolist(), strict=True)):
            part = int((read["taught"][row] >= 0).sum())
            whole, alone, state = written_tokens(batch, chat, count + part), read["input_ids"][row], model.new_memory()
            with model.disable_adapter():
                teacher = model(input_ids=whole).logits[0, -part:]
            with model.memory(state, read=False):
                model(input_ids=whole[:, :count])
            with model.memory(state, write=False):
                student = model(input_ids=alone[read["attention_mask"][row].bool()][None]).logits[0, -part:]
            expected += F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="sum")
    torch.testing.assert_close(costs.teacher, expected)
    assert expected > 0.1


def test_without_a_teacher_nothing_is_asked_of_the_backbone():
    model, batch = chat_model(spread=0.5), batch_of("memory", system=SYSTEM)
    with torch.no_grad():
        written = EpisodeLoss(model, Weighing(), "backbone").write(model, batch)
    assert written.backbone is None
    assert written.beginning is not None


def test_where_the_teacher_is_followed():
    model, batch = chat_model(spread=0.5), batch_of("memory")
    with torch.no_grad():
        every, answers, changed = (
            EpisodeLoss(model, TEACHER._replace(teacher_tokens=which), "backbone")(model, batch)["memory"].teacher
            for which in ("all", "answers", "changed")
        )
    assert answers <= every != changed


def test_a_view_costs_the_same_beside_others():
    model = chat_model(spread=0.5)
    beside, alone = batch_of("memory", "another"), batch_of("memory", "another")
    del alone["another"]
    with torch.no_grad():
        costs = [EpisodeLoss(model, TEACHER, "backbone")(model, batch)["memory"] for batch in (beside, alone)]
    torch.testing.assert_close(costs[0].teacher, costs[1].teacher)


def test_the_divergence_of_equal_logits_is_zero():
    logits = torch.randn(5, 7)
    torch.testing.assert_close(divergence(logits, logits), torch.zeros(5), atol=1e-6, rtol=0)
    assert (divergence(logits, logits.roll(1, 0)) > 0).all()


@pytest.mark.parametrize("system", [(), SYSTEM])
def test_the_teacher_is_the_same_from_either_way_of_writing(system):
    model, batch = chat_model(spread=0.5), batch_of("memory", system=system)
    with torch.no_grad():
        ways = [EpisodeLoss(model, TEACHER, way).write(model, batch) for way in ("backbone", "memory")]
    torch.testing.assert_close(
        ways[0].backbone.logits[0], ways[1].backbone.logits[0]
    )  # the short chat ends before the last places


def test_writing_from_the_backbone_needs_no_gradients_of_the_written_tokens():
    """Gradients reach all that writes and reads, and nothing in the write pass depends on what is read."""
    model, batch = chat_model(spread=0.5), batch_of("memory", "another")
    costs = EpisodeLoss(model, TEACHER, "backbone")(model, batch)
    sum(cost.teacher for cost in costs.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


def test_a_memory_of_one_place_is_not_read_from_two():
    model, batch = chat_model(spread=0.5), batch_of("memory", "memory", "memory")
    with pytest.raises(ValueError, match='give write_from="backbone"'):
        EpisodeLoss(model, TEACHER, "memory")(model, batch)


def test_talk_is_read_on_from_its_messages():
    script = talk_script(chat_tokenizer(), talk(TEXTS[0])["messages"], 9, "seed", 64, 16)
    whole = chat_tokenizer().decode(script.chat.ids)
    assert len(script.parts) > 3
    for part in script.parts:
        assert whole.startswith(chat_tokenizer().decode(script.chat.ids[: part.written]))
        begins = chat_tokenizer().convert_ids_to_tokens(part.ids[-part.length :].tolist())
        assert begins[0] == "<|im_start|>"
        assert torch.equal(part.ids[-part.length :], script.chat.ids[part.written : part.written + part.length])
        assert (part.labels[: -part.length] == IGNORED).all()


def test_talk_of_one_message_is_refused():
    with pytest.raises(ValueError, match="talk needs two messages at least"):
        talk_script(chat_tokenizer(), talk(TEXTS[0])["messages"][:1], 1, "seed", 64, 16)


def test_a_start_from_the_attention():
    """Everything is set, the output's correction to directions of its own, and no other correction is made yet."""
    model, random = chat_model(spread=0.5, num_states=2), chat_model(spread=0.5, num_states=2)
    start_from_attention(model, [batch_of("memory", "memory")])
    adapted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p for name, p in random.named_parameters() if p.requires_grad}
    for name, weight in adapted.items():
        assert weight.isfinite().all(), name
        assert not torch.equal(weight, before[name]), name
        assert bool(weight.any()) == (".delta_mem_q." not in name), name
    corrections = [weight for name, weight in adapted.items() if ".delta_mem_o." in name]
    for weight in corrections:  # columns of one length, at right angles
        torch.testing.assert_close(weight.T @ weight, torch.eye(weight.shape[1]) * weight[:, 0].square().sum())


@pytest.mark.parametrize("decay", ["coupled", "learned"])
def test_a_start_from_the_attention_gives_each_state_a_horizon(decay):
    model = chat_model(num_states=2, decay=decay, rowwise_gates=True)
    start_from_attention(model, [batch_of("memory", "memory")])
    for name, bias in model.named_parameters():
        if "gate_bias" in name:
            write, *keep = bias.unflatten(0, (-1, 2, bias.shape[0] // (4 if decay == "learned" else 2)))
            assert (write == torch.tensor([[-2.0], [-3.0]])).all()
            assert all((gate == torch.tensor([[3.0], [4.0]])).all() for gate in keep)
            assert bool(keep) == (decay == "learned")


def test_a_start_from_the_attention_needs_its_output_corrected():
    with pytest.raises(ValueError, match="give corrections with 'o'"):
        start_from_attention(chat_model(corrections=("q",)), [batch_of("memory")])


def test_what_all_read_passes_begin_with_is_passed_once():
    """Of the bare model the logits are the same; a memory has no part in the beginning."""
    batch = batch_of("memory", system=SYSTEM)["memory"]
    model, columns = chat_model(spread=0.5), torch.arange(14, 18)
    with torch.no_grad(), model.disable_adapter():
        reader = Reader.behind_beginning(model, batch, columns)
        assert 8 <= reader.shared <= 14
        torch.testing.assert_close(reader(model, batch), Reader(columns)(model, batch))
        torch.testing.assert_close(reader(model, batch), Reader(columns)(model, batch))  # nothing is left in the cache
        assert Reader.behind_beginning(model, batch, torch.tensor([3])).shared == 0


def test_what_was_written_is_asked_back():
    """The labels of a reconstruction are tokens of the history in a row, whatever answers weigh, and no teacher is asked."""
    model, batch = chat_model(spread=0.5), batch_of("reconstruction", "reconstruction")
    read = batch["reconstruction"]
    for row, chat in enumerate(read["chat"].tolist()):
        told = written_tokens(batch, chat, int(read["written"][row]))[0]
        asked = read["labels"][row][read["labels"][row] != IGNORED]
        assert len(asked) == min(16, len(told))
        assert any(torch.equal(asked, told[start : start + len(asked)]) for start in range(len(told)))
    with torch.no_grad():
        (costs,) = EpisodeLoss(model, TEACHER, "backbone")(model, batch).values()
    assert costs.teacher == 0
    view = VIEWS["reconstruction"]
    assert (
        mean_costs(costs, amounts(read, view, TEACHER), view, TEACHER)["answers"]
        == costs.answers / predicts(read["labels"]).sum()
    )


@pytest.mark.parametrize("write_from", ["memory", "backbone"])
def test_hidden_states_are_compared_with_the_teachers(write_from):
    model, batch = chat_model(spread=0.5), batch_of("memory")
    weighing = Weighing(answers=0.0, hidden=1.0)
    (costs,) = EpisodeLoss(model, weighing, write_from)(model, batch).values()
    costs.hidden.backward()
    assert costs.hidden > 0.01
    assert all(weight.grad.norm() > 0 for name, weight in model.named_parameters() if name.endswith("o.tiny.weight"))
    (without,) = EpisodeLoss(model, TEACHER, write_from)(model, batch).values()
    assert without.hidden == 0
    torch.testing.assert_close(costs.teacher, without.teacher)


def test_the_distance_of_equal_hidden_states_is_zero():
    hidden = torch.randn(5, 2, 7)
    torch.testing.assert_close(hidden_distance(hidden, hidden), torch.zeros(5))
    torch.testing.assert_close(hidden_distance(torch.zeros_like(hidden), hidden), torch.ones(5))


@pytest.mark.parametrize("lengths", [(400, 3, 3), (3, 3, 400), (3, 400, 400)])
def test_long_messages_are_read_on_from(lengths):
    """Of a long first message the end is written, and what is read is never behind the last message."""
    for seed in range(10):
        texts = [" ".join(["red", "teal"] * (words // 2)) + "." for words in lengths]
        messages = [{"role": role, "content": text} for role, text in zip(ROLES, texts, strict=False)]
        script = talk_script(chat_tokenizer(), messages, 2, str(seed), 64, 16)
        assert len(script.chat.ids) <= 80
        for part in script.parts:
            assert 0 < part.written <= 64
            assert part.length > 0
            assert torch.equal(part.ids[-part.length :], script.chat.ids[part.written : part.written + part.length])


def test_unrelated_messages_are_cut_behind_the_system_prompt():
    encoder = EpisodeEncoder(chat_tokenizer(), talk_tokens=6)
    instead = [*SYSTEM, *({"role": role, "content": text} for role, text in zip(ROLES, TEXTS[0], strict=True))]
    chat = with_system(talk(TEXTS[1], "unrelated"), SYSTEM)
    (read,) = encoder({**chat, "reads": [{"view": "unrelated", "instead": instead}]}).reads
    whole = token_ids(chat_tokenizer(), chat_tokenizer().apply_chat_template(instead, tokenize=False)).tolist()
    assert read.ids.tolist() == whole[: len(read.ids)]
    assert 6 < len(read.ids) < len(whole)


def test_talk_that_is_not_labelled_follows_the_teacher_alone():
    """So that answers of other chats can count beside it."""
    plain = EpisodeEncoder(chat_tokenizer(), whole=True, max_write_tokens=64, talk_tokens=16)
    chats = [talk(texts, "memory", "memory") for texts in TEXTS]
    labelled, unlabelled = (EpisodeCollator(replace(plain, label_talk=label))(chats)["memory"] for label in (True, False))
    assert (unlabelled["labels"] == IGNORED).all()
    assert (labelled["labels"] != IGNORED).any()
    for name in ("input_ids", "taught", "written", "chat"):
        assert torch.equal(labelled[name], unlabelled[name])
    asked = {"messages": talk(TEXTS[0])["messages"][:4], "reads": [{"view": "memory"}]}
    assert (EpisodeCollator(replace(plain, label_talk=False))([asked])["memory"]["labels"] != IGNORED).any()
